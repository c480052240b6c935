from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.load.builders import HOST, level, request
from tests.load.builders import telemetry as telemetry_of
from tuner.candidate import Candidate
from tuner.cli.console import result_lines
from tuner.cli.status import last_level, load_times_s
from tuner.load.requests_log import RequestLog
from tuner.measurement import LoadKind
from tuner.study.learnt import FlagLimit, LearntRule
from tuner.study.result import Decision, StudyResult
from tuner.telemetry.prometheus import Scrape
from tuner.telemetry.sampler import Row, TelemetryLog


def test_the_last_level_of_a_running_trial_is_the_one_that_came_last_and_not_the_largest(tmp_path: Path) -> None:
    requests, telemetry = RequestLog(tmp_path / "requests.parquet"), TelemetryLog(tmp_path / "telemetry.parquet")
    for start_s, kind, load, kv in ((0, LoadKind.CLOSED, 320, 0.9), (10, LoadKind.OPEN, 31.4, 0.3)):
        samples = level([request(i, due_ms=1000 * start_s + 100 * i) for i in range(100)])
        requests.add(load, samples, kind)
        at_ns = int((start_s + 5) * 1e9)
        telemetry.add(load, telemetry_of(rows=[Row(at_ns, Scrape(at_ns, kv_usage=kv), (), HOST)]))
    found = last_level(tmp_path)
    assert found is not None
    assert (found.load, found.kv_usage_peak) == ("31.4 requests/s", 0.3)
    assert found.qps == pytest.approx(10, rel=0.05)
    assert found.p99_ttft_ms == 100


def test_a_trial_that_measured_nothing_yet_has_no_last_level(tmp_path: Path) -> None:
    assert last_level(tmp_path) is None
    assert load_times_s(tmp_path, 0) is None


def test_the_load_so_far_and_the_time_at_the_last_rate_are_read_off_the_requests(tmp_path: Path) -> None:
    requests = RequestLog(tmp_path / "requests.parquet")
    for start_s, load in ((5, 12.7), (15, 12.5), (25, 12.5)):
        requests.add(load, level([request(i, due_ms=1000 * start_s + 100 * i) for i in range(100)]), LoadKind.OPEN)
    assert load_times_s(tmp_path, round(40e9)) == (35.0, 25.0)
    assert load_times_s(tmp_path, round(1e9)) == (0.0, 0.0), "another machine's clock"


def test_the_last_words_of_a_search_say_what_was_learnt_and_avoided() -> None:
    learnt = (LearntRule(4, "oom", (FlagLimit("max-num-seqs", ">=", 512),), saved=3), LearntRule(9, "oom", ()))
    result = StudyResult(
        "s", Decision.KEEP_DEFAULT, None, None, None, 12, 2, 60.0, True, "Keep the default.", "2026-11-25", learnt
    )
    lines = result_lines(result, (), Candidate(()), {}).splitlines()
    assert "learnt    what is not started any more; 3 starts saved so far" in lines
    assert "          3 × max-num-seqs ≥ 512 (oom, trial 0004)" in lines
    assert not [
        line
        for line in result_lines(replace(result, learnt=()), (), Candidate(()), {}).splitlines()
        if "learnt" in line
    ]
