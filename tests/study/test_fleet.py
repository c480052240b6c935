"""What holds of a fleet: who waits for whom, what is on disk by when, and how it ends."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.study.builders import level, record
from tuner import jsonfile
from tuner.bench.task import RunLadder
from tuner.candidate import Candidate
from tuner.placement import GpuGroup
from tuner.study.assignment import Assignment
from tuner.study.fleet import FleetStoppedError, LocalFleet
from tuner.study.record import Role, TrialRecord
from tuner.study.store import ASSIGNMENT, Store

GROUPS = (GpuGroup((0,)), GpuGroup((1,)))
PAIR, APART = GpuGroup((0, 1)), GpuGroup((2,))
"""A larger slot over both groups, and one that shares no GPU with them."""

TIMEOUT_S = 20.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "s")
    store.create()
    return store


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


def made(assignment: Assignment) -> TrialRecord:
    """Do the work of a trial in no time."""
    return record(assignment.trial, assignment.candidate, (level(10.0),), group=assignment.groups[0])


def assigned(store: Store, group: GpuGroup) -> Assignment:
    return Assignment(store.new_trial(), Role.SEARCH, Candidate(), (group,), RunLadder((8,), 1.0), 0.0, None)


def test_a_record_is_on_disk_before_its_future_resolves(store: Store, stop: threading.Event) -> None:
    on_disk: list[list[int]] = []
    with LocalFleet(GROUPS, made, store, stop) as fleet:
        for _ in range(3):
            looked = threading.Event()

            def look(_: object, looked: threading.Event = looked) -> None:
                on_disk.append([r.trial for r in store.records()])
                looked.set()

            fleet.submit(assigned(store, GROUPS[0])).add_done_callback(look)
            assert looked.wait(TIMEOUT_S), "result() may return before the callbacks have run"
    assert on_disk == [[0], [0, 1], [0, 1, 2]]


def test_assignments_and_records_are_on_disk_before_a_server_starts(store: Store, stop: threading.Event) -> None:
    before: list[int] = []

    def work(assignment: Assignment) -> TrialRecord:
        before.append(len(store.records()))
        assert jsonfile.load(store.trial_folder(assignment.trial) / ASSIGNMENT, Assignment) == assignment
        return made(assignment)

    with LocalFleet(GROUPS[:1], work, store, stop) as fleet:
        for future in [fleet.submit(assigned(store, GROUPS[0])) for _ in range(4)]:
            future.result(TIMEOUT_S)
    assert before == [0, 1, 2, 3]


def test_slots_work_side_by_side_and_none_is_used_twice_at_once(store: Store, stop: threading.Event) -> None:
    pair = threading.Barrier(len(GROUPS), timeout=TIMEOUT_S)
    lock, busy, most = threading.Lock(), dict.fromkeys(GROUPS, 0), dict.fromkeys(GROUPS, 0)

    def work(assignment: Assignment) -> TrialRecord:
        with lock:
            busy[assignment.groups[0]] += 1
            most[assignment.groups[0]] = max(most[assignment.groups[0]], busy[assignment.groups[0]])
        pair.wait()  # passes only while the other slot works too
        with lock:
            busy[assignment.groups[0]] -= 1
        return made(assignment)

    with LocalFleet(GROUPS, work, store, stop) as fleet:
        futures = [fleet.submit(assigned(store, group)) for _ in range(3) for group in GROUPS]
        assert {future.result(TIMEOUT_S).start.group for future in futures} == {group.name for group in GROUPS}
    assert most == dict.fromkeys(GROUPS, 1)


def test_slots_that_share_a_gpu_take_turns_in_the_order_of_their_assignments(
    store: Store, stop: threading.Event
) -> None:
    """A large slot waits for the small ones before it, and later small ones wait for it."""
    order = [GROUPS[0], PAIR, GROUPS[1], GROUPS[0], PAIR, PAIR, GROUPS[0], GROUPS[1]] * 12
    lock = threading.Lock()
    busy: set[int] = set()
    began: list[int] = []

    def work(assignment: Assignment) -> TrialRecord:
        with lock:
            assert not busy & assignment.units
            busy.update(assignment.units)
            began.append(assignment.trial)
        record = made(assignment)
        with lock:
            busy.difference_update(assignment.units)
        return record

    with LocalFleet((*GROUPS, PAIR), work, store, stop) as fleet:
        for future in [fleet.submit(assigned(store, group)) for group in order]:
            future.result(TIMEOUT_S)
    for group in GROUPS:
        uses_it = [trial for trial, slot in enumerate(order) if slot.units & group.units]
        assert [trial for trial in began if trial in uses_it] == uses_it


def test_an_assignment_passes_those_that_wait_for_other_gpus(store: Store, stop: threading.Event) -> None:
    passed = threading.Event()

    def work(assignment: Assignment) -> TrialRecord:
        if assignment.groups == (APART,):
            passed.set()
        else:
            assert passed.wait(TIMEOUT_S)
        return made(assignment)

    with LocalFleet((*GROUPS, PAIR, APART), work, store, stop) as fleet:
        futures = [fleet.submit(assigned(store, group)) for group in (GROUPS[0], PAIR, PAIR, APART)]
        assert [future.result(TIMEOUT_S).trial for future in futures] == [0, 1, 2, 3]


def test_stop_ends_what_runs_and_refuses_what_comes(store: Store, stop: threading.Event) -> None:
    started = threading.Event()

    def work(assignment: Assignment) -> TrialRecord:
        started.set()
        assert stop.wait(TIMEOUT_S)
        return made(assignment)

    with LocalFleet(GROUPS, work, store, stop) as fleet:
        running = fleet.submit(assigned(store, GROUPS[0]))
        assert started.wait(TIMEOUT_S)
        before = fleet.stopped
        fleet.stop()
        fleet.stop()
        assert (before, fleet.stopped) == (False, True)
        with pytest.raises(FleetStoppedError):
            fleet.submit(assigned(store, GROUPS[1]))
        assert running.result(TIMEOUT_S).trial == 0
    assert [r.trial for r in store.records()] == [0]


def test_the_end_of_the_block_waits_for_what_runs_and_an_exception_stops_it_first(
    store: Store, stop: threading.Event
) -> None:
    def work(assignment: Assignment) -> TrialRecord:
        assert stop.wait(TIMEOUT_S)
        return made(assignment)

    with pytest.raises(ZeroDivisionError), LocalFleet(GROUPS, work, store, stop) as fleet:
        future = fleet.submit(assigned(store, GROUPS[0]))
        raise ZeroDivisionError
    assert fleet.stopped
    assert future.done()
    assert [r.trial for r in store.records()] == [0]


def test_an_exception_of_one_assignment_does_not_end_the_fleet(store: Store, stop: threading.Event) -> None:
    def work(assignment: Assignment) -> TrialRecord:
        if assignment.trial == 0:
            raise ValueError("a bug")
        return made(assignment)

    with LocalFleet(GROUPS[:1], work, store, stop) as fleet:
        broken, whole = (fleet.submit(assigned(store, GROUPS[0])) for _ in range(2))
        with pytest.raises(ValueError, match="a bug"):
            broken.result(TIMEOUT_S)
        assert whole.result(TIMEOUT_S).trial == 1
    assert not fleet.stopped
    assert [r.trial for r in store.records()] == [1]
