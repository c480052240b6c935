"""Words and flags: the reader agrees with argparse, and what the writer writes is read back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.flagwords import Value, flag_names, flag_values, given_flags, number, value_text, words_for
from tuner.sim.arguments import parse
from tuner.vllm.knobs import SHORT_OPTIONS


def values(*words: str) -> dict[str, Value]:
    return flag_values(words, short=SHORT_OPTIONS)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--max-num-seqs", "64"), {"max-num-seqs": 64}),
        (("--max_num_seqs=64",), {"max-num-seqs": 64}),
        (("--max-num-seqs", "1", "--max_num_seqs", "2"), {"max-num-seqs": 2}),
        (("--max-num-batched-tokens=16K", "--max-model-len", "16k"),
         {"max-num-batched-tokens": 16_384, "max-model-len": 16_000}),
        (("--max-model-len", "-1"), {"max-model-len": -1}),
        (("--enforce-eager", "--no-enable_prefix_caching"), {"enforce-eager": True, "enable-prefix-caching": False}),
        (("--no-enforce-eager", "--enforce-eager"), {"enforce-eager": True}),
        (("--hf-overrides", '{"a-b": -1}'), {"hf-overrides": '{"a-b": -1}'}),
        (("--compilation_config.cudagraph_mode", "NONE"), {"compilation-config.cudagraph_mode": "NONE"}),
        (("--served-model-name", "a", "b"), {"served-model-name": "a b"}),
        (("--chat-template=--x {{ a=b }}",), {"chat-template": "--x {{ a=b }}"}),
        (("--chat-template", "-- not a flag"), {"chat-template": "-- not a flag"}),
        (("-tp", "2", "-O3", "-q=awq", "-dp=4"),
         {"tensor-parallel-size": 2, "optimization-level": 3, "quantization": "awq", "data-parallel-size": 4}),
        (("model", "--seed="), {"seed": ""}),
        (("model",), {}),
        ((), {}),
    ],
)  # fmt: skip
def test_each_spelling_has_its_value(words: tuple[str, ...], found: dict[str, Value]) -> None:
    assert values(*words) == found


def test_a_part_of_a_flag_sets_that_flag() -> None:
    words = ("--speculative-config.method", "ngram", "-tp", "2", "--no-enable-chunked-prefill", "value")
    assert flag_names(words, short=SHORT_OPTIONS) == {
        "speculative-config", "tensor-parallel-size", "enable-chunked-prefill",
    }  # fmt: skip


def test_words_are_kept_as_they_were_written() -> None:
    words = ("m", "--a_b=1", "-O3", "--sizes", "1", "-2", "--on")
    assert [flag.words for flag in given_flags(words, short=SHORT_OPTIONS)] == [
        ("m",), ("--a_b=1",), ("-O3",), ("--sizes", "1", "-2"), ("--on",),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [("16k", 16_000), ("16K", 16_384), ("1.5k", 1_500), ("2g", 2 * 10**9), ("1T", 2**40), ("-1", -1), ("0.9", 0.9),
     ("9e-1", 0.9), ("1.5K", None), ("auto", None), ("", None), ("inf", None), ("1e999", None), ("16kk", None),
     ("0x10", None), ("fp8", None)],
)  # fmt: skip
def test_numbers_are_read_as_vllm_reads_them(text: str, found: float | None) -> None:
    assert number(text) == found


flag_name = st.from_regex(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", fullmatch=True).filter(lambda f: not f.startswith("no-"))
texts = st.text(max_size=20)
any_value = st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts


@given(st.dictionaries(flag_name, any_value, max_size=5))
def test_what_is_written_is_read_back(flags: dict[str, Value]) -> None:
    words = [word for flag, value in flags.items() for word in words_for(flag, value)]
    read = values(*words)
    assert read.keys() == flags.keys()
    for flag, value in flags.items():
        if isinstance(value, str):
            assert value_text(read[flag]) == value or number(value) == read[flag]
        else:
            assert read[flag] == value


@given(st.lists(texts, max_size=8))
def test_no_word_is_lost_whatever_it_is(words: list[str]) -> None:
    assert [word for flag in given_flags(words, short=SHORT_OPTIONS) for word in flag.words] == words
    assert all(isinstance(found, str) or math.isfinite(found) for found in values(*words).values())


TYPED: dict[str, st.SearchStrategy[Value]] = {
    "max-num-seqs": st.integers(1, 10**6),
    "max-num-batched-tokens": st.integers(1, 10**6),
    "max-model-len": st.just(-1) | st.integers(1, 10**6),
    "gpu-memory-utilization": st.floats(0.01, 1.0),
    "long-prefill-token-threshold": st.integers(0, 10**6),
    "enable-chunked-prefill": st.booleans(),
    "enable-prefix-caching": st.booleans(),
    "kv-cache-dtype": st.sampled_from(["auto", "fp8"]),
    "tensor-parallel-size": st.integers(1, 8),
}
SHORT_NAMES = {long: name for name, long in SHORT_OPTIONS.items()}


@st.composite
def written(draw: st.DrawFn) -> tuple[str, ...]:
    flag = draw(st.sampled_from(sorted(TYPED)))
    first, *rest = words_for(flag, draw(TYPED[flag]))
    style = draw(st.sampled_from(["dash", "underscore", "equals", "short"]))
    if style == "short" and flag in SHORT_NAMES:
        return (f"-{SHORT_NAMES[flag]}", *rest)
    if style == "underscore":
        first = "--" + first[2:].replace("-", "_")
    return (f"{first}={rest[0]}",) if style == "equals" and rest else (first, *rest)


@given(st.lists(written(), max_size=8))
def test_the_reader_agrees_with_argparse(flags: list[tuple[str, ...]]) -> None:
    words = [word for flag in flags for word in flag]
    parsed = parse(["model", *words], {}).given
    assert values(*words) == {name.replace("_", "-"): value for name, value in parsed.items() if name != "model_tag"}
