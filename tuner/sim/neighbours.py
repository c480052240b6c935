"""Disturbance of servers that share a machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tuner.sim.gpu_memory import holding_pids

LOOK_EVERY_S = 0.5
"""Seconds between two looks at who else is on the machine."""


class Neighbours:
    """Slow-down of one engine by the other engines of the machine.

    Each costs `share` of its speed. Others are the other servers in the ledger of GPU memory, and the `own` other
    engines of the same server.
    """

    def __init__(self, gpu_dir: Path | None, share: float, own: int, now_s: Callable[[], float]) -> None:
        self._gpu_dir = gpu_dir
        self._share = share
        self._own = own
        self._now_s = now_s
        self._next_s = float("-inf")
        self._factor = 1.0

    def factor(self) -> float:
        """Return the factor on the duration of a step."""
        if self._share and self._now_s() >= self._next_s:
            self._next_s = self._now_s() + LOOK_EVERY_S
            self._factor = 1.0 / max(0.1, 1.0 - self._share * (self._own + self._others()))
        return self._factor

    def _others(self) -> int:
        """Count the other servers. Each is a session of its own."""
        if self._gpu_dir is None:
            return 0
        sessions = set()
        for pid in holding_pids(self._gpu_dir):
            try:
                sessions.add(os.getsid(pid))
            except ProcessLookupError:
                continue
        return len(sessions - {os.getsid(0)})
