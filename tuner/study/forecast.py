"""Forecast of the seconds that a study takes. Pure functions of plan, records and what runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tuner.candidate import Candidate
from tuner.study.compile_cache import Cache, expected_start_s
from tuner.study.confirm import finalists, incumbent
from tuner.study.disturbance import runs_alone
from tuner.study.doors import REFUTED, is_extra
from tuner.study.plan import REJECTED_TRACES, Ladder, OpenSearch, StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.units import machine_units, units_at

UNKNOWN_START_S = 60.0
"""Seconds of a start before any was seen. It is a cold start of an 8B model on one GPU. Imports take 8 s, the engine
10, weights 8, compilation 19, profiling and CUDA graphs about 12 (StartTimes in tuner/sim/hardware.py)."""

BLOCK_PROBES = 4
"""Probes of a block that begins near its answer: two enclose it, and two close in."""


@dataclass(frozen=True, slots=True)
class Running:
    """A trial under way, in seconds: since it began, since its load began (None before), and since its last answer: a
    level of a search, a rejected level of a claim."""

    role: Role
    candidate: Candidate
    group: str
    elapsed_s: float
    load_s: float | None = None
    attempt_s: float = 0.0


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
    return start_s(records, Cache.WARM) + _confirming_load_s(plan, records)


def _confirming_load_s(plan: StudyPlan, records: Sequence[TrialRecord]) -> float:
    """Forecast a confirmation run from ready to stopped: as those before. The first fills several servers, and makes a
    block and a claim, each load with its last answers."""
    if (made := [_load_s(r) for r in _confirming(records)]) != []:
        return statistics.mean(made)
    if not isinstance(plan.load, OpenSearch):
        load_s = _longest_load_s(records)
        return max(plan.load.longest_s, plan.load.confirm_s) if load_s is None else load_s
    best, settings = incumbent(plan, records), plan.load.settings
    rate, answer_s = (best.rate, best.answer_s) if best else (math.inf, 0.0)
    fill_s = settings.saturate_seconds(answer_s) if _confirms_several(plan, records) else 0.0
    drains_s = answer_s * (settings.claim_traces + REJECTED_TRACES)
    return plan.load.warm_up_s + fill_s + _block_s(plan.load, rate, answer_s) + plan.load.claim_s(rate) + drains_s


def _block_s(load: OpenSearch, rate: float, answer_s: float) -> float:
    settings = load.settings
    return BLOCK_PROBES * settings.claim_traces * (settings.claim_seconds_at(rate) + answer_s)


def _confirming(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """List the confirmation runs that used up a turn. Those that decided nothing are made again."""
    decided = (TrialOutcome.FEASIBLE, *REFUTED)
    return [r for r in records if r.role is Role.CONFIRM and r.outcome in decided and not r.is_only_block]


def check_s(plan: StudyPlan, records: Sequence[TrialRecord]) -> float:
    """Forecast the check of a layout: a warm start and one closed loop."""
    loop_s = plan.load.level_s if isinstance(plan.load, Ladder) else plan.load.settings.saturation_s
    return start_s(records, Cache.WARM) + plan.load.warm_up_s + loop_s


def _longest_load_s(records: Sequence[TrialRecord]) -> float | None:
    """Return the longest time from ready to stopped, None before the first."""
    return max((_load_s(r) for r in records if r.levels and r.role is not Role.CONFIRM), default=None)


def _load_s(record: TrialRecord) -> float:
    """Return the time from ready to stopped."""
    return record.start.phases.spent_s - (record.start.phases.start_s or 0.0)


def spent_s(plan: StudyPlan, records: Iterable[TrialRecord]) -> float:
    """Sum the time of finished trials, each with its share of the machine."""
    return sum(r.start.phases.spent_s * _occupied(plan, r) for r in records)


def left_s(plan: StudyPlan, records: Sequence[TrialRecord], running: Sequence[Running] = ()) -> float:
    """Forecast the seconds left at the pace so far. The search keeps the whole machine busy, until its last trials run
    out. Checks and confirmation runs have it for themselves, one after the other."""
    searched = [r for r in records if r.role.searches and r.counts]
    searching, checking, confirming = (
        [now for now in running if now.role in roles]
        for roles in ([role for role in Role if role.searches], (Role.CHECK,), (Role.CONFIRM,))
    )
    is_over = not searching and (confirming or any(r.role is Role.CONFIRM for r in records))
    to_come = 0 if is_over else max(0, plan.starts - len(searched) - len(searching))
    under_way_s = sum(rest_s(plan, records, now) * _share_of(plan, now) for now in searching)
    search_s = max(under_way_s + _trial_s(plan, records) * to_come, longest_rest_s(plan, records, searching))
    checks_left = _checks_left(plan, records) - len({now.candidate for now in checking})
    confirmations_left = max(0, _confirmations_left(plan, records) - len(confirming))
    return (
        search_s
        + longest_rest_s(plan, records, checking)
        + check_s(plan, records) * max(0, checks_left)
        + sum(rest_s(plan, records, now) for now in confirming)
        + confirmation_s(plan, records) * confirmations_left
    )


def longest_rest_s(plan: StudyPlan, records: Sequence[TrialRecord], running: Iterable[Running]) -> float:
    """Forecast the seconds until all of these trials are done."""
    return max((rest_s(plan, records, now) for now in running), default=0.0)


def rest_s(plan: StudyPlan, records: Sequence[TrialRecord], now: Running) -> float:
    """Forecast the rest of a trial under way: what was expected of its phase and those to come. A phase that takes
    longer needs at least what its next answer takes."""
    ready_s, load_s = _expected(plan, records, now)
    if now.load_s is None:
        return load_s + max(0.0, ready_s - now.elapsed_s)
    return max(load_s - now.load_s, _least_s(plan, records, now))


def _expected(plan: StudyPlan, records: Sequence[TrialRecord], now: Running) -> tuple[float, float]:
    """Return the expected seconds of a trial's start, and from then on."""
    if now.role.searches:
        ready_s = start_s(records, Cache.COLD)
        return ready_s, max(0.0, _trial_s(plan, records) / _share_of(plan, now) - ready_s)
    ready_s = start_s(records, Cache.WARM)
    if now.role is Role.CHECK:
        return ready_s, check_s(plan, records) - ready_s
    if isinstance(plan.load, OpenSearch) and _confirmations_left(plan, records) == 0:
        best = incumbent(plan, records)  # a further pair: blocks without a claim
        return ready_s, plan.load.warm_up_s + _block_s(plan.load, best.rate if best else math.inf, 0.0)
    return ready_s, _confirming_load_s(plan, records)


