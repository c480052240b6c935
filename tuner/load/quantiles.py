"""Percentiles by order statistics, and their certainty. Requests are assumed to be independent."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtr, bdtrc, stdtrit  # P(B <= k), P(B > k), t; scipy.stats takes a second to import

Values = NDArray[np.float64]


def order_statistic(ordered: Values, quantile: float) -> float:
    """Return the smallest value that at least `quantile` of the ascending, non-empty sample do not exceed."""
    return float(ordered[_rank(len(ordered), quantile) - 1])


def _rank(count: int, quantile: float) -> int:
    # Rounded first: 0.99 × 100 is 99.00000000000001 in floating point, and would ask for the maximum.
    return max(1, math.ceil(round(quantile * count, 9)))


def interval(ordered: Values, quantile: float, confidence: float = 0.95) -> tuple[float | None, float | None]:
    """Return a two-sided, distribution-free interval of a quantile. A bound is None if the sample is too small to
    have one: the upper bound of a P99 needs 368 values (David and Nagaraja, Order Statistics, section 7.1)."""
    count = len(ordered)
    if count == 0:
        return None, None
    tail = (1 - confidence) / 2
    cumulative = bdtr(np.arange(count + 1), count, quantile)
    low = int(np.searchsorted(cumulative, tail))  # P(B < low) <= tail, so rank `low` bounds from below
    high = int(np.searchsorted(cumulative, 1 - tail)) + 1
    return (
        float(ordered[low - 1]) if low >= 1 else None,
        float(ordered[high - 1]) if high <= count else None,
    )


def confidence_above(violations: int, count: int, allowed: float) -> float:
    """Return the Clopper-Pearson confidence that the true share of violations exceeds `allowed`: P(B < violations)."""
    return float(bdtr(violations - 1, count, allowed)) if violations else 0.0


def confidence_below(violations: int, count: int, allowed: float) -> float:
    """Return the Clopper-Pearson confidence that the true share of violations is below `allowed`: P(B > violations)."""
    return float(bdtrc(violations, count, allowed))


def student_t(freedom: int, confidence: float) -> float:
    """Return the half-width, in standard errors, of a mean's two-sided interval with `freedom` degrees of freedom."""
    return float(stdtrit(freedom, (1 + confidence) / 2))
