"""Values that a server really runs with: the values that argparse takes from the words that launch() writes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.study.builders import plan
from tuner.candidate import Candidate, Value
from tuner.flagwords import words_for
from tuner.launch import launch
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
