"""Early stop: for how many starts the search has found nothing better."""

from __future__ import annotations

from collections.abc import Iterable

from tuner.study.record import Role, TrialRecord

RISE = 0.01
"""Less than this is no gain: starts of one configuration differ by more (measurement.md)."""


def starts_without_rise(records: Iterable[TrialRecord]) -> int:
    """Starts that the sampler chose since the best feasible QPS last rose by `RISE`; `records` in their order.

    Default and seeds are given, not searched: they set the mark and use up no patience. Nor does anything before the
    first feasible start: there is no best yet that could have stopped rising.
    """
    best, without = None, 0
    for record in records:
        if not record.counts or not record.role.searches:
            continue
        if record.qps is not None and (best is None or record.qps >= best * (1 + RISE)):
            best, without = record.qps, 0
        elif best is not None and record.role is Role.SEARCH:
            without += 1
    return without
