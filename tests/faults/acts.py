"""Acts of others on our servers: kill, freeze, take memory or a port. An act may return its undo."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.server.support import eventually, session
from tuner.server import running_file
from tuner.sim.gpu_memory import hold

Undo = Callable[[], object]
Act = Callable[[Path], Undo | None]
"""Function of the trial's folder."""

HOG_BYTES = 20 * 2**30


REPLICA = 1
"""Number of the replica that is struck, of several. Its GPU has the same number."""


def leader(folder: Path, replica: int = 0) -> int:
    return running_file.read(running_file.path_of(folder, replica)).pid


def _signal_server(number: signal.Signals, replica: int = 0) -> Act:
    def act(folder: Path) -> None:
        os.kill(leader(folder, replica), number)

    return act


def _kill_engine(replica: int = 0) -> Act:
    def act(folder: Path) -> None:
        pid = leader(folder, replica)
        assert eventually(lambda: len(session(pid)) > 1), "the engine has not started"
        for member in session(pid):
            if member.pid != pid:
                os.kill(member.pid, signal.SIGKILL)

    return act


def _kill_one(title: str) -> Act:
    """Kill one process of a server with several engines, by its title."""

    def act(folder: Path) -> None:
        wanted = f"VLLM::{title}".encode()
        assert eventually(lambda: bool(_titled(folder, wanted))), f"{title} has not started"
        for pid in _titled(folder, wanted):
            os.kill(pid, signal.SIGKILL)

    return act


def _titled(folder: Path, title: bytes) -> list[int]:
    pids = [process.pid for process in session(leader(folder))]
    return [pid for pid in pids if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(title)]


def _signal_door(number: signal.Signals) -> Act:
    """Send a signal to nginx: the last process of the service. Only its main process can be asked to end."""

    def act(folder: Path) -> None:
        pid = leader(folder, len(running_file.found_below(folder)) - 1)
        for member in [p.pid for p in session(pid)] if number is signal.SIGSTOP else [pid]:
            os.kill(member, number)

    return act


def _hold_memory(gpu: int) -> Act:
    """Hold memory in this very process, which plays the other one."""
    return lambda folder: hold(folder.parents[1] / "gpu", [gpu], HOG_BYTES).unlink


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
    "kill -9 engine": _kill_engine(),
    "metrics gone": _signal_server(signal.SIGUSR1),
    "memory held by others": _hold_memory(0),
    "kill -9 replica": _signal_server(signal.SIGKILL, REPLICA),
    "SIGTERM replica": _signal_server(signal.SIGTERM, REPLICA),
    "freeze replica": _signal_server(signal.SIGSTOP, REPLICA),
    "kill -9 engine of a replica": _kill_engine(REPLICA),
    "memory of one GPU held by others": _hold_memory(REPLICA),
    "kill -9 one engine": _kill_one("EngineCore_DP1"),
    "kill -9 one API server": _kill_one("APIServer_0"),
    "kill -9 door": _signal_door(signal.SIGKILL),
    "SIGTERM door": _signal_door(signal.SIGTERM),
    "freeze door": _signal_door(signal.SIGSTOP),
    "SQLite locked for a moment": _lock_database,
}

WORKS_WITH: Mapping[str, str] = {"metrics gone": "metrics-gone"}
"""Fault that the stand-in needs at its start, so that an act can work on it later."""

BEFORE_START = ("memory held by others", "memory of one GPU held by others")
"""Acts on a machine whose server is yet to start."""

ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "KV cache too small": ("--kv-cache-memory-bytes", "20000000"),
    "refused value": ("--max-num-seqs", "many"),
    "another model's name": ("--served-model-name", "another"),
}
"""Additional words of one start: a candidate that vLLM refuses."""


def listener() -> tuple[int, socket.socket]:
    """Open a listener of another program, on a port that was free a moment ago."""
    taken = socket.create_server(("127.0.0.1", 0))
    return int(taken.getsockname()[1]), taken
