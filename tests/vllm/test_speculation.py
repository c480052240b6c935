"""Speculation as the flags of a server say it."""

from __future__ import annotations

import pytest

from tuner.candidate import Value
from tuner.vllm.speculation import Draft, draft


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, Draft()),
        ({"speculative-config": '{"method": "mtp", "num_speculative_tokens": 2}'}, Draft(2, own_head=True)),
        ({"speculative-config": '{"method": "qwen3_next_mtp", "num_speculative_tokens": 1}'}, Draft(1, own_head=True)),
        (
            {"speculative-config.method": "deepseek_mtp", "speculative-config.num_speculative_tokens": 3},
            Draft(3, own_head=True),
        ),
        ({"speculative-config": '{"method": "mtp", "model": "/draft", "num_speculative_tokens": 2}'}, Draft(2)),
        ({"speculative-config": '{"method": "ngram", "num_speculative_tokens": 4}'}, Draft(4)),
        ({"speculative-config": "not JSON"}, Draft()),
        ({"speculative-config": "[1]"}, Draft()),
        ({"speculative-config": '{"num_speculative_tokens": "many"}'}, Draft()),
    ],
)
def test_speculation_is_read_in_one_word_or_in_several(values: dict[str, Value], expected: Draft) -> None:
    assert draft(values) == expected
