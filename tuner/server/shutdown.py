"""End of a family of processes, with a report."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tuner.clock import Clock
from tuner.server import proctable
from tuner.server.family import Family
from tuner.server.gpu_memory import MemoryEnd
from tuner.server.proctable import ProcessEntry

SETTLE_S = 2.0
"""Seconds for helpers of a dead leader. Python's resource tracker removes its /dev/shm files then."""
ORPHAN_GRACE_S = 5.0
"""Seconds for orphans after their own SIGTERM."""
KILL_LIMIT_S = 15.0
"""Seconds of repeated SIGKILL before a process counts as left."""
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class StopReport:
    """The end of a server. `killed` and `left` name processes, `removed` names files.

    `memory` is None if nothing was measured.
    `exit_code` is negative for a signal, None if it is not known.
    """

    seconds: float
    killed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    memory: MemoryEnd | None = None
    exit_code: int | None = None

    @property
    def is_clean(self) -> bool:
        """Return True if the next start finds nothing left."""
        return not self.remains

    @property
    def remains(self) -> tuple[str, ...]:
        """Name what the next start would find: processes, and GPUs that cannot be used."""
        return (*self.left, *([self.memory] if self.memory in (MemoryEnd.LEFT, MemoryEnd.UNREADABLE) else []))


def joined(reports: Sequence[StopReport]) -> StopReport:
    """Join the reports of several servers."""
    if len(reports) == 1:
        return reports[0]
    memory = [report.memory for report in reports if report.memory is not None]
    return StopReport(
        seconds=max((report.seconds for report in reports), default=0.0),
        killed=tuple(name for report in reports for name in report.killed),
        left=tuple(name for report in reports for name in report.left),
        removed=tuple(name for report in reports for name in report.removed),
        memory=max(memory, key=tuple(MemoryEnd).index, default=None),
        exit_code=next((report.exit_code for report in reports if report.exit_code), None),
    )


@dataclass(frozen=True, slots=True)
class ForcedEnd:
    """Killed processes, and processes that survived even that."""

    killed: tuple[str, ...]
    left: tuple[str, ...]


def end_family(family: Family, *, grace_s: float, clock: Clock, before_kill: Callable[[], None]) -> ForcedEnd:
    """Send SIGTERM to leader, then orphans, then SIGKILL to all.

    Only the leader is asked first: it ends the others in its own order. `before_kill` runs before the first SIGKILL,
    the last moment to see which files the processes use.
    """
    leader = next((p for p in family.living() if p.pid == family.leader_pid), None)
    if leader is not None:
        proctable.send_signal(leader, signal.SIGTERM)
        _wait(lambda: not proctable.is_alive(leader), grace_s, clock)
    if leader is None or not proctable.is_alive(leader):
        _end_orphans(family, clock)
    return _kill(family, clock, before_kill)


def _end_orphans(family: Family, clock: Clock) -> None:
    """Ask the orphans. An engine whose API server died frees its memory and files when asked, never by itself."""

    def all_gone() -> bool:
        family.reap_adopted()
        return not family.living()

    if _wait(all_gone, SETTLE_S, clock):
        return
    for process in family.living():
        proctable.send_signal(process, signal.SIGTERM)
    _wait(all_gone, ORPHAN_GRACE_S, clock)


def _kill(family: Family, clock: Clock, before_kill: Callable[[], None]) -> ForcedEnd:
    killed: dict[int, ProcessEntry] = {}
    living = family.living()
    if living:
        before_kill()
    deadline_ns = clock.now_ns() + round(KILL_LIMIT_S * 1e9)
    # A process may fork between our look and our signal: hence pass after pass.
    while living and clock.now_ns() < deadline_ns:
        for process in living:
            killed[process.pid] = process
            proctable.send_signal(process, signal.SIGKILL)
        clock.sleep(_POLL_S / 2)
        living = family.living()
        if living and all(proctable.is_foreign(process.pid) for process in living):
            break  # another user's, as behind sudo: no signal reaches it
    family.reap_adopted()
    left = {process: " of another user" * proctable.is_foreign(process.pid) for process in living}
    killed_ones = [process for process in killed.values() if process not in left]
    return ForcedEnd(tuple(map(str, killed_ones)), tuple(f"{process}{whose}" for process, whose in left.items()))


def _wait(condition: Callable[[], bool], limit_s: float, clock: Clock) -> bool:
    """Wait for the condition. Returns False if the limit passed."""
    deadline_ns = clock.now_ns() + round(limit_s * 1e9)
    while not condition():
        if clock.now_ns() >= deadline_ns:
            return False
        clock.sleep(_POLL_S)
    return True
