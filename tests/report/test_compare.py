"""Two studies side by side."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.report.studies import ENVIRONMENT, build_study
from tests.report.surface import PLAN
from tests.report.test_page import Page
from tuner.errors import UsageError
from tuner.report.compare import compare, difference_rows
from tuner.report.tables import read_study
from tuner.report.translations import Words
from tuner.slo import Metric, Slo


def test_equal_conditions_are_said_to_be_equal(tmp_path: Path) -> None:
    first = build_study(tmp_path / "a", telemetry=False)
    second = build_study(tmp_path / "b", telemetry=False, seed=3, plan=dataclasses.replace(PLAN, study="again"))
    page = Page(compare(first.folder, second.folder))
    assert "the figures may be compared" in page.text
    assert page.figures == ["curve-qps", "curve-ttft"]
    for study in (first, second):
        assert study.result is not None and study.result.sentence in page.text


def test_every_condition_that_differs_is_named(tmp_path: Path, words: Words) -> None:
    first = build_study(tmp_path / "a", telemetry=False)
    environment = dataclasses.replace(ENVIRONMENT, vllm_version="0.33.0", host="other")
    plan = dataclasses.replace(PLAN, slos=(Slo(Metric.TTFT, 0.99, 600.0),))
    second = build_study(tmp_path / "b", telemetry=False, plan=plan, environment=environment)
    rows = difference_rows(read_study(first.folder), read_study(second.folder), words)
    assert {(row.label, row.second) for row in rows} == {
        ("vLLM", "0.33.0"),
        ("host", "other"),
        ("limits", "p99 ttft <= 600ms"),
    }
    page = Page(compare(first.folder, second.folder, language="zh"))
    assert "0.33.0" in page.text


def test_a_study_without_a_winner_can_be_compared(tmp_path: Path) -> None:
    first = build_study(tmp_path / "a", telemetry=False)
    empty = build_study(tmp_path / "b", trials=0)
    assert "Nothing to draw yet." in Page(compare(first.folder, empty.folder)).text
    with pytest.raises(UsageError):
        compare(first.folder, tmp_path / "nowhere")
