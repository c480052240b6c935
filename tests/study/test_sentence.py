from __future__ import annotations

from pathlib import Path

import pytest

from tests.study.builders import level, plan, record
from tests.study.open_server import open_level, open_plan
from tuner.bench.level import Level
from tuner.candidate import Candidate
from tuner.load.arrivals import Arrivals
from tuner.slo import parse_slo
from tuner.study import confirm
from tuner.study.conclusion import Conclusion, ConclusionKey, conclude
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome
from tuner.study.result import Lack, StudyResult
from tuner.study.sentence import sentence

OTHER = Candidate.of({"max-num-seqs": 64})


def concluded(made: StudyPlan, default: TrialOutcome, found: Level) -> Conclusion:
    """A study of two starts: a default that came to `default`, and a candidate that showed `found`."""
    records = [record(0, made.baseline, role=Role.DEFAULT, outcome=default), record(1, OTHER, (found,))]
    winner, beside = confirm.compared(made, records)
    result = StudyResult(
        study=made.study,
        decision=confirm.decide(winner, beside),
        winner=winner,
        default=beside,
        default_seen=None,
        starts=len(records),
        refused=0,
        elapsed_s=3600.0,
        complete=True,
        sentence="",
        updated_at="2026-11-21T00:00:00+00:00",
    )
    return conclude(made, result, records)


@pytest.mark.parametrize(
    ("outcome", "lack"),
    [
        (TrialOutcome.INFEASIBLE, Lack.BREAKS_LIMITS),
        (TrialOutcome.REFUSED, Lack.DOES_NOT_START),
        (TrialOutcome.DIED, Lack.DIES_UNDER_LOAD),
        (TrialOutcome.INVALID, Lack.NOT_MEASURED),
        (TrialOutcome.INTERRUPTED, Lack.NOT_MEASURED),
    ],
)
def test_only_a_default_that_was_measured_is_said_to_break_the_limits(
    outcome: TrialOutcome, lack: Lack, tmp_path: Path
) -> None:
    closed = concluded(plan(tmp_path / "s"), outcome, level(100.0))
    assert (closed.key, closed.lack, closed.qps) == (ConclusionKey.ONLY_WINNER, lack, 100.0)
    opened = concluded(open_plan(tmp_path / "o"), outcome, open_level(10.0))
    assert (opened.key, opened.lack, opened.qps) == (ConclusionKey.SUSTAINS_ONLY, lack, 10.0)


LIMITS = (parse_slo("p99 ttft <= 500ms"),)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (ConclusionKey.NOTHING_FEASIBLE, "No candidate kept p99 ttft <= 500ms without preemption"),
        (
            ConclusionKey.KEEP_DEFAULT,
            "Keep the default: nothing beat its 12.0 req/s, confirmed in 2 fresh starts, by more than the noise",
        ),
        (
            ConclusionKey.GAINS,
            "+20 % QPS over the default at P99 TTFT 300 ms (p99 ttft <= 500ms), no preemption, "
            "confirmed in 2 fresh starts",
        ),
        (
            ConclusionKey.ONLY_WINNER,
            "12.0 req/s where the default does not start at P99 TTFT 300 ms (p99 ttft <= 500ms), no preemption, "
            "confirmed in 2 fresh starts",
        ),
        (
            ConclusionKey.SUSTAINS,
            "Sustains 12.0 QPS, ± 3 % (Poisson), +20 % over the default at P99 TTFT 300 ms (p99 ttft <= 500ms), "
            "no preemption, confirmed in 2 fresh starts",
        ),
        (
            ConclusionKey.SUSTAINS_ONLY,
            "Sustains 12.0 QPS, ± 3 % (Poisson), where the default does not start at P99 TTFT 300 ms "
            "(p99 ttft <= 500ms), no preemption, confirmed in 2 fresh starts",
        ),
    ],
)
def test_each_conclusion_has_its_english_sentence(key: ConclusionKey, said: str) -> None:
    made = Conclusion(key, LIMITS, 16, 3, 3600.0, 12.0, 10.0, 300.0, 2, 0.03, Arrivals(), Lack.DOES_NOT_START)
    assert sentence(made) == f"{said}; 16 starts, 1 h, 3 refused."


def test_an_unfinished_study_does_not_speak_of_an_end() -> None:
    begun = Conclusion(ConclusionKey.KEEP_DEFAULT, LIMITS, 1, 0, 60.0, 12.0, complete=False)
    said = "The default leads so far: nothing beat its 12.0 req/s by more than the noise; 1 starts, 1 min, 0 refused."
    assert sentence(begun) == said
    nothing = Conclusion(ConclusionKey.NOTHING_FEASIBLE, LIMITS, 1, 0, 60.0, complete=False)
    assert sentence(nothing).startswith("No candidate has yet kept p99 ttft <= 500ms without preemption")


def test_a_winner_without_a_confirmation_run_is_said_to_be_unconfirmed() -> None:
    made = Conclusion(ConclusionKey.SUSTAINS, LIMITS, 16, 3, 3600.0, 12.0, 10.0, 300.0, arrivals=Arrivals())
    assert "Sustains 12.0 QPS (Poisson), +20 %" in sentence(made)
    assert "not confirmed by a fresh start yet" in sentence(made)
