"""CPU and memory of host, server and client."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class HostReading:
    """Figures since the reading before. `*_cores` are CPU seconds per second, `server_cores` those of all servers. It
    is None if one of them is gone or another user's. `sibling_cores` are those of what else this process started: the
    servers of trials beside this one."""

    cpu_share: float
    busy_cores: float
    client_cores: float
    server_cores: float | None
    memory_available_bytes: int
    sibling_cores: float = 0.0

    @property
    def foreign_cores(self) -> float | None:
        """Return the CPU of all other programs."""
        if self.server_cores is None:
            return None
        return max(0.0, self.busy_cores - self.client_cores - self.server_cores - self.sibling_cores)


class Host:
    """Source of differences between two calls of `read`. `leaders` lead the process trees of the servers."""

    def __init__(self, leaders: Sequence[int] = ()) -> None:
        trees = [_tree(pid) for pid in leaders]
        self._server = [process for tree in trees for process in tree] if all(trees) else []
        known = {process.pid for process in self._server}
        self._siblings = [process for process in _tree(os.getpid())[1:] if process.pid not in known]
        self._cores = psutil.cpu_count() or 1
        self._last = self._counters()

    @property
    def server_pids(self) -> tuple[int, ...]:
        return tuple(process.pid for process in self._server)

    def read(self) -> HostReading:
        last, now = self._last, self._counters()
        self._last = now
        seconds = max(now.at_s - last.at_s, 1e-3)
        busy = max(0.0, now.busy_s - last.busy_s) / seconds  # sums of floats: an idle moment can come out below zero
        return HostReading(
            cpu_share=min(1.0, busy / self._cores),
            busy_cores=busy,
            client_cores=(now.client_s - last.client_s) / seconds,
            server_cores=max(0.0, now.server_s - last.server_s) / seconds if self._server else None,
            memory_available_bytes=psutil.virtual_memory().available,
            sibling_cores=max(0.0, now.sibling_s - last.sibling_s) / seconds,
        )

    def _counters(self) -> _Counters:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        own = psutil.Process().cpu_times()
        return _Counters(
            at_s=time.monotonic(),
            busy_s=sum(times[:8]) - idle,  # guest time is part of user time
            client_s=own.user + own.system,
            server_s=sum(_cpu_s(process) for process in self._server),
            sibling_s=sum(_cpu_s(process) for process in self._siblings),
        )


@dataclass(frozen=True, slots=True)
class _Counters:
    at_s: float
    busy_s: float
    client_s: float
    server_s: float
    sibling_s: float


def _tree(pid: int) -> list[psutil.Process]:
    """List a server's processes. Once a level is enough: a serving vLLM starts none, and the walk takes 10 ms."""
    try:
        leader = psutil.Process(pid)
        return [leader, *leader.children(recursive=True)]
    except psutil.Error:
        return []


def _cpu_s(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
