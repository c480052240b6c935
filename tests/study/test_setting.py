"""Values that a server really runs with: the values that argparse takes from the words that launch() writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.study.builders import layouts_plan, plan
from tuner.candidate import Candidate, Value
from tuner.flagwords import words_for
from tuner.launch import launch
from tuner.layout import Layout
from tuner.placement import GpuGroup
from tuner.sim.arguments import parse
from tuner.study.plan import StudyPlan
from tuner.study.setting import StudySetting
from tuner.vllm.defaults import vllm_defaults

DEFAULTS = vllm_defaults("0.32.0", ())
NUMBERS = ("max-num-seqs", "max-num-batched-tokens", "max-model-len", "long-prefill-token-threshold", "block-size")
SWITCHES = ("enable-prefix-caching", "async-scheduling")
ASSIGNED: st.SearchStrategy[tuple[str, Value]] = st.one_of(
    st.tuples(st.sampled_from(NUMBERS), st.integers(1, 10**6)), st.tuples(st.sampled_from(SWITCHES), st.booleans())
)
POINTS: st.SearchStrategy[dict[str, Value]] = st.lists(ASSIGNED, max_size=6).map(dict)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> StudyPlan:
    return plan(tmp_path_factory.mktemp("setting") / "s")


@given(POINTS, POINTS, POINTS, st.booleans())
def test_the_values_are_those_that_the_launched_server_parses(
    made: StudyPlan, constant: dict[str, Value], searched: dict[str, Value], own: dict[str, Value], underscores: bool
) -> None:
    words = [word for flag, value in own.items() for word in words_for(flag, value)]
    extra = tuple(word.replace("-", "_").replace("__", "--") if underscores else word for word in words)
    base = replace(made.base, flags=(), fixed=tuple(constant.items()), extra=extra)
    candidate = Candidate.of(searched)
    parsed = parse(launch(base, candidate, GpuGroup()).arguments, {}).given
    values = StudySetting.of(replace(made, base=base), DEFAULTS).values(candidate)
    on_the_line = {name.replace("_", "-"): value for name, value in parsed.items() if name != "model_tag"}
    assert values == {**DEFAULTS, **on_the_line}


def test_a_flag_that_is_not_searched_is_constant_with_its_strongest_value(made: StudyPlan) -> None:
    space = replace(made.space, fixed=(("block-size", 32), ("seed", 1)))
    base = replace(made.base, fixed=(("block-size", 16), ("stream-interval", 2)), extra=("--stream_interval=4",))
    setting = StudySetting.of(replace(made, space=space, base=base), DEFAULTS)
    assert {flag: setting.constant[flag] for flag in ("block-size", "seed", "stream-interval")} == {
        "block-size": 32,
        "seed": 1,
        "stream-interval": 4,
    }
    assert not setting.constant.keys() & setting.searched
    assert setting.is_like_the_others(setting.values(Candidate.of(dict(space.fixed))))
    assert not setting.is_like_the_others(setting.values(Candidate()))


def test_a_candidate_keeps_the_argument_rules_beside_the_users_words(made: StudyPlan) -> None:
    base = replace(made.base, extra=("--max-num-seqs", "4k"))
    space = replace(made.space, parameters=made.space.parameters[1:])
    setting = StudySetting.of(replace(made, space=space, base=base), DEFAULTS)
    assert setting.candidate({"max-num-batched-tokens": 512}).as_dict() == {"max-num-batched-tokens": 4000}


def test_a_length_that_vllm_chooses_bounds_nothing(made: StudyPlan) -> None:
    setting = StudySetting.of(replace(made, base=replace(made.base, extra=("--max-model-len", "-1"))), DEFAULTS)
    threshold = {"long-prefill-token-threshold": 512}
    assert setting.candidate(threshold).as_dict() == threshold


def test_a_server_knows_its_size_and_not_how_many_there_are(tmp_path: Path) -> None:
    made = layouts_plan(tmp_path / "s", (Layout(4, 1), Layout(2, 1, 2), Layout(1, 4)))
    setting = StudySetting.of(made, DEFAULTS)
    sizes = {"tensor-parallel-size": 1, "pipeline-parallel-size": 1}
    values = setting.values(made.default_of(Layout(4, 1)))
    assert {**values, **sizes} == values
    assert "data-parallel-size" not in values
    one = replace(made, layouts=made.layouts[:1], base=replace(made.base, fixed=(("data-parallel-size", 4),)))
    alone = StudySetting.of(replace(one, space=plan(tmp_path / "t").space), DEFAULTS)
    assert "data-parallel-size" not in {**alone.values(Candidate()), **alone.constant}


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> StudyPlan:
    layouts = (Layout(8, 1), Layout(4, 1, 2), Layout(4, 2), Layout(1, 8))
    return layouts_plan(tmp_path_factory.mktemp("layouts") / "s", layouts, gpus=8)


@given(st.sampled_from((1, 2, 8)), st.sampled_from((1, 2, 4)), st.integers(1, 8))
def test_every_candidate_has_a_planned_layout_of_the_size_that_was_asked_for(
    laid_out: StudyPlan, tensor: int, pipeline: int, data: int
) -> None:
    sizes = {"tensor-parallel-size": tensor, "pipeline-parallel-size": pipeline, "data-parallel-size": data}
    found = laid_out.layout_of(StudySetting.of(laid_out, DEFAULTS).candidate({"max-num-seqs": 8, **sizes}))
    planned = [placed.layout for placed in laid_out.layouts]
    assert found in planned
    assert found.tensor_parallel == tensor
    if any(layout.tensor_parallel == tensor and layout.pipeline_parallel == pipeline for layout in planned):
        assert found.pipeline_parallel == pipeline
