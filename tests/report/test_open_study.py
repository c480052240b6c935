"""The page and the terminal on a study in open loop: rates beside the closed loop, and candidates left behind."""

from __future__ import annotations

import io
import re

import pytest

from tests.study.open_server import open_plan, open_trial
from tests.study.study_run import StudyRun
from tuner.cli.console import Console, outcome_line, plan_lines
from tuner.cli.folders import State
from tuner.cli.snapshot import Picture
from tuner.cli.status import picture_of
from tuner.report import bottleneck, summary
from tuner.report.conditions import environment_rows, repeat_command
from tuner.report.page import report
from tuner.report.phrases import remark
from tuner.report.tables import StudyFiles, best_so_far, level_rows, read_study, trial_rows
from tuner.report.translations import Language, Words
from tuner.study.events import LevelMeasured, TrialFinished
from tuner.study.record import TrialOutcome


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> StudyFiles:
    made = StudyRun(open_plan(tmp_path_factory.mktemp("open") / "s", starts=12), open_trial)
    made.loop.run()
    return read_study(made.store.folder)


def test_the_page_promises_a_rate_in_both_languages(files: StudyFiles) -> None:
    assert files.winner is not None
    promised = f"{files.winner.qps:.1f}"
    assert f"Sustains {promised} QPS, ± 3 % (Poisson), +" in report(files)
    assert f"可持续 {promised} QPS, ± 3 %（Poisson 到达），比默认配置 +" in report(files, language="zh")


def test_both_loads_stand_in_the_summary(files: StudyFiles, words: Words) -> None:
    sides = [summary.side(files, figures) for figures in (files.winner, files.default)]
    first, second = sides
    assert first is not None and second is not None
    rows = {row.label: row for row in summary.summary_rows(first, second, words)}
    assert first.saturation is not None and first.saturation > first.figures.qps
    assert rows["QPS"].first == f"{first.figures.qps:.1f} req/s"
    assert rows["QPS of a closed loop that keeps it full"].first == f"{first.saturation:.1f} req/s"


def test_a_candidate_left_behind_has_a_mark_of_its_own_and_no_figures(files: StudyFiles, words: Words) -> None:
    behind = [row for row in trial_rows(files) if row.outcome is TrialOutcome.BEHIND]
    assert behind
    for row in behind:
        assert not row.has_figures
        assert "best so far" in remark(row, words)
        assert words(f"outcome-{row.outcome}") == "behind the best"


def test_the_line_of_the_best_follows_the_estimates(files: StudyFiles) -> None:
    best = best_so_far(trial_rows(files))
    estimates = [r.qps for r in files.records if r.trial == best[-1].trial]
    assert [best[-1].qps] == estimates


def test_load_curves_hold_rates_alone_in_their_order(files: StudyFiles) -> None:
    assert files.winner is not None
    rows = level_rows(files, files.winner.candidate)
    for trial in {row.trial for row in rows}:
        rates = [row.level for row in rows if row.trial == trial]
        assert rates == sorted(rates) and 320 not in rates


def test_what_limits_the_winner_is_read_from_rates_and_not_from_the_closed_loop(files: StudyFiles) -> None:
    assert files.winner is not None
    levels = bottleneck.levels_of(files, files.winner.candidate)
    assert levels is not None
    assert {str(m.load).split()[1] for m in (levels.below, levels.at, levels.beyond) if m} == {"requests/s"}


def test_the_conditions_and_the_command_say_how_requests_came(files: StudyFiles) -> None:
    for language, says in ((Language.ENGLISH, "open loop, Poisson arrivals"), (Language.CHINESE, "开环，Poisson 到达")):
        assert any(says in row.text for row in environment_rows(files, Words(language)))
    assert "--probe-seconds" in repeat_command(files) and "--levels" not in repeat_command(files)


def test_a_line_of_the_log_says_rate_and_outcome(files: StudyFiles) -> None:
    out = io.StringIO()
    console = Console(out)
    for record in files.records:
        for level in record.levels:
            console.show(LevelMeasured(record.trial, record.start.group, level.measurement, level.verdict))
        console.show(TrialFinished(record, is_best=False))
    text = out.getvalue()
    assert " requests/s  " in text and "320 concurrent" in text
    assert "→ behind the best so far: " in text
    found = next(r for r in files.records if r.outcome is TrialOutcome.FEASIBLE)
    assert outcome_line(found).startswith(f"{found.qps:.1f} req/s estimated at ")
    held = next(r for r in files.records if r.claim is not None)
    assert outcome_line(held).startswith(f"{held.qps:.1f} req/s held at ")


def test_the_plan_says_what_is_offered_and_how_long_it_may_take(files: StudyFiles) -> None:
    lines = plan_lines(files.plan, "0.32.0").splitlines()
    (load,) = (line for line in lines if line.startswith("load"))
    assert re.fullmatch(r"load      open loop: Poisson arrivals, \d+ s a rate; claims 3 × 2 min or longer", load)
    assert any(line.startswith("starts    12 + 4 to confirm, at most about ") for line in lines)


def test_status_shows_an_open_loop_study(files: StudyFiles) -> None:
    picture = picture_of(files.folder)
    assert isinstance(picture, Picture) and picture.state is State.COMPLETE
    assert files.winner is not None and picture.best == files.winner
