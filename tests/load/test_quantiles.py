"""Quantiles against published tables (MLPerf LoadGen's early stopping, textbook order statistics) and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.load.quantiles import confidence_above, confidence_below, interval, order_statistic


@pytest.mark.parametrize(("count", "rank"), [(1, 1), (99, 99), (100, 99), (101, 100), (200, 198), (1000, 990)])
def test_p99_is_the_smallest_value_that_99_percent_do_not_exceed(count: int, rank: int) -> None:
    assert order_statistic(np.arange(1, count + 1, dtype=np.float64), 0.99) == rank


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=300), st.sampled_from([0.01, 0.5, 0.9, 0.95, 0.99, 0.999]))
def test_the_order_statistic_keeps_its_definition(values: list[float], quantile: float) -> None:
    ordered = np.sort(np.array(values))
    found = order_statistic(ordered, quantile)
    assert (ordered <= found).mean() >= quantile - 1e-12
    assert (ordered < found).mean() < quantile + 1e-12


@pytest.mark.parametrize(("count", "low", "high"), [(1000, 983, 997), (3000, 2959, 2981), (10_000, 9880, 9920)])
def test_intervals_of_a_p99_match_the_table(count: int, low: int, high: int) -> None:
    found = interval(np.arange(1, count + 1, dtype=np.float64), 0.99)
    assert found[0] == pytest.approx(low, abs=1)
    assert found[1] == pytest.approx(high, abs=1)


def test_a_p99_has_an_upper_bound_from_368_on() -> None:
    assert interval(np.arange(367, dtype=np.float64), 0.99)[1] is None
    assert interval(np.arange(368, dtype=np.float64), 0.99)[1] == 367.0
    assert interval(np.array([]), 0.99) == (None, None)


def test_the_interval_covers_the_true_quantile_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    true = -math.log(0.01)
    covered = 0
    for _ in range(2000):
        low, high = interval(np.sort(rng.exponential(size=1000)), 0.99)
        covered += low is not None and high is not None and low <= true <= high
    assert 0.94 <= covered / 2000 <= 0.98


@pytest.mark.parametrize(("violations", "count"), [(0, 459), (1, 662), (2, 838), (5, 1307), (20, 3304), (100, 12571)])
def test_confidence_matches_mlperf_loadgens_early_stopping(violations: int, count: int) -> None:
    """MLPerf rules appendix, c = 0.99: the fewest requests with which so many over the limit still pass."""
    assert confidence_below(violations, count, 0.01) >= 0.99
    assert confidence_below(violations, count - 1, 0.01) < 0.99


def test_no_violation_in_a_hundred_says_little() -> None:
    assert confidence_below(0, 100, 0.01) == pytest.approx(1 - 0.99**100)
    assert confidence_above(0, 100, 0.01) == 0
    assert confidence_above(30, 100, 0.01) == pytest.approx(1)
