"""Record of one server's start, from launch to remains."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.launch import LaunchSpec
from tuner.vllm.cause import Cause
from tuner.vllm.facts import StartFacts


@dataclass(frozen=True, slots=True)
class Phases:
    """Seconds of each phase, None if it was never entered."""

    start_s: float | None = None
    warm_up_s: float | None = None
    measure_s: float | None = None
    stop_s: float | None = None

    @property
    def spent_s(self) -> float:
        return sum(s for s in (self.start_s, self.warm_up_s, self.measure_s, self.stop_s) if s is not None)


@dataclass(frozen=True, slots=True)
class StartRecord:
    """One start of one server. `group` is the name of its GPU group.

    Attributes:
        facts: What the server's log said about itself. None if it did not get ready.
        cause: Why it did not start, or died. None if nothing failed.
        dirty: What it left on the machine. None if nothing; otherwise its group is not used again in this run.
    """

    launch: LaunchSpec
    group: str
    started_at: str
    phases: Phases
    facts: StartFacts | None = None
    cause: Cause | None = None
    dirty: str | None = None

    @property
    def got_ready(self) -> bool:
        """Return True if the server became ready."""
        return self.phases.warm_up_s is not None
