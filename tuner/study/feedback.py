"""Feedback of a trial to the search: one table from outcome to value and constraints (docs/search.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuner.bench.level import Level, lowest
from tuner.measurement import LoadKind
from tuner.study.record import TrialOutcome, TrialRecord

CONSTRAINTS = ("start", "slo", "preemption")
"""Names of the constraints, always all three in this order: Optuna's GP takes them by position."""

_MARGIN_CAP = 2.0
_NOT_SHOWN_FEASIBLE = 0.05
_BEHIND = 0.99
"""Share of the best that a race's loser without an estimate gets."""
_KEPT = (-1.0, -0.05, -0.02)
"""Constraints of a start that broke nothing at its own load."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """Answer to a proposal. `value` is QPS; constraints are kept at or below 0. `imputed` values were never
    measured."""

    value: float
    constraints: tuple[float, float, float]
    imputed: bool


def feedback_for(record: TrialRecord, nearest: Feedback | None) -> Feedback | None:
    """Return the feedback, None if the search learns nothing (FAIL). `nearest` is the closest measured trial.

    A refused or crashed start violates the first constraint and otherwise looks like its measured neighbour. As FAIL
    it would be proposed again; with 0 QPS it would drag down the model next to the best region.
    """
    match record.outcome:
        case TrialOutcome.REFUSED | TrialOutcome.DIED:
            return not_started(nearest)
        case TrialOutcome.BEHIND:
            return _behind(record)
        case TrialOutcome.FEASIBLE | TrialOutcome.INFEASIBLE | TrialOutcome.UNDECIDED if record.levels:
            return _measured(record)
        case _:
            return None


def not_started(nearest: Feedback | None) -> Feedback:
    """Return the feedback of a refused start, or of an excluded one."""
    like = nearest or Feedback(0.0, (1.0, 0.0, -0.02), imputed=True)
    return Feedback(like.value, (1.0, *like.constraints[1:]), imputed=True)


def _behind(record: TrialRecord) -> Feedback | None:
    """Return what a race's loser is likely to sustain, at most the best. As FAIL it would come again. As just behind
    the best, all losers would look alike to the model."""
    capacity, best = record.capacity, record.incumbent
    if capacity is None or best is None:
        return None
    value = capacity.likely
    if value is None:  # it was not raced, or nothing limits a wait
        expected = capacity.saturation * best.rate / best.saturation
        lost_at = best.rate if capacity.failed is None else capacity.failed
        value = min(expected, lost_at, _BEHIND * best.rate)
    return Feedback(record.replicas * value, _KEPT, imputed=False)


def _measured(record: TrialRecord) -> Feedback | None:
    level = _level(record)
    if level is None or level.measurement.qps is None:
        return None
    slo, preemption = _slo(level), _preemption(level)
    if record.best is None and slo <= 0 and preemption <= 0:
        slo = _NOT_SHOWN_FEASIBLE  # failed requests or too few: it must not pass for a feasible point
    value = record.replicas * level.measurement.qps if record.qps is None else record.qps
    return Feedback(value, (-1.0, slo, preemption), imputed=False)


def _level(record: TrialRecord) -> Level | None:
    """Return the level that counts, else the lowest. None if an open-loop trial tried no rate."""
    if record.best is not None:
        return record.levels[record.best]
    level = lowest(record.levels)
    nothing_open = record.capacity is not None and level is not None and level.measurement.load.kind is LoadKind.CLOSED
    return None if nothing_open else level


def _slo(level: Level) -> float:
    margin = level.verdict.slo_margin
    return _MARGIN_CAP if margin is None else min(max(margin, -_MARGIN_CAP), _MARGIN_CAP)


def _preemption(level: Level) -> float:
    server = level.measurement.server
    if server.preemptions is None:
        return _NOT_SHOWN_FEASIBLE
    if server.preemptions:
        return 0.15 + 0.25 * math.log1p(server.preemptions)
    return min(-0.02, (server.kv_usage_peak or 0.0) - 1.0)
