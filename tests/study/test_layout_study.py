"""Whole studies of two layouts on servers whose capacity is a formula: through the doors to the end, killed and
resumed anywhere."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.fakes import ScriptedClock, ScriptedServers, scripted_trial
from tests.study.builders import BASE, layouts_plan
from tests.study.open_server import OpenServer
from tests.study.study_run import StudyRun
from tuner.candidate import Candidate
from tuner.launch import Door
from tuner.layout import Layout
from tuner.study.assignment import Assignment
from tuner.study.doors import is_extra
from tuner.study.events import GroupsCompared, SearchEnded
from tuner.study.plan import OpenSearch, StudyPlan
from tuner.study.record import Role, TrialRecord
from tuner.study.result import Decision, StudyResult

PAIR, WHOLE = Layout(2), Layout(1, 2)
SEEDS = [
    Candidate.of({**layout.flags, "max-num-seqs": seqs, "max-num-batched-tokens": 4096, "gpu-memory-utilization": 0.9})
    for seqs in (128, 64)
    for layout in (PAIR, WHOLE)
]
BEST, STARTS = SEEDS[0], 2 + len(SEEDS)
THROUGH = {Door.SERVER: 1.0, Door.VLLM: 0.75, Door.NGINX: 0.97}
"""Share of the servers' capacity that a door leaves."""


class Killed(BaseException):
    """End of the process, as kill -9 would end it."""


@dataclass
class Machine:
    """Two GPUs. One server of `PAIR` serves 10 requests/s, or 20 with the best flags. `WHOLE` serves 12 or 24."""

    plan: StudyPlan
    kill_at: int | None = None
    started: list[Assignment] = field(default_factory=list)
    _dead: threading.Event = field(default_factory=threading.Event)

    def __call__(self, assignment: Assignment) -> TrialRecord:
        self.started.append(assignment)
        if self.kill_at is not None and len(self.started) > self.kill_at:
            self._dead.set()
        clock = ScriptedClock()
        server = OpenServer(self._capacity(assignment), clock=clock)
        made = scripted_trial(assignment, BASE, ScriptedServers(lambda _: server, clock))
        if self._dead.is_set():  # nothing of it reaches the disk
            raise Killed
        return made

    def _capacity(self, assignment: Assignment) -> float:
        alone = 10.0 if self.plan.layout_of(assignment.candidate) == PAIR else 12.0
        tuned = {128: 2.0, 64: 1.8}.get(int(assignment.candidate.as_dict().get("max-num-seqs", 0)), 1.0)
        return alone * tuned * len(assignment.groups) * THROUGH[assignment.door]


def make_plan(folder: Path) -> StudyPlan:
    made = layouts_plan(folder, (PAIR, WHOLE), gpus=2, starts=STARTS)
    return replace(made, load=OpenSearch(0.0))


def finish(folder: Path, kill_at: int | None = None) -> tuple[StudyResult, StudyRun, Machine]:
    """Run a study to its end, resumed once if it is killed at a start."""
    made = make_plan(folder)
    machine = Machine(made, kill_at)
    run = StudyRun(made, machine, SEEDS)
    if kill_at is None:
        return run.loop.run(), run, machine
    with pytest.raises(Killed):
        run.loop.run()
    machine = Machine(made)
    run = StudyRun(made, machine, SEEDS)
    return run.loop.run(), run, machine


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyResult, StudyRun, Machine]:
    return finish(tmp_path_factory.mktemp("whole") / "s")


def test_the_better_layout_wins_by_its_whole_machine_through_the_better_door(
    whole: tuple[StudyResult, StudyRun, Machine],
) -> None:
    result = whole[0]
    assert result.decision is Decision.WINNER and result.complete
    assert result.winner is not None and result.winner.candidate == BEST
    assert result.winner.qps == pytest.approx(0.98 * 0.97 * 2 * 20.0, rel=0.03)
    assert result.default is not None and result.default.qps == pytest.approx(0.98 * 12.0, rel=0.03)
    vllm, nginx = result.doors
    assert (vllm.door, vllm.is_quoted, nginx.door, nginx.is_quoted) == (Door.VLLM, False, Door.NGINX, True)
    assert vllm.cost == pytest.approx(0.25) and nginx.cost == pytest.approx(0.03)
    assert result.sentence.startswith(f"Sustains {result.winner.qps:.1f} QPS on 2 GPUs as 2x1 through nginx, ± 3 %")


def test_all_servers_are_confirmed_at_once_on_all_their_gpus(whole: tuple[StudyResult, StudyRun, Machine]) -> None:
    _, run, machine = whole
    confirming = [a for a in machine.started if a.role is Role.CONFIRM]
    assert [(a.candidate == BEST, a.door) for a in confirming] == [
        (True, Door.VLLM), (True, Door.NGINX), (False, Door.SERVER), (False, Door.SERVER), (True, Door.NGINX)
    ]  # fmt: skip
    assert {(a.place, a.replicas) for a in confirming} == {("gpu0+gpu1", 1), ("gpu0-1", 1)}
    assert [a.traffic for a in confirming] == [1, 1, 1, 2, 2]
    servers = {r.trial: len(r.start.launches) for r in run.store.records() if r.role is Role.CONFIRM}
    assert list(servers.values()) == [1, 2, 1, 1, 2], "vLLM's own door is a single launch"


def test_a_check_follows_the_default_of_every_layout_of_several_servers(
    whole: tuple[StudyResult, StudyRun, Machine],
) -> None:
    _, run, machine = whole
    roles = [(a.role, a.candidate) for a in machine.started]
    default = run.loop.plan.default_of(PAIR)
    at = roles.index((Role.DEFAULT, default))
    assert roles[at + 1 : at + 3] == [(Role.CHECK, default)] * 2
    assert [e.layout for e in run.events if isinstance(e, GroupsCompared)] == [PAIR]
    assert any(isinstance(e, SearchEnded) for e in run.events)


KILLS = range(STARTS + 2 + 5)
"""Every start of such a study: its search, the check of one layout, and five confirmation runs."""


def test_a_study_has_as_many_starts_as_are_killed_below(whole: tuple[StudyResult, StudyRun, Machine]) -> None:
    assert len(whole[2].started) == len(KILLS)


@pytest.mark.parametrize("kill_at", KILLS)
def test_a_study_killed_at_any_start_comes_to_the_same_end_and_repeats_nothing(
    kill_at: int, tmp_path: Path, whole: tuple[StudyResult, StudyRun, Machine]
) -> None:
    result, run, _ = finish(tmp_path / "s", kill_at)
    expected, records = whole[0], run.store.records()
    assert expected.winner is not None and result.winner is not None
    assert (result.decision, result.winner.candidate, result.winner.qps) == (
        expected.decision, expected.winner.candidate, expected.winner.qps
    )  # fmt: skip
    assert [(d.door, d.is_quoted, len(d.trials)) for d in result.doors] == [
        (d.door, d.is_quoted, len(d.trials)) for d in expected.doors
    ]
    searched = Counter(r.candidate.id for r in records if r.role.searches)
    assert set(searched.values()) == {1} and len(searched) == STARTS
    assert 1 <= sum(r.role is Role.CHECK for r in records) <= PAIR.replicas
    confirmed = [r for r in records if r.role is Role.CONFIRM]
    assert sum(not is_extra(run.loop.plan, records, r) for r in confirmed) == run.loop.plan.confirm_starts
    assert sum(is_extra(run.loop.plan, records, r) for r in confirmed) == 1
