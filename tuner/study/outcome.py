"""What the search is told of a trial: one table from outcome to value and constraints (search.md section 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuner.study.record import Level, TrialOutcome, TrialRecord

CONSTRAINTS = ("start", "slo", "preemption")
"""In this order and always all three: Optuna's GP takes constraints by position (search.md 1.2)."""

_MARGIN_CAP = 2.0
_NOT_SHOWN_FEASIBLE = 0.05


@dataclass(frozen=True, slots=True)
class Told:
    """`value` is QPS; constraints are kept at or below 0. `imputed` values were never measured."""

    value: float
    constraints: tuple[float, float, float]
    imputed: bool


def told(record: TrialRecord, nearest: Told | None) -> Told | None:
    """None: the search learns nothing from it (FAIL). `nearest` is the closest trial that was measured, if any.

    A refused or crashed start is a broken first constraint and otherwise looks like its measured neighbour: told as a
    failure it would be proposed again, told as 0 QPS it would drag down the model next to the best region.
    """
    match record.outcome:
        case TrialOutcome.REFUSED | TrialOutcome.DIED:
            like = nearest or Told(0.0, (1.0, 0.0, -0.02), imputed=True)
            return Told(like.value, (1.0, *like.constraints[1:]), imputed=True)
        case TrialOutcome.FEASIBLE | TrialOutcome.INFEASIBLE | TrialOutcome.UNDECIDED if record.levels:
            return _measured(record)
        case _:
            return None


def _measured(record: TrialRecord) -> Told | None:
    level = record.levels[record.best] if record.best is not None else record.levels[0]
    if level.measurement.qps is None:
        return None
    slo, preemption = _slo(level), _preemption(level)
    if record.best is None and slo <= 0 and preemption <= 0:
        slo = _NOT_SHOWN_FEASIBLE  # failed requests or too few: it must not pass for a feasible point
    return Told(level.measurement.qps, (-1.0, slo, preemption), imputed=False)


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
