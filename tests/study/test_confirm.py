from __future__ import annotations

from dataclasses import replace

import pytest

from tests.study.builders import level, plan, record
from tests.study.open_server import open_level
from tuner.bench.capacity_search import Claim
from tuner.candidate import Candidate
from tuner.study import confirm
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import Decision, Figures, Lack

DEFAULT, OTHER = Candidate(), Candidate.of({"max-num-seqs": 64})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> StudyPlan:
    return plan(tmp_path_factory.mktemp("plan") / "s")


def of(candidate: Candidate, low: float, high: float) -> Figures:
    return Figures(candidate, (1, 2), "8 concurrent", (low + high) / 2, low, high, 300.0, 0, fresh=True)


@pytest.mark.parametrize(
    ("winner", "default", "decision"),
    [
        (of(OTHER, 110, 120), of(DEFAULT, 90, 100), Decision.WINNER),
        (of(OTHER, 99, 120), of(DEFAULT, 90, 100), Decision.KEEP_DEFAULT),
        (of(DEFAULT, 90, 100), of(DEFAULT, 90, 100), Decision.KEEP_DEFAULT),
        (of(OTHER, 10, 20), None, Decision.WINNER),
        (None, of(DEFAULT, 10, 20), Decision.KEEP_DEFAULT),
        (None, None, Decision.NOTHING_FEASIBLE),
    ],
)
def test_the_default_is_given_up_only_for_what_is_faster_in_every_start(
    winner: Figures | None, default: Figures | None, decision: Decision
) -> None:
    assert confirm.decide(winner, default) is decision


def test_only_fresh_starts_are_quoted_once_there_are_any(made: StudyPlan) -> None:
    found = record(3, OTHER, (level(130.0),))
    fresh = [record(n, OTHER, (level(qps),), role=Role.CONFIRM) for n, qps in ((8, 118.0), (9, 122.0))]
    figures = confirm.figures(made, [found, *fresh], OTHER)
    assert figures is not None
    assert figures.fresh
    assert figures.trials == (8, 9)
    assert (figures.qps_low, figures.qps, figures.qps_high) == (118.0, 120.0, 122.0)


def test_a_fresh_start_that_breaks_a_limit_refutes_the_candidate(made: StudyPlan) -> None:
    found = record(3, OTHER, (level(130.0),))
    refuted = record(8, OTHER, (level(120.0, preemptions=2),), role=Role.CONFIRM)
    assert confirm.figures(made, [found, refuted], OTHER) is None
    assert confirm.finalists(made, [found, refuted]) == []


def test_the_default_is_shown_beside_the_winner_even_when_it_broke_the_limits(made: StudyPlan) -> None:
    broken = record(0, DEFAULT, (level(50.0, p99_ms=900),), role=Role.DEFAULT)
    assert confirm.figures(made, [broken], DEFAULT) is None
    shown = confirm.seen([broken], DEFAULT)
    assert shown is not None and shown.qps == 50.0


@pytest.mark.parametrize(
    ("outcome", "why"),
    [
        (TrialOutcome.INFEASIBLE, Lack.BREAKS_LIMITS),
        (TrialOutcome.REFUSED, Lack.DOES_NOT_START),
        (TrialOutcome.DIED, Lack.DIES_UNDER_LOAD),
        (TrialOutcome.INVALID, Lack.NOT_MEASURED),
        (TrialOutcome.UNDECIDED, Lack.NOT_MEASURED),
        (TrialOutcome.INFRASTRUCTURE, Lack.NOT_MEASURED),
    ],
)
def test_a_default_without_figures_says_what_its_start_came_to(outcome: TrialOutcome, why: Lack) -> None:
    assert confirm.lack([record(0, DEFAULT, role=Role.DEFAULT, outcome=outcome)], DEFAULT) is why


def test_a_candidate_with_figures_or_without_a_start_lacks_nothing() -> None:
    faulty = record(0, DEFAULT, role=Role.DEFAULT, outcome=TrialOutcome.INFRASTRUCTURE)
    measured = record(1, DEFAULT, (level(50.0),), role=Role.DEFAULT)
    assert confirm.lack([faulty, measured], DEFAULT) is None
    assert confirm.lack([faulty, measured], OTHER) is None


def test_a_fresh_start_that_fails_says_why_though_others_were_well(made: StudyPlan) -> None:
    well = [record(n, OTHER, (level(100.0),), role=role) for n, role in ((3, Role.SEARCH), (9, Role.CONFIRM))]
    broke = record(8, OTHER, (level(120.0, preemptions=2),), role=Role.CONFIRM)
    assert confirm.figures(made, [*well, broke], OTHER) is None
    assert confirm.lack([*well, broke], OTHER) is Lack.BREAKS_LIMITS


def test_preemptions_that_were_not_observed_stay_unobserved(made: StudyPlan) -> None:
    runs = [record(0, OTHER, (level(10.0),)), record(1, OTHER, (level(10.0),))]
    object.__setattr__(runs[1].levels[0].measurement.server, "preemptions", None)
    figures = confirm.figures(made, runs, OTHER)
    assert figures is not None and figures.preemptions is None


def test_an_invalid_fresh_start_neither_confirms_nor_refutes(made: StudyPlan) -> None:
    found = record(3, OTHER, (level(130.0),))
    faulty = record(8, OTHER, (level(20.0, p99_ms=900),), role=Role.CONFIRM, outcome=TrialOutcome.INVALID)
    assert confirm.finalists(made, [found, faulty]) == [found]
    assert confirm.fresh_runs(made, [found, faulty], OTHER) == []


def claimed(trial: int, rate: float | None, p99_ms: float = 300.0) -> TrialRecord:
    shown = record(trial, OTHER, (open_level(rate or 9.0, p99_ms),), role=Role.CONFIRM)
    outcome = TrialOutcome.INFEASIBLE if rate is None else TrialOutcome.FEASIBLE
    return replace(shown, best=None if rate is None else 0, outcome=outcome, claim=Claim(rate, (), 360.0))


def test_the_promise_is_the_lowest_rate_that_a_fresh_start_held(made: StudyPlan) -> None:
    figures = confirm.figures(made, [claimed(8, 9.5, p99_ms=420), claimed(9, 9.2)], OTHER)
    assert figures is not None
    assert (figures.qps, figures.qps_low, figures.qps_high, figures.p99_ttft_ms) == (9.2, 9.2, 9.5, 420)


def test_a_claim_that_held_no_rate_refutes_the_candidate(made: StudyPlan) -> None:
    assert confirm.figures(made, [claimed(8, 9.5), claimed(9, None)], OTHER) is None


def test_a_default_that_kept_no_rate_is_shown_at_the_lowest_one_and_not_in_closed_loop() -> None:
    levels = (level(13.0, p99_ms=4000), open_level(10.0, p99_ms=2000), open_level(5.0, p99_ms=800))
    shown = confirm.seen([record(0, DEFAULT, levels, role=Role.DEFAULT)], DEFAULT)
    assert shown is not None and (shown.qps, shown.level) == (5.0, "5.00 requests/s")
