"""Stand-ins that tests and benchmarks share."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from tuner.telemetry.gpu import GpuHolders, GpuReading


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
