"""A recheck: the winner of a finished study and the default, without a search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.study.builders import REFUSAL, layouts_plan, level, plan, trial_of
from tests.study.study_run import StudyRun
from tuner.candidate import Candidate
from tuner.layout import Layout
from tuner.report.phrases import chinese_conclusion
from tuner.report.translations import Language, Words
from tuner.study.assignment import Assignment
from tuner.study.conclusion import conclude
from tuner.study.earlier import Rechecked
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import Decision

WINNER = Candidate.of({"max-num-seqs": 128, "max-num-batched-tokens": 4096, "gpu-memory-utilization": 0.9})


def recheck_plan(before: StudyPlan, candidate: Candidate = WINNER) -> StudyPlan:
    then = Rechecked("chat-1121", candidate, 99.0, (0.31, 0.35, 0.39), "0.32.0", "0.1.0")
    return replace(before, rechecks=then, starts=2, confirm_starts=4, vllm_version="0.33.0")


def test_a_recheck_compares_winner_and_default_in_pairs_and_searches_nothing(tmp_path: Path) -> None:
    run = StudyRun(recheck_plan(plan(tmp_path / "s")), faster_than_the_default)
    result = run.loop.run()
    made = [(r.role, r.candidate == WINNER) for r in run.loop.records]
    assert made[:2] == [(Role.DEFAULT, False), (Role.EARLIER, True)]
    assert made[2:] == [(Role.CONFIRM, is_winner) for is_winner in (True, False, False, True)]
    assert result.decision is Decision.WINNER
    assert result.gain is not None and result.gain.middle == pytest.approx(100 / 68 - 1, abs=0.01)
    assert result.sentence.startswith("Still +47 % ± ")
    assert " over the default with vLLM 0.33.0; in chat-1121 it was +35 % ± 4 % with 0.32.0. " in result.sentence


def faster_than_the_default(assignment: Assignment) -> TrialRecord:
    return trial_of(assignment, (level(100.0 if assignment.candidate == WINNER else 68.0),))


def slower_than_the_default(assignment: Assignment) -> TrialRecord:
    return trial_of(assignment, (level(60.0 if assignment.candidate == WINNER else 70.0),))


def test_a_winner_that_the_default_beats_is_confirmed_all_the_same_before_it_is_one_no_longer(tmp_path: Path) -> None:
    run = StudyRun(recheck_plan(plan(tmp_path / "s")), slower_than_the_default)
    result = run.loop.run()
    assert sum(r.role is Role.CONFIRM and r.candidate == WINNER for r in run.loop.records) == 2
    assert result.decision is Decision.KEEP_DEFAULT
    assert result.winner is not None and result.winner.candidate == run.loop.plan.baseline
    assert result.sentence.startswith("No longer the winner with vLLM 0.33.0; in chat-1121 it was +35 % ± 4 %")
    assert "Keep the default: the best gain over its 70.0 req/s is -14 %" in result.sentence


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (REFUSAL, "No longer the winner with vLLM 0.33.0 (does not start); in chat-1121"),
        ((level(90.0, p99_ms=900.0),), "No longer the winner with vLLM 0.33.0 (breaks the limits); in chat-1121"),
    ],
)
def test_a_winner_without_figures_today_is_one_no_longer_and_the_default_is_confirmed_alone(
    found: object, says: str, tmp_path: Path
) -> None:
    def today(assignment: Assignment) -> TrialRecord:
        return trial_of(assignment, found if assignment.candidate == WINNER else (level(70.0),))  # type: ignore[arg-type]

    run = StudyRun(recheck_plan(plan(tmp_path / "s")), today)
    result = run.loop.run()
    assert result.decision is Decision.KEEP_DEFAULT
    assert result.sentence.startswith(says)
    confirmed = {r.candidate for r in run.loop.records if r.role is Role.CONFIRM}
    assert confirmed == {run.loop.plan.baseline}


def test_a_winner_that_no_start_could_measure_is_not_said_to_be_one_no_longer(tmp_path: Path) -> None:
    def today(assignment: Assignment) -> TrialRecord:
        made = trial_of(assignment, (level(70.0),))
        is_winner = assignment.candidate == WINNER
        return replace(made, outcome=TrialOutcome.INVALID, best=None) if is_winner else made

    result = StudyRun(recheck_plan(plan(tmp_path / "s")), today).loop.run()
    assert result.sentence.startswith("Not known if it still is the winner with vLLM 0.33.0")


@pytest.mark.parametrize("kept", range(7))
def test_a_recheck_that_was_cut_after_any_trial_goes_on_to_the_same_end(kept: int, tmp_path: Path) -> None:
    whole = StudyRun(recheck_plan(plan(tmp_path / "whole")), faster_than_the_default)
    whole.loop.run()
    cut = StudyRun(recheck_plan(plan(tmp_path / "cut")), faster_than_the_default).cut(kept)
    first = cut.store.result()
    assert first.complete is (kept == 6)
    assert kept == 6 or first.sentence.startswith("Recheck under way with vLLM 0.33.0")
    again = StudyRun(cut.loop.plan, faster_than_the_default)
    result = again.loop.run()
    counted = [(r.role, r.candidate) for r in again.loop.records if r.counts]
    assert counted == [(r.role, r.candidate) for r in whole.loop.records]
    assert result.complete and result.decision is Decision.WINNER


def test_of_several_layouts_only_those_of_winner_and_default_are_started(tmp_path: Path) -> None:
    layouts = (Layout(4, 1), Layout(2, 2), Layout(1, 4))
    winner = Candidate.of({**WINNER.as_dict(), **layouts[1].flags})
    run = StudyRun(recheck_plan(layouts_plan(tmp_path / "s", layouts), winner))
    result = run.loop.run()
    assert {r.candidate for r in run.loop.records} == {winner, run.loop.plan.baseline}
    assert result.winner is not None and result.winner.candidate == winner


def test_the_answer_is_said_in_chinese_too(tmp_path: Path) -> None:
    for number, today in enumerate((faster_than_the_default, slower_than_the_default)):
        run = StudyRun(recheck_plan(plan(tmp_path / f"s{number}")), today)
        result = run.loop.run()
        said = chinese_conclusion(conclude(run.loop.plan, result, run.loop.records), Words(Language.CHINESE))
        begins = ("在 vLLM 0.33.0 上仍比默认配置 +47 % ± ", "在 vLLM 0.33.0 上不再是最优配置；")[number]
        assert said.startswith(begins)
        assert "在研究 chat-1121 中为 +35 % ± 4 %（vLLM 0.32.0）。" in said
