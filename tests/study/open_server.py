"""Made-up servers under open loop, whose capacity is a formula: real search, claim and answer, no process."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.study.builders import landscape, level, plan, record
from tuner.bench.capacity_search import ProbeResult, Saturation, Stop
from tuner.bench.task import ClaimRate, Saturate, SearchCapacity
from tuner.measurement import Load, LoadKind
from tuner.study.assignment import Assignment
from tuner.study.open_loop import OpenLoopResult
from tuner.study.plan import OpenSearch, StudyPlan
from tuner.study.record import Level, TrialOutcome, TrialRecord, best_of

LIMIT_MS = 500.0
STEEPNESS = 20.0
"""1 % more load makes the P99 20 % longer."""


def open_plan(folder: Path, *, starts: int = 12, confirm_starts: int = 4, groups: int = 1) -> StudyPlan:
    made = plan(folder, starts=starts, confirm_starts=confirm_starts, groups=groups)
    return replace(made, load=OpenSearch(0.0))


def open_level(rate: float, p99_ms: float = 300.0, preemptions: int | None = 0) -> Level:
    made = level(rate, p99_ms, preemptions)
    return replace(made, measurement=replace(made.measurement, load=Load(LoadKind.OPEN, rate)))


@dataclass
class OpenServer:
    """It saturates at 1.25 times its capacity. On a trace that is not the search's it has `fresh_share` of it."""

    capacity: float
    fresh_share: float = 0.98
    levels: list[Level] = field(default_factory=list)

    def probe(self, rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        share = 1.0 if trace == "search" else self.fresh_share
        p99_ms = LIMIT_MS * (rate / (share * self.capacity)) ** STEEPNESS
        self.levels.append(open_level(rate, p99_ms))
        return ProbeResult(rate, p99_ms <= LIMIT_MS, math.log(p99_ms / LIMIT_MS), seconds)

    def saturate(self, seconds: float) -> Saturation:
        self.levels.append(level(1.25 * self.capacity, 9 * LIMIT_MS, concurrency=320))
        return Saturation(1.25 * self.capacity, 2.0)


def capacity(assignment: Assignment) -> float | None:
    """By the landscape of builders.py: 40 requests/s at its peak, None where nothing starts."""
    found = landscape(assignment)
    return 0.4 * (found.levels[0].measurement.qps or 0.0) if found.levels else None


def open_trial(assignment: Assignment, *, fresh_share: float = 0.98) -> TrialRecord:
    """What the trial runner records of such a server."""
    found, refused = capacity(assignment), landscape(assignment)
    if found is None:
        return refused
    server, answer = OpenServer(found, fresh_share), OpenLoopResult(assignment.incumbent)
    made = record(
        assignment.trial,
        assignment.candidate,
        role=assignment.role,
        search_trial=assignment.search_trial,
        group=assignment.group,
    )
    task = assignment.task
    if isinstance(task, Saturate):
        server.saturate(task.seconds)
        levels = tuple(server.levels)
        return replace(made, levels=levels, best=best_of(levels), outcome=TrialOutcome.INFEASIBLE)
    assert isinstance(task, SearchCapacity | ClaimRate)
    estimate = task.estimate if isinstance(task, ClaimRate) else None
    answer.find(server.probe, server.saturate, task.settings, estimate)
    outcome = answer.outcome(server.levels)
    return replace(
        made,
        levels=tuple(server.levels),
        best=answer.best(server.levels),
        outcome=outcome,
        notes=tuple(answer.notes(outcome)),
        capacity=answer.capacity,
        incumbent=assignment.incumbent,
        claim=answer.claim,
    )
