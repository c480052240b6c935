"""A whole study in open loop, on servers whose capacity is a formula."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fakes import ScriptedClock
from tests.study.builders import layouts_plan
from tests.study.open_server import capacity, open_plan, open_trial
from tests.study.study_run import StudyRun
from tuner.bench.capacity_search import Ended
from tuner.layout import Layout
from tuner.study.assignment import Assignment
from tuner.study.events import GroupsCompared, SearchEnded
from tuner.study.plan import OpenSearch
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import Decision
from tuner.study.stopping import SearchEnd


class Seen:
    """A made-up machine that keeps what it was asked for."""

    def __init__(self) -> None:
        self.assignments: list[Assignment] = []

    def __call__(self, assignment: Assignment) -> TrialRecord:
        self.assignments.append(assignment)
        return open_trial(assignment)

    @property
    def confirming(self) -> list[Assignment]:
        return [a for a in self.assignments if a.role is Role.CONFIRM]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyRun, Seen]:
    machine = Seen()
    made = StudyRun(open_plan(tmp_path_factory.mktemp("run") / "s", starts=14), machine)
    made.loop.run()
    return made, machine


def test_a_winner_is_promised_what_its_fresh_starts_held(run: tuple[StudyRun, Seen]) -> None:
    result = run[0].store.result()
    assert result.decision is Decision.WINNER and result.complete
    assert result.winner is not None and result.winner.fresh and len(result.winner.trials) == 2
    true = capacity(next(a for a in run[1].assignments if a.candidate == result.winner.candidate))
    assert true is not None
    assert 0.9 * true < result.winner.qps <= 0.98 * true
    assert result.default is not None and result.default.fresh
    assert result.sentence.startswith(f"Sustains {result.winner.qps:.1f} QPS, ± 3 % (Poisson), +")
    assert " over the default at P99 TTFT " in result.sentence


def test_every_candidate_races_against_the_best_before_it(run: tuple[StudyRun, Seen]) -> None:
    records = {r.trial: r for r in run[0].store.records()}
    searched = [a for a in run[1].assignments if a.role is not Role.CONFIRM]
    assert searched[0].incumbent is None, "the default has nothing to race against"
    for assignment in searched[1:]:
        before = [q for t, r in records.items() if t < assignment.trial and (q := r.qps) is not None]
        assert assignment.incumbent is not None and assignment.incumbent.rate == max(before)


def test_most_candidates_end_behind_the_best_and_are_no_failures(run: tuple[StudyRun, Seen]) -> None:
    behind = [r for r in run[0].store.records() if r.outcome is TrialOutcome.BEHIND]
    assert len(behind) > 3
    for record in behind:
        assert record.qps is None and record.best is None and len(record.notes) == 1
        assert record.capacity is not None and record.capacity.ended in (Ended.HOPELESS, Ended.RACE_LOST)
        assert len(record.levels) <= 2


def test_winner_and_default_claim_in_turn_on_traffic_that_they_share(run: tuple[StudyRun, Seen]) -> None:
    winner, default = run[1].confirming[0].candidate, run[1].confirming[1].candidate
    turns = [(a.candidate == winner, a.traffic) for a in run[1].confirming]
    assert winner != default
    assert turns == [(True, 1), (False, 1), (False, 2), (True, 2)]
    assert {a.traffic for a in run[1].assignments if a.role is not Role.CONFIRM} == {0}


def test_a_claim_begins_at_its_block_and_the_least_of_several_is_the_promise(tmp_path: Path) -> None:
    def run_trial(assignment: Assignment) -> TrialRecord:
        return open_trial(assignment, fresh_share=0.93 if assignment.traffic == 2 else 0.98)

    run = StudyRun(open_plan(tmp_path / "s", starts=8), run_trial)
    result = run.loop.run()
    assert result.winner is not None
    confirmed = [r for r in run.store.records() if r.role is Role.CONFIRM]
    held = [r.qps for r in confirmed if r.candidate == result.winner.candidate and r.qps is not None]
    assert len(held) == 2 and held[1] < held[0]
    assert result.winner.qps == result.winner.qps_low == held[1]
    for record in confirmed:
        assert record.claim is not None and record.capacity is not None
        assert record.claim.probes[0].rate == record.capacity.rate == record.block


def test_a_finalist_whose_claim_fails_makes_room_for_the_next(tmp_path: Path) -> None:
    refuted: list[str] = []

    def run_trial(assignment: Assignment) -> TrialRecord:
        if assignment.role is Role.CONFIRM and not refuted:
            refuted.append(assignment.candidate.id)
        fails = assignment.role is Role.CONFIRM and assignment.candidate.id in refuted
        return open_trial(assignment, fresh_share=0.5 if fails else 0.98)

    run = StudyRun(open_plan(tmp_path / "s", starts=9, confirm_starts=6), run_trial)
    result = run.loop.run()
    failed = next(r for r in run.store.records() if r.role is Role.CONFIRM)
    assert failed.outcome is TrialOutcome.INFEASIBLE and failed.qps is None
    assert result.winner is not None and result.winner.candidate.id not in refuted


def test_the_places_of_a_layout_are_compared_by_the_closed_loop_that_fills_them(tmp_path: Path) -> None:
    def run_trial(assignment: Assignment) -> TrialRecord:
        made = open_trial(assignment)
        if assignment.role is not Role.CHECK or assignment.place == "gpu0":
            return made
        (level,) = made.levels
        return replace(
            made,
            levels=(replace(level, measurement=replace(level.measurement, qps=0.9 * (level.measurement.qps or 0))),),
        )

    two = layouts_plan(tmp_path / "s", [Layout(2)], gpus=2, starts=6)
    run = StudyRun(replace(two, load=OpenSearch(0.0)), run_trial)
    assert run.loop.run().complete
    (compared,) = (e for e in run.events if isinstance(e, GroupsCompared))
    assert (compared.layout, compared.groups) == (Layout(2), 2)
    assert compared.alone_qps is not None and compared.slowest_qps == pytest.approx(0.9 * compared.alone_qps)
    checks = [r for r in run.store.records() if r.role is Role.CHECK]
    assert [len(r.levels) for r in checks] == [1, 1]


def test_a_time_budget_leaves_room_for_claims_of_their_real_length(tmp_path: Path) -> None:
    clock = ScriptedClock()

    made = open_plan(tmp_path / "s", starts=1000)
    claim_s = 20 + made.load.confirm_s

    def run_trial(assignment: Assignment) -> TrialRecord:
        clock.sleep(claim_s if assignment.role is Role.CONFIRM else claim_s / 4)
        return open_trial(assignment)

    budget_s = 8 * claim_s
    run = StudyRun(replace(made, time_budget_s=budget_s), run_trial)
    run.loop.clock = clock
    result = run.loop.run()
    assert result.elapsed_s <= budget_s
    assert result.winner is not None and len(result.winner.trials) == 2


def test_a_short_time_budget_is_not_all_kept_for_the_claims(tmp_path: Path) -> None:
    clock = ScriptedClock()

    def run_trial(assignment: Assignment) -> TrialRecord:
        clock.sleep(800 if assignment.role is Role.CONFIRM else 100)
        return open_trial(assignment)

    run = StudyRun(replace(open_plan(tmp_path / "s", starts=1000), time_budget_s=3600.0), run_trial)
    run.loop.clock = clock
    result = run.loop.run()
    roles = [r.role for r in run.store.records()]
    assert roles.count(Role.CONFIRM) >= 2, "winner and default have at least a fresh start each"
    assert len(roles) - roles.count(Role.CONFIRM) >= 15
    assert SearchEnded(SearchEnd.NO_TIME, None) in run.events
    assert result.elapsed_s <= 3600 + 800


def test_a_default_whose_first_start_failed_comes_again_without_a_race(tmp_path: Path) -> None:
    machine = Seen()

    def run_trial(assignment: Assignment) -> TrialRecord:
        made = machine(assignment)
        if assignment.role is not Role.DEFAULT or assignment.attempt > 1:
            return made
        return replace(made, outcome=TrialOutcome.INFRASTRUCTURE, best=None)

    run = StudyRun(open_plan(tmp_path / "s", starts=8), run_trial)
    result = run.loop.run()
    starts = [a for a in machine.assignments if a.role is Role.DEFAULT]
    assert len(starts) == 2 and all(a.incumbent is None for a in starts)
    assert result.default is not None
    first = machine.assignments[1]
    assert first.role is not Role.DEFAULT and first.incumbent is None, "a spoilt start is nobody's incumbent"
