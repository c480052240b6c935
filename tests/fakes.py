"""Stand-ins that tests and benchmarks share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from tuner.bench.measured import Session
from tuner.launch import Deployment, LaunchBase
from tuner.server.service import ServerDidNotStart
from tuner.server.shutdown import StopReport
from tuner.study.assignment import Assignment
from tuner.study.record import TrialRecord
from tuner.study.trial import ReadyServer, TrialRunner
from tuner.telemetry.gpu import GpuHolders, GpuReading
from tuner.vllm.cause import Cause
from tuner.vllm.facts import StartFacts


class ScriptedClock:
    """Clock that moves only when something sleeps: a test of an hour's timeout takes no time."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed_ns = 0

    def now_ns(self) -> int:
        return self._elapsed_ns

    def wall(self) -> datetime:
        return datetime.fromtimestamp(self._start.timestamp() + self._elapsed_ns / 1e9, UTC)

    def sleep(self, seconds: float) -> None:
        self._elapsed_ns += round(seconds * 1e9)


class RecordedGpu:
    """GPU adapter that gives earlier readings back one after the other; the last one repeats."""

    def __init__(self, readings: Sequence[tuple[GpuReading, ...]] = ((),), holders: Sequence[GpuHolders] = ()) -> None:
        self._readings = tuple(readings)
        self._holders = tuple(holders)
        self._next = 0

    def read(self, indices: Sequence[int]) -> tuple[GpuReading, ...]:
        reading = self._readings[min(self._next, len(self._readings) - 1)]
        self._next += 1
        return tuple(gpu for gpu in reading if gpu.index in indices)

    def holders(self, indices: Sequence[int]) -> tuple[GpuHolders, ...]:
        return tuple(gpu for gpu in self._holders if gpu.index in indices)

    def used_bytes(self, gpus: tuple[int, ...]) -> dict[int, int] | None:
        return {gpu.index: gpu.memory_used_bytes or 0 for gpu in self.read(gpus)}

    def processes(self, gpus: Sequence[int]) -> dict[int, dict[int, int | None]]:
        return {gpu.index: {p.pid: p.memory_bytes for p in gpu.processes} for gpu in self.holders(gpus)}


@dataclass
class ScriptedServers:
    """`Serve` without a process: `found` tells the refusal of an assignment, or the session of its server."""

    found: Callable[[Assignment], Cause | Session]
    clock: ScriptedClock
    start_s: float = 20.0
    stop_s: float = 1.0
    facts: StartFacts | None = None

    @contextmanager
    def __call__(self, assignment: Assignment, servers: Deployment) -> Iterator[ReadyServer]:
        found = self.found(assignment)
        self.clock.sleep(self.start_s)
        if isinstance(found, Cause):
            self.clock.sleep(self.stop_s)
            raise ServerDidNotStart(found, self.start_s, StopReport(self.stop_s))
        ready = ReadyServer(found, self.start_s, self.facts)
        yield ready
        self.clock.sleep(self.stop_s)
        ready.stopped = StopReport(self.stop_s)


def scripted_trial(assignment: Assignment, base: LaunchBase, servers: ScriptedServers) -> TrialRecord:
    """Make a trial as the product does, on servers without a process."""
    return TrialRunner(base, servers, servers.clock, lambda event: None, threading.Event()).run(assignment)
