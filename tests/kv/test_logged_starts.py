"""Starts that others logged: what vLLM's pages really held."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path

import pytest

kv_logs = importlib.import_module("benchmarks.kv_logs")

STARTS = kv_logs.starts(Path(__file__).parent / "logged_starts.json")


@pytest.mark.parametrize("start", STARTS, ids=[start["model"] for start in STARTS])
def test_bytes_of_a_token_are_those_of_the_log_before_and_after_calibration(start: Mapping[str, object]) -> None:
    found = kv_logs.compared(start)
    assert found.bytes_per_token == pytest.approx(found.true_bytes, rel=0.05)
    assert found.tokens == pytest.approx(found.true_tokens, rel=0.02)
