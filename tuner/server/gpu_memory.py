"""GPU memory after a server's end: whether it came back, and if not, whose it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Protocol

from tuner.clock import Clock
from tuner.errors import EnvironmentFaultError
from tuner.server import proctable

LIMIT_S = 60.0
"""Seconds for the driver to take memory back, and to answer."""
OTHERS_LIMIT_S = 600.0
"""Seconds for other processes to give memory back. A start costs minutes, and beside them it may be refused."""
SLACK_BYTES = 256 * 2**20
"""Bytes above the baseline that still count as "back". The driver and other processes vary by some tens of MiB."""
_TRIES_S = 15.0
"""Seconds for a driver that does not answer before a start."""
_POLL_S = 0.5

Holders = Mapping[int, Mapping[int, int | None]]
"""Bytes that each process holds, by GPU and process id. None if the driver does not say."""


class GpuMemory(Protocol):
    """Source of the GPU memory in use, which must fall back before the next start."""

    def used_bytes(self, gpus: tuple[int, ...]) -> dict[int, int] | None:
        """Return the bytes in use on each of `gpus`. None if that cannot be observed here. Raises
        EnvironmentFaultError if the driver fails."""
        ...

    def processes(self, gpus: Sequence[int]) -> Holders:
        """Return who holds memory, as far as that can be seen from here."""
        ...


class NoGpuMemory:
    """A machine without GPUs."""

    def used_bytes(self, gpus: tuple[int, ...]) -> dict[int, int] | None:
        return None

    def processes(self, gpus: Sequence[int]) -> Holders:
        return {}


class MemoryEnd(StrEnum):
    """State of the GPU memory that a server used. `OTHERS` hold what is still in use."""

    BACK = "back"
    OTHERS = "held by others"
    LEFT = "GPU memory"
    UNREADABLE = "a GPU that the driver does not read any more"


def baseline(gpu_memory: GpuMemory, gpus: tuple[int, ...], clock: Clock) -> dict[int, int]:
    """Return the bytes in use before a start. Empty if that cannot be observed. Raises EnvironmentFaultError if the
    driver goes on failing."""
    deadline_ns = clock.now_ns() + round(_TRIES_S * 1e9)
    while gpus:
        try:
            return gpu_memory.used_bytes(gpus) or {}
        except EnvironmentFaultError:
            if clock.now_ns() >= deadline_ns:
                raise
        clock.sleep(_POLL_S)
    return {}


def wait_for_memory(
    gpu_memory: GpuMemory,
    before: Mapping[int, int],
    clock: Clock,
    *,
    on_wait: Callable[[str], None] = lambda holders: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> MemoryEnd | None:
    """Wait until each GPU's use is back at `before`. Call it when all processes of the server are gone: what others
    hold is then not the server's. `on_wait` is called once with their names. None if there is nothing to compare."""
    if not before:
        return None
    gpus = tuple(before)
    started_ns = clock.now_ns()
    told = False
    while True:
        state, holders = _state(gpu_memory, gpus, before)
        passed_s = (clock.now_ns() - started_ns) / 1e9
        is_others = state is MemoryEnd.OTHERS
        if state in (MemoryEnd.BACK, None) or passed_s >= (OTHERS_LIMIT_S if is_others else LIMIT_S):
            return state
        if is_others and should_stop():
            return state
        if is_others and not told and passed_s >= 2 * _POLL_S:  # the driver's list lags behind the end of a process
            told = True
            on_wait(", ".join(holders))
        clock.sleep(_POLL_S)


def _state(
    gpu_memory: GpuMemory, gpus: tuple[int, ...], before: Mapping[int, int]
) -> tuple[MemoryEnd | None, list[str]]:
    try:
        used = gpu_memory.used_bytes(gpus)
    except EnvironmentFaultError:
        return MemoryEnd.UNREADABLE, []
    if used is None:
        return None, []
    above = {gpu: used.get(gpu, 0) - before[gpu] - SLACK_BYTES for gpu in gpus}
    above = {gpu: excess for gpu, excess in above.items() if excess > 0}
    if not above:
        return MemoryEnd.BACK, []
    seen = gpu_memory.processes(tuple(above))
    for gpu, excess in above.items():
        held = seen.get(gpu, {}).values()
        if not held or (None not in held and sum(filter(None, held)) < excess):
            return MemoryEnd.LEFT, []
    return MemoryEnd.OTHERS, sorted({_name(pid) for gpu in above for pid in seen[gpu]})


def _name(pid: int) -> str:
    """Name a process. From a container, those outside have a number alone."""
    found = proctable.entry(pid)
    return f"process {pid}" if found is None else str(found)
