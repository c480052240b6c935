from __future__ import annotations

from pathlib import Path

import pytest

from tests.study.builders import level, plan, record
from tests.study.open_server import open_level, open_plan
from tuner.candidate import Candidate
from tuner.study import confirm
from tuner.study.plan import StudyPlan
from tuner.study.record import Level, Role, TrialOutcome
from tuner.study.sentence import sentence

OTHER = Candidate.of({"max-num-seqs": 64})


def said(made: StudyPlan, default: TrialOutcome, found: Level) -> str:
    records = [
        record(0, made.baseline, role=Role.DEFAULT, outcome=default),
        record(1, OTHER, (found,)),
    ]
    winner, beside = confirm.compared(records, made.baseline, made.load.kind)
    return sentence(made, confirm.decide(winner, beside), winner, beside, records, 3600.0)


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        (TrialOutcome.INFEASIBLE, "where the default breaks the limits"),
        (TrialOutcome.REFUSED, "where the default does not start"),
        (TrialOutcome.DIED, "where the default dies under load"),
        (TrialOutcome.INVALID, "where the default could not be measured"),
        (TrialOutcome.INTERRUPTED, "where the default could not be measured"),
    ],
)
def test_only_a_default_that_was_measured_is_said_to_break_the_limits(
    outcome: TrialOutcome, words: str, tmp_path: Path
) -> None:
    assert said(plan(tmp_path / "s"), outcome, level(100.0)).startswith(f"100 req/s {words} at P99 TTFT 300 ms")
    in_open_loop = said(open_plan(tmp_path / "o"), outcome, open_level(10.0))
    assert in_open_loop.startswith(f"Sustains 10.0 QPS (Poisson), {words} at P99 TTFT 300 ms")
