from __future__ import annotations

import pytest
from hypothesis import given

from tests.strategies import points
from tuner.candidate import Value
from tuner.vllm.argument_rules import RULES, adapted


@given(points)
def test_an_adapted_point_breaks_no_rule(point: dict[str, Value]) -> None:
    within = adapted(point, {})
    assert [rule for rule in RULES if rule.adapted(within) is not None] == []


@given(points, points)
def test_what_the_user_fixed_is_never_changed(point: dict[str, Value], fixed: dict[str, Value]) -> None:
    searched = {flag: value for flag, value in point.items() if flag not in fixed}
    assert set(adapted(searched, fixed)) == set(searched)


@pytest.mark.parametrize(
    ("point", "changes"),
    [
        ({"max-num-batched-tokens": 64, "max-num-seqs": 128}, {"max-num-batched-tokens": 128}),
        (
            {"max-num-batched-tokens": 512, "max-model-len": 4096, "enable-chunked-prefill": False},
            {"max-num-batched-tokens": 4096},
        ),
        ({"max-num-batched-tokens": 512, "max-model-len": 4096, "enable-chunked-prefill": True}, {}),
        ({"long-prefill-token-threshold": 4097, "max-model-len": 4096}, {"long-prefill-token-threshold": 4096}),
        ({"long-prefill-token-threshold": 4097, "max-model-len": -1}, {}),
        ({"max-num-active-seqs": 65, "max-num-seqs": 64}, {"max-num-active-seqs": 64}),
        ({"max-long-partial-prefills": 3, "max-num-partial-prefills": 2}, {"max-long-partial-prefills": 2}),
    ],
)
def test_each_refusal_of_vllm_is_one_change(point: dict[str, Value], changes: dict[str, Value]) -> None:
    assert adapted(point, {}) == {**point, **changes}
