"""Disturbance of a layout's servers by each other, from its check. Pure functions of plan and records."""

from __future__ import annotations

from collections.abc import Iterable

from tuner.candidate import Candidate
from tuner.layout import Layout
from tuner.measurement import LoadKind, Measurement
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialRecord


def kept(plan: StudyPlan, records: Iterable[TrialRecord], layout: Layout) -> float | None:
    """Return the share of its QPS that the slowest of a layout's servers keeps while all of them are loaded. None if
    that was not measured."""
    mine = [r for r in records if plan.layout_of(r.candidate) == layout]
    defaults = (in_closed_loop(r) for r in mine if r.role is Role.DEFAULT and r.levels)
    alone = next((level for level in defaults if level is not None), None)
    together = [r.levels[0].measurement.qps for r in mine if r.role is Role.CHECK and r.levels]
    slowest = min((qps for qps in together if qps is not None), default=None)
    if alone is None or not alone.qps or slowest is None:
        return None
    return min(1.0, slowest / alone.qps)


def in_closed_loop(record: TrialRecord) -> Measurement | None:
    """Return the level that the servers of a layout repeat together. It is the one that counts, or the saturation.
    None if there is neither."""
    closed = [level.measurement for level in record.levels if level.measurement.load.kind is LoadKind.CLOSED]
    return record.best_level if record.best_level in closed else next(iter(closed), None)


def runs_alone(plan: StudyPlan, role: Role, candidate: Candidate) -> bool:
    """Return True if nothing runs beside a trial of the search: the study's first, and what a check is compared
    with."""
    several = plan.layout_of(candidate).replicas > 1
    return role is Role.DEFAULT and (several or candidate == plan.baseline)


def undisturbed_share(plan: StudyPlan, records: Iterable[TrialRecord], record: TrialRecord) -> float:
    """Return the share of a trial's figures that the whole machine would keep. 1 if it ran beside other servers, whose
    disturbance is in its figures already, and for a layout of one server."""
    layout = plan.layout_of(record.candidate)
    if layout.replicas == 1 or not runs_alone(plan, record.role, record.candidate):
        return 1.0
    return kept(plan, records, layout) or 1.0
