"""Length of a request that the winner accepts, on the page and at the end of a search."""

from __future__ import annotations

from dataclasses import replace

from tuner.cli.console import result_lines
from tuner.report import summary
from tuner.report.page import report
from tuner.report.tables import StudyFiles
from tuner.report.translations import Language, Words
from tuner.space.parameter import Kind, Parameter
from tuner.study.record import TrialRecord
from tuner.study.request_length import LengthSource, RequestLength


def with_lengths(files: StudyFiles, *lengths: int) -> StudyFiles:
    """The same study with these lengths reported by its servers in turn, as if the space had searched the length."""

    def reported(record: TrialRecord, tokens: int) -> TrialRecord:
        facts = record.start.facts
        reported = None if facts is None else replace(facts, max_model_len=tokens)
        return replace(record, start=replace(record.start, facts=reported))

    searched = Parameter("max-model-len", Kind.INT, min(lengths), max(lengths))
    space = replace(files.plan.space, parameters=(*files.plan.parameters, searched))
    records = tuple(reported(r, lengths[i % len(lengths)]) for i, r in enumerate(files.records))
    return replace(files, plan=replace(files.plan, space=space), records=records)


def test_page_and_last_words_say_what_the_winner_accepts(files: StudyFiles) -> None:
    assert "accepts requests of up to 2,048 tokens (prompt + answer)" in report(files)
    assert "最长 2,048 个 token" in report(files, language="zh")
    assert files.result is not None
    lines = result_lines(files.result, files.records, files.plan.baseline, {}).splitlines()
    assert "accepts   requests of up to 2,048 tokens (prompt + answer)" in lines


def test_a_reported_length_counts_before_the_flag(files: StudyFiles) -> None:
    side = summary.side(with_lengths(files, 4096), files.winner)
    assert side is not None and side.accepts == 4096


def test_only_a_measured_cost_of_long_requests_is_shown(files: StudyFiles, words: Words) -> None:
    assert summary.length_rows(files, words) == []
    assert summary.length_rows(with_lengths(files, 4096), words) == []
    (row,) = summary.length_rows(with_lengths(files, 1024, 4096), words)
    assert "up to 4,096 tokens" in row.first


def test_a_length_that_is_only_the_workloads_is_cautioned_in_both_languages(files: StudyFiles) -> None:
    short = RequestLength(2048, LengthSource.NO_ROOM, model=40960)
    cautioned = replace(files, plan=replace(files.plan, length=short))
    for language in Language:
        words = Words(language)
        known = {row.what for row in summary.caution_rows(files, words)}
        (new,) = (row for row in summary.caution_rows(cautioned, words) if row.what not in known)
        assert "2,048" in new.what and "--max-model-len" in new.next_step
