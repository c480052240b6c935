"""Percentiles by order statistics, and how sure a sample makes them. Independent requests are assumed throughout."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def order_statistic(ordered: Values, quantile: float) -> float:
    """The smallest value that at least `quantile` of the sample do not exceed; `ordered` ascending, not empty."""
    return float(ordered[_rank(len(ordered), quantile) - 1])


def _rank(count: int, quantile: float) -> int:
    # Rounded first: 0.99 × 100 is 99.00000000000001 in floating point, and would ask for the maximum.
    return max(1, math.ceil(round(quantile * count, 9)))


def interval(ordered: Values, quantile: float, confidence: float = 0.95) -> tuple[float | None, float | None]:
    """Order statistics around the true quantile with at least `confidence`, two-sided, distribution-free.

    A bound is None where the sample is too small to have one: the upper bound of a P99 needs 368 values (David and
    Nagaraja, Order Statistics, section 7.1).
    """
    count = len(ordered)
    if count == 0:
        return None, None
    tail = (1 - confidence) / 2
    cumulative = np.cumsum(np.exp(_log_binomial(count, quantile)))
    low = int(np.searchsorted(cumulative, tail))  # P(B < low) <= tail, so rank `low` bounds from below
    high = int(np.searchsorted(cumulative, 1 - tail)) + 1
    return (
        float(ordered[low - 1]) if low >= 1 else None,
        float(ordered[high - 1]) if high <= count else None,
    )


def confidence_above(violations: int, count: int, allowed: float) -> float:
    """Clopper-Pearson confidence that the true share of violations exceeds `allowed`: P(B < violations)."""
    return _binomial_cdf(violations - 1, count, allowed)


def confidence_below(violations: int, count: int, allowed: float) -> float:
    """Clopper-Pearson confidence that the true share of violations is below `allowed`: 1 - P(B <= violations)."""
    return 1 - _binomial_cdf(violations, count, allowed)


def _binomial_cdf(successes: int, count: int, probability: float) -> float:
    if successes < 0:
        return 0.0
    return min(1.0, float(np.exp(_log_binomial(count, probability)[: successes + 1]).sum()))


def _log_binomial(count: int, probability: float) -> Values:
    """log P(B = k) for k = 0..count; exact at any count, where multiplying would underflow."""
    k = np.arange(count + 1)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, count + 1)))))
    choose = log_factorial[count] - log_factorial - log_factorial[::-1]
    result: Values = choose + k * math.log(probability) + (count - k) * math.log1p(-probability)
    return result
