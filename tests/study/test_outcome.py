from __future__ import annotations

import pytest

from tests.study.builders import MACHINE, REFUSAL, level, record
from tuner.candidate import Candidate
from tuner.study.outcome import Told, told
from tuner.study.record import TrialOutcome

ONE = Candidate.of({"max-num-seqs": 8})


def test_a_refused_start_breaks_the_first_constraint_and_else_looks_like_its_neighbour() -> None:
    neighbour = Told(42.0, (-1.0, -0.5, -0.3), imputed=False)
    answer = told(record(0, ONE, outcome=TrialOutcome.REFUSED, cause=REFUSAL), neighbour)
    assert answer == Told(42.0, (1.0, -0.5, -0.3), imputed=True)


@pytest.mark.parametrize("outcome", [TrialOutcome.INFRASTRUCTURE, TrialOutcome.INTERRUPTED, TrialOutcome.INVALID])
def test_what_is_not_the_candidates_fault_teaches_nothing(outcome: TrialOutcome) -> None:
    assert told(record(0, ONE, outcome=outcome, cause=MACHINE), Told(1.0, (-1, 0, 0), imputed=False)) is None


def test_a_feasible_trial_keeps_every_constraint() -> None:
    answer = told(record(0, ONE, (level(10), level(20), level(30, p99_ms=900))), None)
    assert answer is not None
    assert answer.value == 20
    assert all(c <= 0 for c in answer.constraints)


def test_a_preempted_trial_breaks_only_the_preemption_constraint() -> None:
    answer = told(record(0, ONE, (level(10, preemptions=3),)), None)
    assert answer is not None
    start, slo, preemption = answer.constraints
    assert start < 0 and slo < 0 and preemption > 0


def test_preemptions_that_nobody_observed_are_not_none_seen() -> None:
    answer = told(record(0, ONE, (level(10, preemptions=None),)), None)
    assert answer is not None
    assert answer.constraints[2] > 0


def test_a_trial_that_failed_requests_never_passes_for_feasible() -> None:
    shown = level(10)
    broken = record(0, ONE, (shown,), outcome=TrialOutcome.INFEASIBLE)
    object.__setattr__(broken, "best", None)
    answer = told(broken, None)
    assert answer is not None
    assert any(c > 0 for c in answer.constraints)
