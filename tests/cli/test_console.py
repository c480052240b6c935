from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.load.traffic_files import TOOL, USER, lines
from tests.report.studies import build_layouts_study
from tests.study.builders import layouts_plan
from tuner.cli.console import notice_line, plan_lines, result_lines
from tuner.layout import Layout
from tuner.load.workload import workload
from tuner.study.events import LayoutDropped
from tuner.study.result import LayoutStanding, WhyDropped


@pytest.mark.parametrize(
    ("why", "said"),
    [
        (WhyDropped.BEHIND, "best 21.0 req/s after 2 starts, 4x1 has 38.2 req/s"),
        (WhyDropped.BREAKS_LIMITS, "nothing kept the limits in 2 starts, and 4x1 sustains 38.2 req/s"),
        (WhyDropped.DOES_NOT_START, "2 starts refused, and 4x1 starts"),
    ],
)
def test_a_dropped_layout_is_a_line_with_the_trials_that_decided(why: WhyDropped, said: str) -> None:
    standing = LayoutStanding(
        Layout(1, 4),
        trials=(0, 2),
        best_qps=21.0,
        best_trial=2,
        dropped_by=(2, 5),
        why=why,
        leader=Layout(4, 1),
        leader_qps=38.2,
    )
    assert notice_line(LayoutDropped(standing)) == f"layout 1x4 is dropped: {said} (trials 0002, 0005)"


def test_the_result_of_a_study_of_layouts_lists_each_and_the_door(tmp_path: Path) -> None:
    study = build_layouts_study(tmp_path, telemetry=False)
    assert study.result is not None
    said = result_lines(study.result, study.records, study.plan.baseline, {}).splitlines()
    for found in study.result.layouts:
        (line,) = (each for each in said if each[10:].startswith(f"{found.layout!s:<6}  default "))
        assert line.endswith(f", {found.starts} starts" + ", dropped" * found.is_dropped)
    (door,) = study.result.doors
    (line,) = (each for each in said if each.startswith("door "))
    assert line.startswith(f"door      {door.door}: ") and line.endswith(", chosen")


@pytest.mark.parametrize(("starts", "cautioned"), [(5, True), (6, False)])
def test_a_plan_with_fewer_than_two_starts_a_layout_is_cautioned(tmp_path: Path, starts: int, cautioned: bool) -> None:
    said = plan_lines(layouts_plan(tmp_path / "s", starts=starts), "0.32.0")
    assert ("--trials 6 or more" in said) is cautioned


@pytest.mark.parametrize(
    ("given", "cautioned"),
    [
        ((), True),
        (("--enable-auto-tool-choice",), True),
        (("--tool-call-parser", "hermes"), True),
        (("--enable-auto-tool-choice", "--tool-call-parser=hermes"), False),
        (("--tool_call_parser", "hermes", "--enable_auto_tool_choice"), False),
    ],
)
def test_a_plan_with_tools_and_without_a_parser_is_cautioned(
    tmp_path: Path, given: tuple[str, ...], cautioned: bool
) -> None:
    plan = layouts_plan(tmp_path / "s", starts=6)
    rows = [{"messages": [USER], "tools": [TOOL]}, {"messages": [USER]}]
    recorded = workload(lines(tmp_path / "t.jsonl", *rows))
    plan = replace(plan, workload=recorded, base=replace(plan.base, extra=given))
    assert ("caution: vLLM refuses requests with tools (1 here)" in plan_lines(plan, "0.32.0")) is cautioned


def test_a_plan_without_tools_needs_no_parser(tmp_path: Path) -> None:
    recorded = workload(lines(tmp_path / "t.jsonl", {"messages": [USER]}))
    plan = replace(layouts_plan(tmp_path / "s", starts=6), workload=recorded)
    assert "with tools" not in plan_lines(plan, "0.32.0")
