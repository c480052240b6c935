"""Ends a family of processes: asks, waits, asks the orphans, kills, and says what is left."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

from tuner.clock import Clock
from tuner.server import proctable
from tuner.server.family import Family
from tuner.server.proctable import ProcessEntry

SETTLE_S = 2.0
"""What helpers get once their leader has gone: Python's resource tracker removes its /dev/shm files then."""
ORPHAN_GRACE_S = 5.0
KILL_LIMIT_S = 15.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class StopReport:
    """How a server ended. `killed` and `left` name processes, `removed` files.

    `memory_back`: whether the GPUs' memory is back at what was used before the start; None where there is no GPU or
    nothing was measured. `exit_code` as subprocess gives it (negative: signal), None when it is not known.
    """

    seconds: float
    killed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    memory_back: bool | None = None
    exit_code: int | None = None

    @property
    def is_clean(self) -> bool:
        """Nothing of the server is left on the machine that the next start would trip over."""
        return not self.left and self.memory_back is not False


@dataclass(frozen=True, slots=True)
class Ended:
    killed: tuple[str, ...]
    left: tuple[str, ...]


def end_family(family: Family, *, grace_s: float, clock: Clock, before_kill: Callable[[], None]) -> Ended:
    """SIGTERM to the leader and `grace_s`; then to its orphans; then SIGKILL until a whole pass finds nobody.

    Only the leader is asked first: it ends the others in its own order. `before_kill` runs when something has to be
    killed, the last moment to see which files it uses.
    """
    leader = next((p for p in family.living() if p.pid == family.leader_pid), None)
    if leader is not None:
        proctable.send_signal(leader, signal.SIGTERM)
        _wait(lambda: not proctable.is_alive(leader), grace_s, clock)
    if leader is None or not proctable.is_alive(leader):
        _end_orphans(family, clock)
    return _kill(family, clock, before_kill)


def _end_orphans(family: Family, clock: Clock) -> None:
    """An engine whose API server died frees its GPU memory and files when asked; it would not end by itself."""

    def all_gone() -> bool:
        family.reap_adopted()
        return not family.living()

    if _wait(all_gone, SETTLE_S, clock):
        return
    for process in family.living():
        proctable.send_signal(process, signal.SIGTERM)
    _wait(all_gone, ORPHAN_GRACE_S, clock)


def _kill(family: Family, clock: Clock, before_kill: Callable[[], None]) -> Ended:
    killed: dict[int, ProcessEntry] = {}
    living = family.living()
    if living:
        before_kill()
    deadline_ns = clock.now_ns() + round(KILL_LIMIT_S * 1e9)
    # Pass after pass: a process may fork between our look and our signal.
    while living and clock.now_ns() < deadline_ns:
        for process in living:
            killed[process.pid] = process
            proctable.send_signal(process, signal.SIGKILL)
        clock.sleep(_POLL_S / 2)
        living = family.living()
    family.reap_adopted()
    return Ended(tuple(map(str, killed.values())), tuple(map(str, living)))


def _wait(condition: Callable[[], bool], limit_s: float, clock: Clock) -> bool:
    """Whether the condition came true within the limit."""
    deadline_ns = clock.now_ns() + round(limit_s * 1e9)
    while not condition():
        if clock.now_ns() >= deadline_ns:
            return False
        clock.sleep(_POLL_S)
    return True
