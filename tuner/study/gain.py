"""Gain of a candidate over the default, from paired blocks of their confirmation runs. Pure.

A block is a fresh start's estimate of its rate, or its QPS in a closed loop. The k-th blocks of both have the same
traffic and are made one after the other, so that what they read high, and what slows the machine, falls on both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from tuner.candidate import Candidate
from tuner.load.quantiles import student_t
from tuner.measurement import LoadKind
from tuner.study.accuracy import BEST_ACCURACY, accuracy
from tuner.study.disturbance import undisturbed_share
from tuner.study.doors import compared_runs, door_cost, quoted_door
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import Disturbance, Gain

PAIR_SPREAD = {LoadKind.CLOSED: 0.015, LoadKind.OPEN: 0.04}
"""Least standard deviation of a pair's log ratio, that of one configuration twice on a quiet machine
(docs/measuring.md)."""

PAIRS_KNOWN = 3
"""Pairs that `PAIR_SPREAD` counts for. Two pairs alone would say next to nothing of their spread."""

CONFIDENCE = 0.95

SURE = 0.05
"""Half-width of an interval that is worth no further pair though it includes 0."""

OVERRULES = 5
"""Pairs that overrule what the search measured. Most of them cannot fall into one disturbance of twenty minutes."""

MEDIAN_SPREAD = 1.2533
"""Standard error of a median, as a multiple of the mean's."""

MAD_TO_SD = 1.4826
"""Factor from the median absolute deviation to a standard deviation."""

ODD = 2.0
"""Accuracies by which a pair may differ from the others. Beyond it neither of its runs is quoted."""


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
        # Of two pairs nobody knows which one is odd.
        shown = (pair.claims, pair.blocks if len(logs) > 2 else None)
        allowed = ODD * _accuracy(plan, pair.theirs.block)
        if any(log is not None and abs(log - middle) > allowed for log in shown):
            odd |= {pair.ours.trial, pair.theirs.trial}
    return frozenset(odd)


def gain(plan: StudyPlan, records: Sequence[TrialRecord], winner: Candidate) -> Gain | None:
    """Return the gain of a candidate over the default. None before the first pair."""
    logs = [log for pair in _pairs(plan, records, winner) if (log := pair.blocks) is not None]
    if not logs:
        return None
    middle = median(logs)
    deviation = MAD_TO_SD * median(abs(x - middle) for x in logs)
    known, more, least = PAIRS_KNOWN, len(logs) - 1, PAIR_SPREAD[plan.load.kind]
    variance = (known * least**2 + more * max(deviation, least) ** 2) / (known + more)
    error = math.sqrt(variance / len(logs)) * (MEDIAN_SPREAD if len(logs) > 2 else 1.0)
    half = student_t(known + more, CONFIDENCE) * error
    low, high = math.expm1(middle - half), math.expm1(middle + half)
    return Gain(low, math.expm1(middle), high, len(logs))


def is_settled(plan: StudyPlan, records: Sequence[TrialRecord], winner: Candidate) -> bool:
    """Return True if more pairs are not needed: the gain's sign or size is known, and the search saw the same."""
    found = gain(plan, records, winner)
    if found is None or not is_plausible(plan, records, winner):
        return False
    return found.low > 0 or found.high < 0 or _half(found) <= SURE


def is_plausible(plan: StudyPlan, records: Sequence[TrialRecord], winner: Candidate) -> bool:
    """Return True if the pairs agree with what the search saw, or overrule it."""
    found, expected = gain(plan, records, winner), _searched_gain(plan, records, winner)
    if found is None or expected is None or found.pairs >= OVERRULES:
        return True
    tolerance = _half(found) + _accuracy(plan, _worth(plan, records, winner))
    return abs(math.log1p(found.middle) - expected) <= tolerance


def _half(found: Gain) -> float:
    """Return the half-width of the interval of a log ratio."""
    return (found.high - found.low) / 2 / (1 + found.middle)


def disturbed(plan: StudyPlan, records: Sequence[TrialRecord], winner: Candidate) -> Disturbance | None:
    """Return the time of the confirmation runs that decided nothing or whose pair is odd. None without one."""
    odd = odd_trials(plan, records, winner)
    undecided = (TrialOutcome.INVALID, TrialOutcome.UNDECIDED)
    runs = [r for r in records if r.role is Role.CONFIRM and (r.trial in odd or r.outcome in undecided)]
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


def _accuracy(plan: StudyPlan, rate: float | None) -> float:
    return accuracy(rate, plan.load) if rate else BEST_ACCURACY
