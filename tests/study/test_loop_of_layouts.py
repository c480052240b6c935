"""The coordinator with layouts: what runs side by side, what waits, and what a lost GPU takes along."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.study.builders import landscape, layouts_plan, level, trial_of, with_start
from tests.study.study_run import StudyRun
from tuner.candidate import Candidate, Value
from tuner.errors import EnvironmentFaultError
from tuner.launch import Door
from tuner.layout import Layout
from tuner.study.assignment import Assignment
from tuner.study.events import TrialStarted
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialRecord


def evenly(assignment: Assignment) -> TrialRecord:
    """Make a trial on a machine that sustains as much with every layout, so that none is dropped."""
    made = landscape(assignment)
    shares = [
        replace(each, measurement=replace(each.measurement, qps=(each.measurement.qps or 0.0) / assignment.replicas))
        for each in made.levels
    ]
    return replace(made, levels=tuple(shares))


class Machine:
    """GPUs that hold no two servers at once. A search trial that leaves GPUs free waits for one of another layout:
    every second one for longer, so that its neighbour can make room."""

    def __init__(self, plan: StudyPlan) -> None:
        self.beside: dict[int, set[int]] = {}
        self._plan = plan
        self._running: dict[int, Assignment] = {}
        self._changed = threading.Condition()

    def __call__(self, assignment: Assignment) -> TrialRecord:
        with self._changed:
            assert not any(other.units & assignment.units for other in self._running.values())
            self._running[assignment.trial] = assignment
            for trial in self._running:
                self.beside.setdefault(trial, set()).update(self._running)
            self._changed.notify_all()
            patience_s = 2.0 if assignment.trial % 2 else 0.2
            self._changed.wait_for(lambda: self._is_mixed() or not self._may_have_company(assignment), patience_s)
        made = evenly(assignment)
        with self._changed:
            del self._running[assignment.trial]
        return made

    def _is_mixed(self) -> bool:
        return len({self._plan.layout_of(other.candidate) for other in self._running.values()}) > 1

    def _may_have_company(self, assignment: Assignment) -> bool:
        return assignment.role in (Role.SEED, Role.SEARCH) and self._plan.layout_of(assignment.candidate).replicas > 1


FOUR, TWO, ONE = Layout(4), Layout(2, 2), Layout(1, 4)


def in_turn(*layouts: Layout) -> list[Candidate]:
    """Seeds of these layouts, in this order."""
    return [Candidate.of({**LARGE, **layout.flags, "max-num-seqs": 100 + i}) for i, layout in enumerate(layouts)]


LARGE: dict[str, Value] = {"max-num-batched-tokens": 4096, "gpu-memory-utilization": 0.9}


def test_trials_of_different_layouts_run_at_once_and_share_no_gpu(tmp_path: Path) -> None:
    made = layouts_plan(tmp_path / "s", (FOUR, TWO), starts=14)
    machine = Machine(made)
    run = StudyRun(made, machine, in_turn(FOUR, TWO, FOUR, TWO, FOUR, TWO))
    assert run.loop.run().complete
    records = {r.trial: r for r in run.store.records()}
    layouts = {
        trial: {made.layout_of(records[t].candidate) for t in others} for trial, others in machine.beside.items()
    }
    assert {FOUR, TWO} in layouts.values()
    for r in records.values():
        assert r.replicas == (1 if r.role is Role.CONFIRM else made.layout_of(r.candidate).replicas)


def test_a_default_that_a_check_is_compared_with_runs_alone(tmp_path: Path) -> None:
    made = layouts_plan(tmp_path / "s", starts=6)
    machine = Machine(made)
    run = StudyRun(made, machine, in_turn(FOUR, TWO, ONE))
    run.loop.run()
    records = run.store.records()
    for layout in (FOUR, TWO):
        own = [r for r in records if r.candidate == made.default_of(layout) and r.role is not Role.CONFIRM]
        assert [r.role for r in own] == [Role.DEFAULT, *[Role.CHECK] * layout.replicas]
        first = own[0].trial
        assert [r.trial for r in own] == list(range(first, first + len(own)))
        assert machine.beside[first] == {first}
        assert {r.start.group for r in own[1:]} == {group.name for group in made.placed(layout).machine}
        assert {r.replicas for r in own} == {layout.replicas}


def test_a_default_that_leaves_gpus_idle_is_measured_and_confirmed_as_one_server(tmp_path: Path) -> None:
    own = Layout(1, 2)  # what a user would type if the heads allow no more than two GPUs
    made = layouts_plan(tmp_path / "s", (FOUR, TWO), own=own, starts=8)
    run = StudyRun(made, lambda assignment: trial_of(assignment, (level(10.0),)), in_turn(FOUR, TWO))
    run.loop.run()
    default = [r for r in run.store.records() if r.candidate == made.baseline]
    assert made.layout_of(made.baseline) == own
    assert {r.role for r in default} == {Role.DEFAULT, Role.CONFIRM}
    for r in default:
        assert (r.start.door, len(r.start.launches), r.replicas, len(r.start.gpus)) == (Door.SERVER, 1, 1, 2)


def test_a_proposal_that_waits_for_its_gpus_is_not_overtaken(tmp_path: Path) -> None:
    made = layouts_plan(tmp_path / "s", starts=20)
    run = StudyRun(made, Machine(made), in_turn(FOUR, ONE, FOUR, FOUR, TWO, ONE))
    run.loop.run()
    records = [r for r in run.store.records() if r.role.searches]
    proposed = [r.search_trial or 0 for r in sorted(records, key=lambda r: r.trial)]
    assert proposed == sorted(proposed)
    assert {made.layout_of(r.candidate) for r in records[6:]} >= {FOUR, ONE}


def leaving(*places: str) -> Callable[[Assignment], TrialRecord]:
    """A machine on which servers in these places leave GPU memory behind."""
    return lambda a: with_start(evenly(a), dirty="GPU memory" if a.place in places else None)


def test_a_gpu_that_every_layout_needs_ends_the_run_once_it_is_lost(tmp_path: Path) -> None:
    run = StudyRun(layouts_plan(tmp_path / "s"), leaving("gpu1"))
    with pytest.raises(EnvironmentFaultError, match=r"no layout is whole any more: trial \d+ left GPU memory"):
        run.loop.run()
    assert {r.start.group for r in run.store.records() if r.start.dirty} == {"gpu1"}


def test_a_layout_that_lost_a_gpu_is_neither_searched_nor_confirmed_and_the_others_go_on(tmp_path: Path) -> None:
    three, pair = Layout(3), Layout(1, 2)
    made = layouts_plan(tmp_path / "s", (three, pair), gpus=3, starts=10)
    run = StudyRun(made, leaving("gpu2"), in_turn(pair, three, pair, three, pair))
    result = run.loop.run()
    records = run.store.records()
    lost = next(r.trial for r in records if r.start.dirty)
    assert result.complete and result.winner is not None
    began = {e.trial: made.layout_of(e.candidate) for e in run.events if isinstance(e, TrialStarted)}
    order = list(began)
    running = 3
    assert {began[trial] for trial in order[order.index(lost) + running :]} == {pair}
    assert made.layout_of(result.winner.candidate) == pair
    assert {made.layout_of(r.candidate) for r in records if r.role is Role.CONFIRM} == {pair}
