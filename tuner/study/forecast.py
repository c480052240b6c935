"""Forecast of the seconds that a study takes. Pure functions of plan and records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tuner.study.compile_cache import Cache, expected_start_s
from tuner.study.confirm import incumbent
from tuner.study.plan import OpenSearch, StudyPlan
from tuner.study.record import Role, TrialRecord

UNKNOWN_START_S = 60.0
"""Seconds of a start before any was seen. It is a cold start of an 8B model on one GPU. Imports take 8 s, the engine
10, weights 8, compilation 19, profiling and CUDA graphs about 12 (StartTimes in tuner/sim/hardware.py)."""


def start_s(records: Sequence[TrialRecord], cache: Cache) -> float:
    """Forecast the seconds of a start in a cache state."""
    seconds = expected_start_s(records, cache)
    return UNKNOWN_START_S if seconds is None else seconds


def search_trial_s(plan: StudyPlan, records: Sequence[TrialRecord]) -> float:
    """Forecast the search's next trial: median start, longest load and shutdown. The start counts as cold. Of 70
    proposals in two studies, one had the compile key of an earlier start."""
    load_s = _longest_load_s(records)
    return start_s(records, Cache.COLD) + (plan.load.longest_s if load_s is None else load_s)


def confirmation_s(plan: StudyPlan, records: Sequence[TrialRecord]) -> float:
    """Forecast the next confirmation run, whose start is warm. In an open loop it takes far longer than a search."""
    ready_s = start_s(records, Cache.WARM)
    if isinstance(plan.load, OpenSearch):
        best = incumbent(records)
        return ready_s + plan.load.warm_up_s + plan.load.claim_s(best.rate if best else math.inf)
    load_s = _longest_load_s(records)
    return ready_s + (max(plan.load.longest_s, plan.load.confirm_s) if load_s is None else load_s)


def _longest_load_s(records: Sequence[TrialRecord]) -> float | None:
    """Return the longest time from ready to stopped, None before the first."""
    phases = (r.start.phases for r in records if r.levels and r.role is not Role.CONFIRM)
    return max((p.spent_s - (p.start_s or 0.0) for p in phases), default=None)


def spent_s(plan: StudyPlan, records: Iterable[TrialRecord]) -> float:
    """Sum the time of finished trials, per GPU group."""
    return sum(r.start.phases.spent_s for r in records) / len(plan.groups)


def left_s(plan: StudyPlan, records: Sequence[TrialRecord]) -> float:
    """Forecast the seconds left at the pace so far. The search runs on all groups side by side, confirmation runs
    one after the other."""
    searched = [r for r in records if r.role.searches and r.counts]
    confirmed = sum(r.role is Role.CONFIRM and r.counts for r in records)
    trial_s = (
        sum(r.start.phases.spent_s for r in searched) / len(searched) if searched else search_trial_s(plan, records)
    )
    search_s = trial_s * max(0, plan.starts - len(searched)) / len(plan.groups)
    return search_s + confirmation_s(plan, records) * max(0, plan.confirm_starts - confirmed)
