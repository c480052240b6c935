"""Forecast of the seconds that a study takes. Pure functions of plan and records."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from tuner.study.compile_cache import Cache, expected_start_s
from tuner.study.confirm import finalists, incumbent
from tuner.study.disturbance import runs_alone
from tuner.study.doors import is_extra
from tuner.study.plan import Ladder, OpenSearch, StudyPlan
from tuner.study.record import Role, TrialRecord
from tuner.study.units import machine_units, units_at

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
    """Forecast the next confirmation run, whose start is warm. In an open loop it takes far longer than a search.
    Several servers are filled first."""
    ready_s = start_s(records, Cache.WARM)
    if isinstance(plan.load, OpenSearch):
        best = incumbent(plan, records)
        fill_s = (
            plan.load.settings.saturate_seconds(best.answer_s if best else 0.0)
            if _confirms_several(plan, records)
            else 0.0
        )
        return ready_s + plan.load.warm_up_s + fill_s + plan.load.claim_s(best.rate if best else math.inf)
    load_s = _longest_load_s(records)
    return ready_s + (max(plan.load.longest_s, plan.load.confirm_s) if load_s is None else load_s)


def check_s(plan: StudyPlan, records: Sequence[TrialRecord]) -> float:
    """Forecast the check of a layout: a warm start and one closed loop."""
    loop_s = plan.load.level_s if isinstance(plan.load, Ladder) else plan.load.settings.saturation_s
    return start_s(records, Cache.WARM) + plan.load.warm_up_s + loop_s


def _longest_load_s(records: Sequence[TrialRecord]) -> float | None:
    """Return the longest time from ready to stopped, None before the first."""
    phases = (r.start.phases for r in records if r.levels and r.role is not Role.CONFIRM)
    return max((p.spent_s - (p.start_s or 0.0) for p in phases), default=None)


def spent_s(plan: StudyPlan, records: Iterable[TrialRecord]) -> float:
    """Sum the time of finished trials, each with its share of the machine."""
    return sum(r.start.phases.spent_s * _occupied(plan, r) for r in records)


def left_s(plan: StudyPlan, records: Sequence[TrialRecord]) -> float:
    """Forecast the seconds left at the pace so far. The search keeps the whole machine busy. Checks and confirmation
    runs have it for themselves, one after the other."""
    searched = [r for r in records if r.role.searches and r.counts]
    trial_s = spent_s(plan, searched) / len(searched) if searched else search_trial_s(plan, records) * _mean_share(plan)
    search_s = trial_s * max(0, plan.starts - len(searched))
    checks_s = check_s(plan, records) * _checks_left(plan, records)
    return search_s + checks_s + confirmation_s(plan, records) * _confirmations_left(plan, records)


def _confirmations_left(plan: StudyPlan, records: Sequence[TrialRecord]) -> int:
    """Return the confirmation runs left, with the one that compares doors if it is planned."""
    confirming = [r for r in records if r.role is Role.CONFIRM and r.counts]
    extra = sum(is_extra(plan, records, r) for r in confirming)
    compared = plan.confirm_starts > 0 and plan.compares_doors and not extra and _confirms_several(plan, records)
    return max(0, plan.confirm_starts - (len(confirming) - extra)) + compared


def _confirms_several(plan: StudyPlan, records: Sequence[TrialRecord]) -> bool:
    """Return True if the best candidate has several servers; before the first, if any layout has."""
    ranked = finalists(plan, records)
    layouts = [plan.layout_of(ranked[0].candidate)] if ranked else [placed.layout for placed in plan.layouts]
    return any(layout.replicas > 1 for layout in layouts)


def _checks_left(plan: StudyPlan, records: Sequence[TrialRecord]) -> int:
    """Return the number of layouts whose check is to come. It needs a default with figures."""
    several = [placed.layout for placed in plan.layouts if placed.layout.replicas > 1]
    done = {r.candidate for r in records if r.role is Role.CHECK}
    done |= {r.candidate for r in records if r.role is Role.DEFAULT and r.counts and not r.levels}
    return sum(plan.default_of(layout) not in done for layout in several)


def _occupied(plan: StudyPlan, record: TrialRecord) -> float:
    """Return the share of the machine that a trial kept from others."""
    if record.role is Role.CONFIRM or runs_alone(plan, record.role, record.candidate):
        return 1.0
    return len(units_at(plan, record.start.group)) / len(machine_units(plan))


def _mean_share(plan: StudyPlan) -> float:
    """Return the mean share of the machine that a trial of the search takes."""
    return sum(len(placed.groups[0].units) for placed in plan.layouts) / len(plan.layouts) / len(machine_units(plan))
