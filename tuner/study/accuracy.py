"""Accuracy of confirmed figures, which differences are compared with."""

from __future__ import annotations

import math

from tuner.study.plan import LoadPolicy, OpenSearch

CLAIM_SPREAD = 1.5
"""Standard deviation of a claimed rate, as a share of it, times √n for a trace of n requests (docs/measuring.md)."""

BEST_ACCURACY = 0.03
"""Smallest error of a claim, as a share of its rate: the spread at the usual 2,500 requests and more."""


def accuracy(rate: float, load: LoadPolicy) -> float:
    """Return how far a confirmed rate in requests/s may be off, as a share of it. Short traces say less."""
    if not isinstance(load, OpenSearch):
        return BEST_ACCURACY
    return max(BEST_ACCURACY, CLAIM_SPREAD / math.sqrt(rate * load.settings.claim_seconds_at(rate)))
