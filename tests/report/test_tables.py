"""Records → rows: what the page shows is decided here, before anything is drawn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.report.studies import Study, build_study
from tuner.errors import UsageError
from tuner.report.phrases import remark
from tuner.report.refusals import refused_rows, tightest
from tuner.report.tables import (
    StudyFiles,
    best_so_far,
    level_rows,
    read_study,
    shown_level,
    trial_rows,
)
from tuner.report.translations import Words
from tuner.server.diagnosis import Bound
from tuner.study.record import Role, TrialOutcome


def test_a_study_is_read_whole(study: Study, files: StudyFiles) -> None:
    assert files.records == study.records
    # Its database is where the folder is.
    assert dataclasses.replace(files.plan, storage=study.plan.storage) == study.plan
    assert files.result == study.result
    assert files.environment == study.environment
    assert files.unread == ()


def test_a_torn_record_is_left_out_and_named(tmp_path: Path) -> None:
    folder = build_study(tmp_path, trials=5, telemetry=False).folder
    torn = folder / "trials" / "0002" / "record.json"
    torn.write_text(torn.read_text()[:200])
    (folder / "trials" / "0003" / "record.json").write_text('{"schema": 99}')
    (folder / "environment.json").unlink()
    found = read_study(folder)
    assert [r.trial for r in found.records] == [0, 1, 4]
    assert [u.file for u in found.unread] == [
        "environment.json",
        "trials/0002/record.json",
        "trials/0003/record.json",
    ]
    assert found.environment is None
    assert all(str(tmp_path) not in u.why for u in found.unread[1:])


def test_a_folder_without_a_plan_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no study"):
        read_study(tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(UsageError, match="plan cannot be read"):
        read_study(tmp_path)


def test_every_start_has_a_row_and_only_measured_ones_have_figures(files: StudyFiles, words: Words) -> None:
    rows = trial_rows(files)
    assert [row.trial for row in rows] == [r.trial for r in files.records]
    for row, record in zip(rows, files.records, strict=True):
        assert row.began_h <= row.ended_h
        assert row.has_figures == bool(record.levels)
        if record.outcome is TrialOutcome.REFUSED:
            assert (row.qps, row.p99_ttft_ms, row.preemptions, row.load) == (None, None, None, None)
            assert record.start.cause is not None and remark(row, words) == record.start.cause.explanation
        if record.best is not None:
            assert row.qps == record.qps
            assert remark(row, words) == ""


def test_an_infeasible_start_shows_the_level_closest_to_the_limits(files: StudyFiles) -> None:
    record = next(r for r in files.records if r.best is not None and len(r.levels) > 2)
    worse = dataclasses.replace(record, best=None, levels=record.levels[-2:])
    margins = [level.verdict.slo_margin for level in worse.levels]
    shown = shown_level(worse)
    assert shown is not None and shown.verdict.slo_margin == min(m for m in margins if m is not None)
    assert shown_level(dataclasses.replace(record, best=None, levels=())) is None


def test_best_so_far_only_rises_and_ignores_confirmations(files: StudyFiles) -> None:
    rows = trial_rows(files)
    best = best_so_far(rows)
    speeds = [row.qps for row in best]
    assert speeds == sorted(speeds)
    searched = [
        r.qps for r in rows if r.record.role is not Role.CONFIRM and r.outcome is TrialOutcome.FEASIBLE and r.qps
    ]
    assert speeds[-1] == max(searched)
    confirmations = {r.trial for r in rows if r.record.role is Role.CONFIRM}
    assert not confirmations & {row.trial for row in best}
    assert best_so_far([]) == []


def test_a_start_that_was_disturbed_on_purpose_counts_for_nothing(files: StudyFiles) -> None:
    best = max((r for r in files.records if r.qps is not None), key=lambda r: r.qps or 0.0)
    check = dataclasses.replace(best, trial=900, role=Role.CHECK)
    with_check = dataclasses.replace(files, records=(*(r for r in files.records if r is not best), check))
    assert 900 not in {row.trial for row in best_so_far(trial_rows(with_check))}
    assert 900 not in {row.trial for row in level_rows(with_check, best.candidate)}
    assert 900 in {row.trial for row in trial_rows(with_check)}


def test_level_rows_hold_every_level_of_every_start_of_a_candidate(files: StudyFiles) -> None:
    assert files.winner is not None
    rows = level_rows(files, files.winner.candidate)
    starts = files.starts_of(files.winner.candidate)
    assert len(rows) == sum(len(r.levels) for r in starts)
    assert {row.trial for row in rows} >= set(files.winner.trials)


def test_refusals_are_grouped_by_cause_most_frequent_first(files: StudyFiles) -> None:
    rows = refused_rows(files.records)
    counts = [len(row.trials) for row in rows]
    assert counts == sorted(counts, reverse=True)
    assert sum(counts) == sum(r.outcome is TrialOutcome.REFUSED for r in files.records)
    assert len({row.cause.kind for row in rows}) == len(rows) >= 2


def test_the_tightest_bound_of_each_direction_is_kept() -> None:
    bounds = [Bound("a", "<=", 5), Bound("a", "<=", 3), Bound("a", ">=", 1), Bound("a", ">=", 2), Bound("b", "<=", 9)]
    assert tightest(bounds) == (Bound("a", "<=", 3), Bound("a", ">=", 2), Bound("b", "<=", 9))


def test_the_quoted_start_is_one_behind_the_figures(files: StudyFiles) -> None:
    quoted = files.quoted(files.winner)
    assert quoted is not None and files.winner is not None
    assert quoted.trial in files.winner.trials
    assert files.quoted(None) is None
