"""running.json: what a later tuner needs to end a server whose own tuner was killed."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from tuner import jsonfile
from tuner.server import proctable

FILE_NAME = "running.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Marker:
    """Written while the child still waits at its gate, removed when the server has ended.

    `log_device` and `log_inode` are the proof of ownership that outlives the leader: every process of the server has
    inherited the log as its output. `scratch` is the start's temporary folder, `shared_memory` the /dev/shm files that
    """

    boot_id: str
    pid: int
    start_ticks: int
    session: int
    port: int
    argv_digest: str
    log_device: int
    log_inode: int
    scratch: str
    started_unix_ns: int
    tuner_pid: int
    tuner_start_ticks: int
    shared_memory: tuple[str, ...] = ()
    gpu_baseline_bytes: tuple[tuple[int, int], ...] = ()
    container_engine: str = ""
    schema: int = SCHEMA


def digest(argv: tuple[str, ...]) -> str:
    """Not the words themselves: a flag of a person's own may hold a secret."""
    return hashlib.sha256("\0".join(argv).encode()).hexdigest()


def write(folder: Path, marker: Marker) -> None:
    jsonfile.dump(folder / FILE_NAME, marker)


def read(path: Path) -> Marker:
    """Raises jsonfile.TornFileError."""
    return jsonfile.load(path, Marker)


def remove(folder: Path) -> None:
    (folder / FILE_NAME).unlink(missing_ok=True)


def this_tuner() -> tuple[int, int]:
    """(pid, start ticks) of the running tuner."""
    me = proctable.entry(os.getpid())
    assert me is not None, "we are running"
    return me.pid, me.start_ticks
