"""Clock protocol, the real clock (integer monotonic ns) and a scripted clock for tests."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def now_ns(self) -> int:
        """Monotonic nanoseconds: for durations only."""
        ...

    def wall(self) -> datetime:
        """Time of day, UTC: for records a person reads."""
        ...

    def sleep(self, seconds: float) -> None: ...


class RealClock:
    def now_ns(self) -> int:
        return time.monotonic_ns()

    def wall(self) -> datetime:
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class ScriptedClock:
    """Moves only when something sleeps: a test of an hour's timeout takes no time."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed_ns = 0

    def now_ns(self) -> int:
        return self._elapsed_ns

    def wall(self) -> datetime:
        return datetime.fromtimestamp(self._start.timestamp() + self._elapsed_ns / 1e9, UTC)

    def sleep(self, seconds: float) -> None:
        self._elapsed_ns += round(seconds * 1e9)
