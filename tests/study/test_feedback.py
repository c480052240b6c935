from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.study.builders import MACHINE, REFUSAL, level, record
from tests.study.open_server import open_level
from tuner.bench.capacity_search import Capacity, Ended, Incumbent
from tuner.candidate import Candidate
from tuner.study.feedback import Feedback, feedback_for
from tuner.study.record import TrialOutcome, TrialRecord

ONE = Candidate.of({"max-num-seqs": 8})


def test_a_refused_start_breaks_the_first_constraint_and_else_looks_like_its_neighbour() -> None:
    neighbour = Feedback(42.0, (-1.0, -0.5, -0.3), imputed=False)
    answer = feedback_for(record(0, ONE, outcome=TrialOutcome.REFUSED, cause=REFUSAL), neighbour)
    assert answer == Feedback(42.0, (1.0, -0.5, -0.3), imputed=True)


@pytest.mark.parametrize("outcome", [TrialOutcome.INFRASTRUCTURE, TrialOutcome.INTERRUPTED, TrialOutcome.INVALID])
def test_what_is_not_the_candidates_fault_teaches_nothing(outcome: TrialOutcome) -> None:
    assert (
        feedback_for(record(0, ONE, outcome=outcome, cause=MACHINE), Feedback(1.0, (-1, 0, 0), imputed=False)) is None
    )


def test_a_feasible_trial_keeps_every_constraint() -> None:
    answer = feedback_for(record(0, ONE, (level(10), level(20), level(30, p99_ms=900))), None)
    assert answer is not None
    assert answer.value == 20
    assert all(c <= 0 for c in answer.constraints)


def test_a_preempted_trial_breaks_only_the_preemption_constraint() -> None:
    answer = feedback_for(record(0, ONE, (level(10, preemptions=3),)), None)
    assert answer is not None
    start, slo, preemption = answer.constraints
    assert start < 0 and slo < 0 and preemption > 0


def test_preemptions_that_were_not_observed_are_not_none_seen() -> None:
    answer = feedback_for(record(0, ONE, (level(10, preemptions=None),)), None)
    assert answer is not None
    assert answer.constraints[2] > 0


def test_a_trial_that_failed_requests_never_passes_for_feasible() -> None:
    shown = level(10)
    broken = record(0, ONE, (shown,), outcome=TrialOutcome.INFEASIBLE)
    object.__setattr__(broken, "best", None)
    answer = feedback_for(broken, None)
    assert answer is not None
    assert any(c > 0 for c in answer.constraints)


BEST = Incumbent(10.0, 12.5)


def behind(saturation: float, lost_at: float | None, likely: float | None = None) -> TrialRecord:
    ended = Ended.HOPELESS if lost_at is None else Ended.RACE_LOST
    made = record(0, ONE, (level(saturation, p99_ms=4000),), outcome=TrialOutcome.BEHIND)
    capacity = Capacity(ended, None, None, lost_at, saturation, 30.0, likely=likely)
    return replace(made, capacity=capacity, incumbent=BEST)


@pytest.mark.parametrize(
    ("saturation", "lost_at", "likely", "value"),
    [
        (9.0, None, None, 7.2),
        (12.0, 10.2, None, 9.6),
        (14.0, 10.2, None, 9.9),
        (12.5, 9.8, None, 9.8),
        (12.5, 10.2, 9.1, 9.1),
        (9.0, 10.2, 9.8, 9.8),
    ],
)
def test_a_loser_of_a_race_is_reported_as_a_point_that_was_measured_and_is_not_as_good_as_the_best(
    saturation: float, lost_at: float | None, likely: float | None, value: float
) -> None:
    answer = feedback_for(behind(saturation, lost_at, likely), None)
    assert answer is not None
    assert answer.value == pytest.approx(value)
    assert all(c <= 0 for c in answer.constraints)
    assert not answer.imputed


def test_in_open_loop_the_estimate_is_reported_and_not_the_throughput_of_a_level() -> None:
    levels = (level(13.0, p99_ms=4000), open_level(9.8), open_level(10.3, p99_ms=700))
    made = replace(record(0, ONE, levels), best=1, capacity=Capacity(Ended.FOUND, 10.1, 9.8, 10.3, 13.0, 90.0))
    answer = feedback_for(made, None)
    assert answer is not None and answer.value == 10.1
    assert all(c <= 0 for c in answer.constraints)


def test_where_no_rate_kept_the_limits_the_lowest_one_is_reported() -> None:
    levels = (level(13.0, p99_ms=4000), open_level(10.0, p99_ms=2000), open_level(5.0, p99_ms=800))
    made = record(0, ONE, levels, outcome=TrialOutcome.INFEASIBLE)
    made = replace(made, capacity=Capacity(Ended.NEVER_PASSED, None, None, 5.0, 13.0, 90.0))
    answer = feedback_for(made, None)
    assert answer is not None and answer.value == 5.0
    assert answer.constraints[1] == pytest.approx(math.log(800 / 500))
