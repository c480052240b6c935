"""Gain of a candidate over the default, from paired blocks of their confirmation runs. Pure.

A block is a fresh start's estimate of its rate, or its QPS in a closed loop. The k-th blocks of both have the same
traffic and are made one after the other, so that what they read high, and what slows the machine, falls on both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from statistics import median

from tuner.candidate import Candidate
from tuner.load.quantiles import student_t
from tuner.study.accuracy import BEST_ACCURACY, accuracy
from tuner.study.disturbance import undisturbed_share
from tuner.study.doors import compared_runs, door_cost, quoted_door
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import Disturbance, Gain

PAIR_SPREAD = 0.015
"""Standard deviation of a pair's log ratio on a quiet machine (docs/measuring.md)."""

PAIRS_KNOWN = 3
"""Pairs that `PAIR_SPREAD` counts for. Two pairs alone would say next to nothing of their spread."""

CONFIDENCE = 0.95

OVERRULES = 5
"""Pairs that overrule what the search measured. Most of them cannot fall into one disturbance of twenty minutes."""

MEDIAN_SPREAD = 1.2533
"""Standard error of a median, as a multiple of the mean's."""

MAD_TO_SD = 1.4826
"""Factor from the median absolute deviation to a standard deviation."""

STEADY = 2.0
"""Accuracies by which a run may differ from the others of its candidate and still count."""


def steady_runs(plan: StudyPlan, records: Sequence[TrialRecord], candidate: Candidate) -> list[TrialRecord]:
    """List a candidate's runs through its quoted door that agree with each other. What it is quoted with comes from
    them. A run differs if its block is far from most others, or if it could not claim what its block promised."""
    runs = compared_runs(records, candidate, quoted_door(plan, records, candidate))
    blocks = [r.block for r in runs if r.block]
    middle = median(blocks) if len(blocks) > 2 else None
    shares = [share for r in records if r.role is Role.CONFIRM and (share := _claimed_share(r)) is not None]
    usual = median(shares) if len(shares) > 2 else None
    return [
        r
        for r in runs
        if _agrees(plan, r.block, middle, r.block)
        and (_agrees(plan, _claimed_share(r), usual, r.block) or (_claimed_share(r) or 0.0) >= (usual or 0.0))
    ]


def gain(plan: StudyPlan, records: Sequence[TrialRecord], winner: Candidate) -> Gain | None:
    """Return the gain of a candidate over the default. None before the first pair."""
    logs = _pairs(plan, records, winner)
    if not logs:
        return None
    middle = median(logs)
    deviation = MAD_TO_SD * median(abs(x - middle) for x in logs)
    known, more = PAIRS_KNOWN, len(logs) - 1
    variance = (known * PAIR_SPREAD**2 + more * deviation**2) / (known + more)
    error = math.sqrt(variance / len(logs)) * (MEDIAN_SPREAD if len(logs) > 2 else 1.0)
    half = student_t(known + more, CONFIDENCE) * error
    low, high = math.expm1(middle - half), math.expm1(middle + half)
    return Gain(low, math.expm1(middle), high, len(logs))


def is_settled(plan: StudyPlan, records: Sequence[TrialRecord], winner: Candidate) -> bool:
    """Return True if more pairs are not needed: the gain's sign or size is known, and the search saw the same."""
    found = gain(plan, records, winner)
    if found is None:
        return False
    half = (found.high - found.low) / 2 / (1 + found.middle)
    expected = _searched_gain(plan, records, winner)
    tolerance = half + _accuracy(plan, _worth(plan, records, winner))
    if expected is not None and abs(math.log1p(found.middle) - expected) > tolerance and found.pairs < OVERRULES:
        return False
    return found.low > 0 or found.high < 0 or half <= _accuracy(plan, _worth(plan, records, winner))


def disturbed(plan: StudyPlan, records: Sequence[TrialRecord], candidates: Sequence[Candidate]) -> Disturbance | None:
    """Return the time of the confirmation runs that decided nothing or differ from the others. None without one."""
    steady = {r.trial for candidate in candidates for r in steady_runs(plan, records, candidate)}
    undecided = (TrialOutcome.INVALID, TrialOutcome.UNDECIDED, TrialOutcome.FEASIBLE)
    runs = [
        r
        for r in records
        if r.role is Role.CONFIRM
        and r.candidate in candidates
        and r.outcome in undecided
        and r.trial not in steady
        and r.start.door is quoted_door(plan, records, r.candidate)
    ]
    if not runs:
        return None
    begins = [datetime.fromisoformat(r.start.started_at) for r in runs]
    ends = [at + timedelta(seconds=r.start.phases.spent_s) for at, r in zip(begins, runs, strict=True)]
    return Disturbance(min(begins).isoformat(timespec="seconds"), max(ends).isoformat(timespec="seconds"))


def _pairs(plan: StudyPlan, records: Sequence[TrialRecord], winner: Candidate) -> list[float]:
    """Return ln(winner / default) of every pair of blocks."""
    ours, theirs = (
        compared_runs(records, candidate, quoted_door(plan, records, candidate))
        for candidate in (winner, plan.baseline)
    )
    return [math.log(a.block / b.block) for a, b in zip(ours, theirs, strict=False) if a.block and b.block]


def _claimed_share(record: TrialRecord) -> float | None:
    """Return the share of its block that a run claimed. None without a claim."""
    return record.qps / record.block if record.claim and record.qps and record.block else None


def _agrees(plan: StudyPlan, value: float | None, middle: float | None, rate: float | None) -> bool:
    if middle is None or value is None:
        return True
    return abs(math.log(value / middle)) <= STEADY * _accuracy(plan, rate)


def _searched_gain(plan: StudyPlan, records: Sequence[TrialRecord], winner: Candidate) -> float | None:
    """Return ln(winner / default) by the search, with what the door takes. None if one of them is unknown."""
    ours, theirs = _worth(plan, records, winner), _worth(plan, records, plan.baseline)
    return math.log(ours / theirs) if ours and theirs else None


def _worth(plan: StudyPlan, records: Sequence[TrialRecord], candidate: Candidate) -> float | None:
    found = next((r for r in records if r.role.searches and r.candidate == candidate and r.qps), None)
    if found is None or found.qps is None:
        return None
    cost = door_cost(plan, records, candidate)
    return found.qps * undisturbed_share(plan, records, found) * (1 - (cost or 0.0))


def _accuracy(plan: StudyPlan, rate: float | None) -> float:
    return accuracy(rate, plan.load) if rate else BEST_ACCURACY
