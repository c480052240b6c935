"""Gain of a candidate over the default, from paired blocks of their confirmation runs. Pure.

A block is a fresh start's estimate of its rate on long traces, or its QPS in a closed loop. The k-th blocks of both
have the same traffic and are made one after the other, so that chance, and what slows the machine, falls on both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import fmean, median, stdev

from tuner.candidate import Candidate
from tuner.load.quantiles import student_t
from tuner.measurement import LoadKind, Measurement
from tuner.study.disturbance import undisturbed_share
from tuner.study.doors import compared_runs, door_cost, quoted_door
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import Disturbance, Gain

PAIR_SPREAD = {LoadKind.CLOSED: 0.017, LoadKind.OPEN: 0.045}
"""Least standard deviation of a pair's log ratio, as on a quiet machine (docs/measuring.md). In a closed loop it is
that of two equal levels."""

BIAS = {LoadKind.CLOSED: 0.005, LoadKind.OPEN: 0.015}
"""What a block reads too high or low if two candidates reach their limits in different ways, rounded up
(docs/measuring.md)."""

WIDTH = student_t(39, 0.95)
"""Half-width of an interval in standard errors. `PAIR_SPREAD` is of forty pairs."""

SURE = {LoadKind.CLOSED: 0.03, LoadKind.OPEN: 0.08}
"""Half-width of an interval that is worth no further pair."""

TELLS = 0.15
"""Half-width of an interval beyond which one that includes 0 tells nothing."""

OVERRULES = 3
"""Pairs that overrule what the search measured. They cannot all fall into one disturbance of twenty minutes."""

MANY = 5
"""Pairs whose median tells which are odd."""

SEARCH_SPREAD = 0.15
"""Error of ln(winner / default) by the search's short probes (docs/measuring.md)."""

MEDIAN_SPREAD = 1.2533
"""Standard error of a median, as a multiple of the mean's."""

MAD_TO_SD = 1.4826
"""Factor from the median absolute deviation to a standard deviation."""

P90_SD = 1.2816
"""Standard deviations from the median to P90 of a normal distribution."""

ODD = 3.5
"""Standard deviations of a pair by which it may differ from the others. Beyond it neither of its runs is quoted."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A run of the winner and one of the default, on the same traffic."""

    ours: TrialRecord
    theirs: TrialRecord

    @property
    def blocks(self) -> float | None:
        """Return ln(winner / default) of the blocks. None if one of them found no rate."""
        return _log_ratio(self.ours.block, self.theirs.block)

    @property
    def claims(self) -> float | None:
        """Return ln(winner / default) of the claims. None if one of them claimed nothing."""
        both = self.ours.claim and self.theirs.claim
        return _log_ratio(self.ours.qps, self.theirs.qps) if both else None

    def spread(self, kind: LoadKind) -> float:
        """Return the least standard deviation of its log ratio. Different levels of a closed loop have no request in
        common, so the chance in both lengths comes on top."""
        levels = [m for r in (self.ours, self.theirs) if (m := r.best_level) is not None]
        is_common = kind is LoadKind.OPEN or len({m.load for m in levels}) == 1
        return math.hypot(PAIR_SPREAD[kind], *([] if is_common else map(_chance, levels)))


def odd_trials(plan: StudyPlan, records: Sequence[TrialRecord], winner: Candidate) -> frozenset[int]:
    """Return the runs of pairs that differ from the others: something beside the two servers was at work. Their
    figures are not quoted."""
    pairs = _pairs(plan, records, winner)
    logs = [log for pair in pairs if (log := pair.blocks) is not None]
    if not logs:
        return frozenset()
    middle = median(logs)
    odd = set()
    for pair in pairs:
        allowed = ODD * pair.spread(plan.load.kind)
        # Of two pairs nobody knows which one is odd.
        shown = (pair.claims, pair.blocks if len(logs) > 2 else None)
        if any(log is not None and abs(log - middle) > allowed for log in shown):
            odd |= {pair.ours.trial, pair.theirs.trial}
    return frozenset(odd)


