"""Levels: what one load on one running server showed."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.load.drive import Samples
from tuner.measurement import LoadKind, Measurement
from tuner.telemetry.sampler import Telemetry
from tuner.verdict import Outcome, Verdict


@dataclass(frozen=True, slots=True)
class Level:
    """One load, measured and judged: for records."""

    measurement: Measurement
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class LevelRun:
    """Finished level with everything that was seen, for files and progress."""

    measurement: Measurement
    verdict: Verdict
    samples: Samples
    telemetry: Telemetry

    @property
    def level(self) -> Level:
        return Level(self.measurement, self.verdict)

    @property
    def seconds(self) -> float:
        """Seconds from the first request to the last answer."""
        return (self.samples.drained_ns - self.samples.started_ns) / 1e9


def asked(levels: tuple[Level, ...]) -> tuple[Level, ...]:
    """Return the levels that had limits to keep. The closed loop before an open one only fills the server. What was
    measured again is left out."""
    limited = tuple(level for level in levels if level.measurement.load.kind is LoadKind.OPEN) or levels
    return tuple(level for level in limited if level.verdict.outcome is not Outcome.INVALID) or limited


def lowest(levels: tuple[Level, ...]) -> Level | None:
    """Return the lowest load that had limits to keep; None without one."""
    return min(asked(levels), key=lambda level: level.measurement.load.level, default=None)


def best_of(levels: tuple[Level, ...]) -> int | None:
    """Return the index of the feasible level with the highest QPS; None if none is feasible."""
    feasible = [
        (level.measurement.qps, i)
        for i, level in enumerate(levels)
        if level.verdict.outcome is Outcome.FEASIBLE and level.measurement.qps is not None
    ]
    return max(feasible)[1] if feasible else None
