"""Trials of a whole machine: two stand-ins behind a real nginx, loaded through it, and struck under load."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.faults.moments import short_limits
from tests.faults.study_run import SimGpu, make_plan
from tests.server.support import children_of_ours, eventually, runs, session
from tuner.bench.task import RunLadder
from tuner.candidate import Candidate
from tuner.clock import RealClock
from tuner.launch import Door
from tuner.load import drive
from tuner.placement import GpuGroup
from tuner.server import proctable, running_file
from tuner.server.door import nginx_program
from tuner.study.assignment import Assignment
from tuner.study.events import Event, PhaseChanged
from tuner.study.local_servers import local_trials
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.store import Store
from tuner.vllm.cause import Cause, Fault

pytestmark = pytest.mark.skipif(nginx_program() is None, reason="no nginx here")

SECOND, DOOR = 1, 2
"""Numbers of a running file: the second server's and nginx's."""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    short_limits(monkeypatch)
    # A frozen server gets no more than its share of the clients: no limit is broken often enough to end the level.
    assert drive.drive_closed.__kwdefaults__ is not None
    monkeypatch.setitem(drive.drive_closed.__kwdefaults__, "drain_s", 3.0)


def confirmed(folder: Path, model: str, strike: Callable[[Path], None] | None = None) -> tuple[TrialRecord, list[int]]:
    """Confirm a candidate on the whole machine. `strike` gets the trial's folder under load. Returns the record and
    the processes that were there before the strike."""
    groups = (GpuGroup((0,)), GpuGroup((1,)))
    plan = make_plan(folder / "s", model, starts=1, confirm_starts=1, groups=groups)
    env = tuple((k, "0.1" if k == "TUNER_SIM_STARTUP_S" else v) for k, v in plan.base.env)
    plan = replace(plan, base=replace(plan.base, env=env))
    store, family, timers = Store(folder / "s"), list[int](), list[threading.Timer]()
    store.create()

    def struck() -> None:
        trial = store.trial_folder(0)
        leaders = {running_file.read(path).pid for path in running_file.found_below(trial)}
        family.extend(p.pid for p in proctable.table().values() if p.session in leaders)
        if strike is not None:
            strike(trial)

    def emit(event: Event) -> None:
        if isinstance(event, PhaseChanged) and event.phase == "measuring":
            timers.append(threading.Timer(0.8, struck))
            timers[0].start()

    runner = local_trials(plan, store, RealClock(), SimGpu(folder / "s" / "gpu"), emit, threading.Event())
    task, candidate = RunLadder((8,), 2.0), Candidate.of({"max-num-seqs": 8})
    record = runner.run(Assignment(0, Role.CONFIRM, candidate, groups, task, 0.3, None, door=Door.NGINX))
    for timer in timers:
        timer.join()
    return record, family


def send(number: int, what: signal.Signals) -> Callable[[Path], None]:
    """Signal every process of a server or of nginx."""

    def strike(trial: Path) -> None:
        for process in session(running_file.read(running_file.path_of(trial, number)).pid):
            with suppress(ProcessLookupError):  # nginx's workers end with their master
                os.kill(process.pid, what)

    return strike


def test_the_machine_is_measured_through_its_door(tmp_path: Path, tiny_model: str) -> None:
    record, family = confirmed(tmp_path, tiny_model)
    assert record.outcome is TrialOutcome.FEASIBLE and record.start.cause is None
    assert record.start.door is Door.NGINX and len(record.start.launches) == 2
    assert record.start.facts is not None
    level = record.levels[-1].measurement
    assert level.server.preemptions == 0 and level.completed > 0
    rows = pq.read_table(tmp_path / "s/trials/0000/telemetry.parquet").to_pylist()
    made = {server: max(r["generation_tokens"] for r in rows if r["server"] == server) for server in (0, 1)}
    assert set(made) == {0, 1} and min(made.values()) > 0.8 * max(made.values()), "one server got most of the load"
    assert len(family) >= 4 and not any(map(runs, family)) and not children_of_ours()


@pytest.mark.parametrize(
    ("strike", "kind", "fault", "words"),
    [
        (send(SECOND, signal.SIGSTOP), "hung", Fault.UNKNOWN, "Server 2 of 2 answers"),
        (send(DOOR, signal.SIGTERM), "door-died", Fault.ENVIRONMENT, "The door (nginx) died"),
        (send(DOOR, signal.SIGSTOP), "hung", Fault.ENVIRONMENT, "The door (nginx) answers"),
    ],
    ids=["one server frozen", "nginx ended", "nginx frozen"],
)
def test_whatever_is_struck_under_load_is_the_one_cause_and_nothing_is_left(
    tmp_path: Path, tiny_model: str, strike: Callable[[Path], None], kind: str, fault: Fault, words: str
) -> None:
    record, family = confirmed(tmp_path, tiny_model, strike)
    cause = record.start.cause
    assert isinstance(cause, Cause) and (cause.kind, cause.fault) == (kind, fault)
    assert words in cause.explanation
    assert record.outcome is TrialOutcome.INFRASTRUCTURE and record.best is None
    assert record.start.dirty is None
    assert len(family) >= 4 and eventually(lambda: not any(map(runs, family)))
    assert not children_of_ours() and not running_file.found_below(tmp_path)
