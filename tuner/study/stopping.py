"""Reasons to end the search."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum

from tuner.study import forecast
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialRecord

LEAST_GAIN = 0.01
"""Smallest rise of the best QPS that counts. Starts of one configuration differ by more."""


class SearchEnd(StrEnum):
    """Reason why the search starts nothing more."""

    ALL_MADE = "all-made"
    NO_GAIN = "no-gain"
    NO_TIME = "no-time"
    EXHAUSTED = "exhausted"


def search_end(plan: StudyPlan, records: Sequence[TrialRecord], elapsed_s: float, in_flight: int) -> SearchEnd | None:
    """Decide if the search ends here. None if another trial is due. `in_flight` trials run at the moment."""
    if trials_searched(records) + in_flight >= plan.starts:
        return SearchEnd.ALL_MADE
    if plan.patience is not None and trials_without_gain(records) >= plan.patience:
        return SearchEnd.NO_GAIN
    if plan.time_budget_s is None or not records:
        return None
    # Without the cap, a short budget would keep all its time for claims and search nothing to be claimed.
    confirm_s = min(forecast.confirmation_s(plan, records) * plan.confirm_starts, plan.time_budget_s / 2)
    needed_s = forecast.search_trial_s(plan, records) + confirm_s
    return None if elapsed_s + needed_s <= plan.time_budget_s else SearchEnd.NO_TIME


def trials_searched(records: Iterable[TrialRecord]) -> int:
    """Count the trials of the search. Interrupted ones and faults of the machine are done again and do not count."""
    return sum(r.search_trial is not None and r.counts for r in records)


def trials_without_gain(records: Iterable[TrialRecord]) -> int:
    """Count the sampler's trials since the last gain. `records` are in their order.

    Default and seeds set the mark and use up no patience. Before the first feasible trial there is no best that
    could have stopped rising, so nothing is counted.
    """
    best, without = None, 0
    for record in records:
        if not record.counts or not record.role.searches:
            continue
        if record.qps is not None and (best is None or record.qps >= best * (1 + LEAST_GAIN)):
            best, without = record.qps, 0
        elif best is not None and record.role is Role.SEARCH:
            without += 1
    return without