def _least_s(plan: StudyPlan, records: Sequence[TrialRecord], now: Running) -> float:
    """Return the least time to the next answer: a level, or all traces of the rate that a claim is at."""
    if not isinstance(plan.load, OpenSearch):
        needed_s = plan.load.level_s * (2 if now.role is Role.CONFIRM else 1)
    else:
        best, settings = incumbent(plan, records), plan.load.settings
        rate, answer_s = (best.rate, best.answer_s) if best else (math.inf, 0.0)
        claims = now.role is Role.CONFIRM and _confirmations_left(plan, records) > 0
        trace_s = settings.claim_seconds_at(rate) + answer_s
        needed_s = settings.claim_traces * trace_s if claims else trace_s
    return max(0.0, needed_s - now.attempt_s)


def _trial_s(plan: StudyPlan, records: Sequence[TrialRecord]) -> float:
    """Return what a trial of the search costs the whole machine at the pace so far."""
    searched = [r for r in records if r.role.searches and r.counts]
    return spent_s(plan, searched) / len(searched) if searched else search_trial_s(plan, records) * _mean_share(plan)


def _confirmations_left(plan: StudyPlan, records: Sequence[TrialRecord]) -> int:
    """Return the confirmation runs left, with the one that compares doors if it is planned."""
    confirming = _confirming(records)
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
    return _share(plan, record.role, record.candidate, record.start.group)


def _share_of(plan: StudyPlan, now: Running) -> float:
    return _share(plan, now.role, now.candidate, now.group)


def _share(plan: StudyPlan, role: Role, candidate: Candidate, group: str) -> float:
    if role is Role.CONFIRM or runs_alone(plan, role, candidate):
        return 1.0
    return len(units_at(plan, group)) / len(machine_units(plan))


def _mean_share(plan: StudyPlan) -> float:
    """Return the mean share of the machine that a trial of the search takes."""
    return sum(len(placed.groups[0].units) for placed in plan.layouts) / len(plan.layouts) / len(machine_units(plan))
