"""Simulated open-loop servers with a known capacity: real search, claim and trial, no process."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.fakes import ScriptedClock, ScriptedServers, scripted_trial
from tests.study.builders import BASE, landscape, level, plan
from tuner.bench.capacity_search import ProbeResult, Saturation, Stop
from tuner.bench.level import Level
from tuner.bench.measured import Measured, measure_task
from tuner.bench.task import Task
from tuner.load.prompts import SEARCH_TRACE
from tuner.measurement import Load, LoadKind
from tuner.study.assignment import Assignment
from tuner.study.plan import OpenSearch, StudyPlan
from tuner.study.record import TrialRecord

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
    """Session that saturates at 1.25 times its capacity. On the traces of a claim it has `fresh_share`."""

    capacity: float
    fresh_share: float = 0.98
    clock: ScriptedClock = field(default_factory=ScriptedClock)
    levels: list[Level] = field(default_factory=list)
    seconds: float = 0.0
    waited_s: float = 0.0

    def run(self, task: Task) -> Measured:
        measured = measure_task(task, self)
        self.clock.sleep(3.0)
        return replace(measured, seconds=2.0)

    def warm_up(self, task: Task) -> None:
        pass

    def closed(self, concurrency: int, seconds: float) -> Level:
        raise AssertionError("no ladder is asked of an open-loop server")

    def probe(self, rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        share = 1.0 if trace.startswith(SEARCH_TRACE) else self.fresh_share
        p99_ms = LIMIT_MS * (rate / (share * self.capacity)) ** STEEPNESS
        self.levels.append(open_level(rate, p99_ms))
        return ProbeResult(rate, p99_ms <= LIMIT_MS, math.log(p99_ms / LIMIT_MS), seconds)

    def saturate(self, seconds: float) -> Saturation:
        self.levels.append(level(1.25 * self.capacity, 9 * LIMIT_MS, concurrency=320))
        return Saturation(1.25 * self.capacity, 2.0)


def capacity(assignment: Assignment) -> float | None:
    """Return the rate by the landscape of builders.py: 40 requests/s at its peak, None where nothing starts."""
    found = landscape(assignment)
    return 0.4 * (found.levels[0].measurement.qps or 0.0) if found.levels else None


def open_trial(assignment: Assignment, *, fresh_share: float = 0.98) -> TrialRecord:
    """Make a trial of such a server."""
    found = capacity(assignment)
    if found is None:
        return landscape(assignment)
    clock = ScriptedClock()
    server = OpenServer(found, fresh_share, clock)
    return scripted_trial(assignment, BASE, ScriptedServers(lambda _: server, clock))
