"""Hypothesis strategies that many tests share."""

from __future__ import annotations

from hypothesis import strategies as st

from tuner.candidate import Value
from tuner.space.parameter import Kind, Parameter

flags = st.from_regex(r"[a-z]{1,8}(-[a-z]{1,8}){0,3}", fullmatch=True)


@st.composite
def parameters(draw: st.DrawFn) -> Parameter:
    kind = draw(st.sampled_from(Kind))
    flag = draw(flags)
    if kind is Kind.CHOICE:
        choices: list[Value] = list(draw(st.lists(st.integers(0, 10_000), min_size=1, max_size=8, unique=True)))
        return Parameter(flag, kind, choices=tuple(choices))
    if kind is Kind.FLAG:
        return Parameter(flag, kind)
    if kind is Kind.FLOAT:
        low = draw(st.floats(0.01, 0.5).map(lambda x: round(x, 3)))
        return Parameter(flag, kind, low, round(low + draw(st.floats(0.0, 0.5)), 3))
    low = draw(st.integers(1, 10_000))
    return Parameter(
        flag, kind, float(low), float(low + draw(st.integers(64, 100_000))), draw(st.sampled_from([1, 64]))
    )


points = st.fixed_dictionaries(
    {},
    optional={
        "max-num-seqs": st.integers(1, 4096),
        "max-num-batched-tokens": st.integers(1, 65536),
        "max-model-len": st.integers(1, 65536),
        "long-prefill-token-threshold": st.integers(0, 65536),
        "max-num-active-seqs": st.integers(1, 4096),
        "max-num-partial-prefills": st.integers(1, 8),
        "max-long-partial-prefills": st.integers(1, 8),
        "enable-chunked-prefill": st.booleans(),
    },
)
