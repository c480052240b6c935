"""Acts of others on our servers: kill, freeze, take memory or a port. An act may return its undo."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.server.support import eventually
from tuner.server import proctable, running_file
from tuner.sim.gpu_memory import hold

Undo = Callable[[], object]
Act = Callable[[Path], Undo | None]
"""Function of the trial's folder."""

HOG_BYTES = 20 * 2**30


def leader(folder: Path) -> int:
    return running_file.read(folder / running_file.FILE_NAME).pid


def session(pid: int) -> list[int]:
    return [p.pid for p in proctable.table().values() if p.session == pid and not p.is_zombie]


def _signal_server(number: signal.Signals) -> Act:
    def act(folder: Path) -> None:
        os.kill(leader(folder), number)

    return act


def _kill_engine(folder: Path) -> None:
    pid = leader(folder)
    assert eventually(lambda: len(session(pid)) > 1), "the engine has not started"
    for member in session(pid):
        if member != pid:
            os.kill(member, signal.SIGKILL)


def _hold_memory(folder: Path) -> Undo:
    """Hold memory in this very process, which plays the other one."""
    return hold(folder.parents[1] / "gpu", [0], HOG_BYTES).unlink


def _lock_database(folder: Path) -> Undo:
    connection = sqlite3.connect(folder.parents[1] / "study.db", check_same_thread=False)
    connection.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(0.7, connection.close)
    timer.start()
    return timer.join


ACTS: Mapping[str, Act] = {
    "kill -9 server": _signal_server(signal.SIGKILL),
    "SIGTERM server": _signal_server(signal.SIGTERM),
    "freeze server": _signal_server(signal.SIGSTOP),
    "kill -9 engine": _kill_engine,
    "metrics gone": _signal_server(signal.SIGUSR1),
    "memory held by others": _hold_memory,
    "SQLite locked for a moment": _lock_database,
}

WORKS_WITH: Mapping[str, str] = {"metrics gone": "metrics-gone"}
"""Fault that the stand-in needs at its start, so that an act can work on it later."""

BEFORE_START = ("memory held by others",)
"""Acts on a machine whose server is yet to start."""

ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "KV cache too small": ("--kv-cache-memory-bytes", "20000000"),
    "unknown flag": ("--no-such-flag", "1"),
}
"""Additional words of one start: a candidate that vLLM refuses."""


def listener() -> tuple[int, socket.socket]:
    """Open a listener of another program, on a port that was free a moment ago."""
    taken = socket.create_server(("127.0.0.1", 0))
    return int(taken.getsockname()[1]), taken
