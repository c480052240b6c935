from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.study.builders import layouts_plan, level, plan, record, with_start
from tests.study.open_server import open_level, open_plan
from tuner.bench.level import Level
from tuner.candidate import Candidate
from tuner.launch import Door
from tuner.layout import Layout, PlacedLayout
from tuner.load.arrivals import Arrivals
from tuner.placement import GpuGroup
from tuner.slo import parse_slo
from tuner.study import confirm
from tuner.study.conclusion import Conclusion, ConclusionKey, Servers, conclude
from tuner.study.doors import doors
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import Lack, StudyResult
from tuner.study.sentence import sentence

OTHER = Candidate.of({"max-num-seqs": 64})


def concluded(made: StudyPlan, default: TrialOutcome, found: Level) -> Conclusion:
    """A study of two starts: a default that came to `default`, and a candidate that showed `found`."""
    records = [record(0, made.baseline, role=Role.DEFAULT, outcome=default), record(1, OTHER, (found,))]
    return concluded_of(made, records)


def concluded_of(made: StudyPlan, records: Sequence[TrialRecord]) -> Conclusion:
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
        doors=doors(made, records, winner.candidate) if winner else (),
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


ON_FOUR = "on 4 GPUs as 4x1 through nginx"


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (ConclusionKey.KEEP_DEFAULT, f"Keep the default: nothing beat its 12.0 req/s {ON_FOUR}, confirmed"),
        (ConclusionKey.GAINS, f"+20 % QPS over the default {ON_FOUR} at P99 TTFT 300 ms"),
        (ConclusionKey.ONLY_WINNER, f"12.0 req/s {ON_FOUR} where the default does not start"),
        (ConclusionKey.SUSTAINS, f"Sustains 12.0 QPS {ON_FOUR}, ± 3 % (Poisson), +20 % over the default at"),
        (
            ConclusionKey.SUSTAINS_ONLY,
            f"Sustains 12.0 QPS {ON_FOUR}, ± 3 % (Poisson), where the default does not start",
        ),
    ],
)
def test_the_figure_of_several_gpus_says_layout_and_door(key: ConclusionKey, said: str) -> None:
    servers = Servers(Layout(4), has_gpus=True, door=Door.NGINX)
    made = Conclusion(key, LIMITS, 16, 3, 3600.0, 12.0, 10.0, 300.0, 2, 0.03, Arrivals(), Lack.DOES_NOT_START,
                      servers=servers)  # fmt: skip
    assert sentence(made).startswith(said)


def test_a_study_of_several_gpus_concludes_with_layout_and_the_door_that_confirmed_it(tmp_path: Path) -> None:
    made = layouts_plan(tmp_path / "s", (Layout(2), Layout(1, 2)), gpus=2)
    winner = Candidate.of({**Layout(2).flags, "max-num-seqs": 64})
    found = [record(0, made.baseline, (level(10.0),), role=Role.DEFAULT), record(1, winner, (level(9.0),), replicas=2)]
    run = with_start(record(2, winner, (level(17.0),), role=Role.CONFIRM), door=Door.VLLM)
    beside = record(3, made.baseline, (level(10.0),), role=Role.CONFIRM)
    assert concluded_of(made, found).servers == Servers(Layout(2), has_gpus=True)
    said = sentence(concluded_of(made, [*found, run, beside]))
    assert "on 2 GPUs as 2x1 through vLLM's data parallelism" in said
    workers = replace(made, layouts=(PlacedLayout(Layout(2), (GpuGroup(workers=(0,)), GpuGroup(workers=(1,)))),))
    assert "on 2 CPU workers as 2x1" in sentence(concluded_of(workers, found))


def test_a_study_of_one_gpu_says_nothing_of_layouts(tmp_path: Path) -> None:
    made = plan(tmp_path / "s")
    assert concluded_of(made, [record(0, made.baseline, (level(10.0),), role=Role.DEFAULT)]).servers is None


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
