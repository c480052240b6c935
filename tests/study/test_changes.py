"""A study of that name with other options: what extends it is taken over, the rest is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.study.builders import plan
from tests.study.study_run import StudyRun
from tuner.bench.capacity_search import SearchSettings
from tuner.launch import Door
from tuner.layout import Layout, PlacedLayout
from tuner.load.arrivals import chosen_arrivals
from tuner.load.workload import with_body, workload
from tuner.placement import GpuGroup
from tuner.slo import parse_slo
from tuner.space.parameter import Kind, Parameter
from tuner.space.space import Space
from tuner.study.changes import extended, refused
from tuner.study.plan import Ladder, OpenSearch, StudyPlan

LOADED = Ladder((10, 30), 60.0, 15.0)
OPEN = OpenSearch(15.0, SearchSettings())


def before(tmp_path: Path, **changes: Any) -> StudyPlan:
    whole: dict[str, Any] = {"starts": 60, "confirm_starts": 4, "time_budget_s": 28800.0, "patience": 20}
    return replace(plan(tmp_path / "s"), **{**whole, "load": LOADED, "start_limit_s": 1800.0, **changes})


@pytest.mark.parametrize(
    ("option", "field", "longer", "shorter"),
    [
        ("trials", "starts", 61, 59),
        ("confirm", "confirm_starts", 6, 0),
        ("time_budget", "time_budget_s", 36000.0, 60.0),
        ("time_budget", "time_budget_s", None, 28799.0),
        ("patience", "patience", 30, 5),
        ("patience", "patience", None, 1),
        ("start_limit_seconds", "start_limit_s", 3600.0, 900.0),
    ],
)
def test_more_is_taken_over_and_less_is_refused_by_name(
    option: str, field: str, longer: Any, shorter: Any, tmp_path: Path
) -> None:
    old = before(tmp_path)
    more, less = replace(old, **{field: longer}), replace(old, **{field: shorter})
    assert refused(old, more, {option}) == []
    found, changes = extended(old, more, {option})
    assert found == more
    assert [change.name for change in changes] == [f"--{option.replace('_', '-')}"]
    (words,) = refused(old, less, {option})
    assert words.startswith(f"--{option.replace('_', '-')} was ")
    assert extended(old, less, {option}) == (old, [])
    assert extended(old, more, {"model"}) == (old, []) and refused(old, less, {"model"}) == []


@pytest.mark.parametrize(
    ("option", "old", "new"),
    [
        ("levels", {"load": LOADED}, {"load": replace(LOADED, levels=(10, 30, 64))}),
        ("level_seconds", {"load": LOADED}, {"load": replace(LOADED, level_s=30.0)}),
        ("warm_up_seconds", {"load": LOADED}, {"load": replace(LOADED, warm_up_s=1.0)}),
        ("warm_up_seconds", {"load": OPEN}, {"load": replace(OPEN, warm_up_s=1.0)}),
        ("probe_seconds", {"load": OPEN}, {"load": replace(OPEN, settings=SearchSettings(probe_s=10.0))}),
        (
            "burstiness",
            {"load": OPEN},
            {"load": replace(OPEN, arrivals=chosen_arrivals(0.3, workload("chat")))},
        ),
        ("seed", {"seed": 0}, {"seed": 1}),
        ("door", {"doors": (Door.NGINX,)}, {"doors": (Door.VLLM,)}),
        ("door", {"doors": (Door.NGINX,)}, {"doors": (Door.NGINX,), "compares_doors": True}),
        ("gpus", {"units": (0, 1)}, {"units": (0, 1, 2)}),
        ("workers", {"units": (0, 1)}, {"units": (0,)}),
        (
            "layouts",
            {"layouts": (PlacedLayout(Layout(), (GpuGroup(),)),)},
            {"layouts": (PlacedLayout(Layout(2), (GpuGroup(), GpuGroup())),)},
        ),
        ("storage", {"storage": "sqlite:////a/study.db"}, {"storage": "sqlite:////b/other.db"}),
    ],
)
def test_an_option_that_would_make_other_figures_is_refused_by_name(
    option: str, old: dict[str, Any], new: dict[str, Any], tmp_path: Path
) -> None:
    planned, asked = before(tmp_path, **old), before(tmp_path, **new)
    (words,) = refused(planned, asked, {option})
    assert words.startswith(f"--{option.replace('_', '-')} was ")
    assert refused(planned, asked, {"trials"}) == []
    assert any(words == found for found in refused(planned, asked, None))


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("workload", {"workload": workload("rag")}),
        ("content of the workload", {"workload": replace(workload("chat"), file_sha256="ab12")}),
        ("end of answers", {"workload": with_body(workload("chat"), natural_stops=True, extra_body=None)}),
        ("extra body", {"workload": with_body(workload("chat"), natural_stops=False, extra_body='{"a": 1}')}),
        ("limits", {"slos": (parse_slo("p99 ttft <= 1s"),)}),
        ("load", {"load": OPEN}),
        ("the space", {"space": Space("mine", ())}),
    ],
)
def test_what_is_measured_is_compared_with_the_defaults_too(name: str, new: dict[str, Any], tmp_path: Path) -> None:
    old = before(tmp_path, workload=workload("chat"))
    (words,) = refused(old, replace(old, **new), set())
    assert words.startswith(name)


def test_a_finished_study_with_more_trials_goes_on(tmp_path: Path) -> None:
    short = StudyRun(plan(tmp_path / "s", starts=6))
    assert short.loop.run().complete
    longer, _ = extended(short.loop.plan, replace(short.loop.plan, starts=9), {"trials"})
    result = StudyRun(longer).loop.run()
    assert result.complete
    assert sum(record.role.searches for record in short.store.records()) == 9


@pytest.mark.parametrize("most", [0.93, 0.98])
def test_a_preset_whose_ranges_differ_is_the_same_space_and_the_studys_own_is_searched(
    most: float, tmp_path: Path
) -> None:
    old = before(tmp_path)
    new = replace(
        old, space=replace(old.space, parameters=(Parameter("gpu-memory-utilization", Kind.FLOAT, 0.8, most),))
    )
    assert refused(old, new, None) == []
    assert extended(old, new, None) == (old, [])
    in_a_file = [replace(p, space=replace(p.space, file="/own.yaml")) for p in (old, new)]
    assert refused(in_a_file[0], in_a_file[1], None) == ["the space changed"]
