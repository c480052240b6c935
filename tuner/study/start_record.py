"""Record of a start, from launch to remains."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.launch import Door, LaunchSpec
from tuner.vllm import knobs
from tuner.vllm.cause import Cause
from tuner.vllm.facts import StartFacts
from tuner.vllm.flags import UNKNOWN_VERSION


@dataclass(frozen=True, slots=True)
class Phases:
    """Seconds of each phase, None if it was never entered. `wait_s` is the wait for a quiet machine between loads."""

    start_s: float | None = None
    warm_up_s: float | None = None
    measure_s: float | None = None
    stop_s: float | None = None
    wait_s: float | None = None

    @property
    def spent_s(self) -> float:
        return sum(s for s in (self.start_s, self.warm_up_s, self.measure_s, self.stop_s, self.wait_s) if s is not None)


@dataclass(frozen=True, slots=True)
class StartRecord:
    """One start of a server, or of several behind a door. `group` names its place.

    Attributes:
        launch: Launch of the server, of several the first.
        facts: What the server's log said about itself, of several the first. None if it did not get ready.
        cause: Why it did not start, or died. None if nothing failed.
        others: Launches of the other servers. Empty if there is one.
        vllm_version: Version that was started. Empty in older records.
        dirty: What it left on the machine. None if nothing; otherwise its group is not used again in this run.
    """

    launch: LaunchSpec
    group: str
    started_at: str
    phases: Phases
    facts: StartFacts | None = None
    cause: Cause | None = None
    dirty: str | None = None
    others: tuple[LaunchSpec, ...] = ()
    door: Door = Door.SERVER
    vllm_version: str = ""

    @property
    def version(self) -> str | None:
        """Return the version of vLLM, as the command or else the log says it."""
        if self.vllm_version not in ("", UNKNOWN_VERSION):
            return self.vllm_version
        return self.facts.vllm_version if self.facts is not None else None

    @property
    def launches(self) -> tuple[LaunchSpec, ...]:
        """Return the launches of all servers."""
        return (self.launch, *self.others)

    @property
    def servers(self) -> int:
        """Return the number of servers, of which vLLM's own door has several in one launch."""
        return sum(n if isinstance(n := launch.value(knobs.DATA_PARALLEL), int) else 1 for launch in self.launches)

    @property
    def gpus(self) -> tuple[int, ...]:
        """Return the GPUs of all servers."""
        return tuple(gpu for launch in self.launches for gpu in launch.gpus)

    @property
    def got_ready(self) -> bool:
        """Return True if the server became ready."""
        return self.phases.warm_up_s is not None