def gain(plan: StudyPlan, records: Sequence[TrialRecord], winner: Candidate) -> Gain | None:
    """Return the gain of a candidate over the default. None before the first pair."""
    told = [(pair, log) for pair in _pairs(plan, records, winner) if (log := pair.blocks) is not None]
    if not told:
        return None
    kind, logs = plan.load.kind, [log for _, log in told]
    least = math.sqrt(fmean(pair.spread(kind) ** 2 for pair, _ in told))
    if len(logs) < MANY:
        middle, deviation = fmean(logs), stdev(logs) if len(logs) > 1 else 0.0
    else:
        middle = median(logs)
        deviation = MEDIAN_SPREAD * MAD_TO_SD * median(abs(x - middle) for x in logs)
    half = WIDTH * max(deviation, least) / math.sqrt(len(logs)) + BIAS[kind]
    return Gain(math.expm1(middle - half), math.expm1(middle), math.expm1(middle + half), len(logs))


def is_settled(plan: StudyPlan, records: Sequence[TrialRecord], winner: Candidate) -> bool:
    """Return True if more pairs are not needed: the gain is known well enough, and the search saw the same."""
    found = gain(plan, records, winner)
    is_known = found is not None and _half(found) <= SURE[plan.load.kind]
    return is_known and is_plausible(plan, records, winner)


def is_plausible(plan: StudyPlan, records: Sequence[TrialRecord], winner: Candidate) -> bool:
    """Return True if the pairs tell something, and agree with what the search saw, or overrule it."""
    found, expected = gain(plan, records, winner), _searched_gain(plan, records, winner)
    if found is None:
        return True
    if found.low < 0 < found.high and _half(found) > TELLS:
        return False
    if expected is None or found.pairs >= OVERRULES:
        return True
    return abs(math.log1p(found.middle) - expected) <= _half(found) + SEARCH_SPREAD


def _half(found: Gain) -> float:
    """Return the half-width of the interval of a log ratio."""
    return math.log((1 + found.high) / (1 + found.low)) / 2


def disturbed(plan: StudyPlan, records: Sequence[TrialRecord], winner: Candidate) -> Disturbance | None:
    """Return the time of the confirmation runs that decided nothing or whose pair is odd, and of those in which the
    default broke a limit. None without one."""
    odd = odd_trials(plan, records, winner)
    undecided = (TrialOutcome.INVALID, TrialOutcome.UNDECIDED)
    broke = (plan.baseline, TrialOutcome.INFEASIBLE)
    odd_ones = (r.trial in odd or r.outcome in undecided or (r.candidate, r.outcome) == broke for r in records)
    runs = [r for r, is_odd in zip(records, odd_ones, strict=True) if is_odd and r.role is Role.CONFIRM]
    if not runs:
        return None
    begins = [datetime.fromisoformat(r.start.started_at) for r in runs]
    ends = [at + timedelta(seconds=r.start.phases.spent_s) for at, r in zip(begins, runs, strict=True)]
    return Disturbance(min(begins).isoformat(timespec="seconds"), max(ends).isoformat(timespec="seconds"))


def _pairs(plan: StudyPlan, records: Sequence[TrialRecord], winner: Candidate) -> list[Pair]:
    ours, theirs = (
        compared_runs(records, candidate, quoted_door(plan, records, candidate))
        for candidate in (winner, plan.baseline)
    )
    return [Pair(*both) for both in zip(ours, theirs, strict=False)] if winner != plan.baseline else []


def _chance(level: Measurement) -> float:
    """Return the standard error of ln(QPS) of a closed loop from the lengths of its requests. QPS is the number of
    clients over the mean answer time, whose spread lies between its percentiles."""
    e2e, requests = level.e2e_ms, (level.qps or 0.0) * level.window_s
    return (e2e.p90 - e2e.p50) / P90_SD / e2e.mean / math.sqrt(requests) if e2e is not None and requests else 0.0


def _log_ratio(ours: float | None, theirs: float | None) -> float | None:
    return math.log(ours / theirs) if ours and theirs else None


def _searched_gain(plan: StudyPlan, records: Sequence[TrialRecord], winner: Candidate) -> float | None:
    """Return ln(winner / default) by the search, with what the door takes. None if one of them is unknown."""
    return _log_ratio(_worth(plan, records, winner), _worth(plan, records, plan.baseline))


def _worth(plan: StudyPlan, records: Sequence[TrialRecord], candidate: Candidate) -> float | None:
    found = next((r for r in records if r.role.searches and r.candidate == candidate and r.qps), None)
    if found is None or found.qps is None:
        return None
    cost = door_cost(plan, records, candidate)
    return found.qps * undisturbed_share(plan, records, found) * (1 - (cost or 0.0))
