"""Clock protocol, and the clock of this machine."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Source of time that a test can script."""

    def now_ns(self) -> int:
        """Return monotonic nanoseconds, for durations only."""
        ...

    def wall(self) -> datetime:
        """Return the time of day in UTC, for records."""
        ...

    def sleep(self, seconds: float) -> None: ...


class RealClock:
    """Clock of this machine."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def wall(self) -> datetime:
        return datetime.now(UTC)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
