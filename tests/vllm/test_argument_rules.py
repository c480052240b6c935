from __future__ import annotations

import pytest
from hypothesis import given

from tests.strategies import points
from tuner.candidate import Value
from tuner.vllm.argument_rules import RULES, adapted, broken


@given(points)
def test_a_mended_point_breaks_no_rule(point: dict[str, Value]) -> None:
    assert broken(adapted(point, {})) == ()


@given(points, points)
def test_what_a_person_fixed_is_never_changed(point: dict[str, Value], fixed: dict[str, Value]) -> None:
    searched = {flag: value for flag, value in point.items() if flag not in fixed}
    assert set(adapted(searched, fixed)) == set(searched)


@pytest.mark.parametrize(
    ("point", "rule"),
    [
        ({"max-num-batched-tokens": 64, "max-num-seqs": 128}, "batch-holds-every-sequence"),
        (
            {"max-num-batched-tokens": 512, "max-model-len": 4096, "enable-chunked-prefill": False},
            "batch-holds-a-whole-prompt",
        ),
        ({"long-prefill-token-threshold": 4097, "max-model-len": 4096}, "threshold-within-length"),
        ({"max-num-active-seqs": 65, "max-num-seqs": 64}, "active-within-seqs"),
        ({"max-long-partial-prefills": 3, "max-num-partial-prefills": 2}, "long-within-partial"),
    ],
)
def test_each_refusal_of_vllm_is_one_rule(point: dict[str, Value], rule: str) -> None:
    assert [r.name for r in broken(point)] == [rule]


def test_rules_have_distinct_names() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
