"""Record running.json of a living server. A later tuner ends the server by it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tuner import jsonfile
from tuner.server import proctable

FILE_NAME = "running.json"
"""Name for a service's first server. The others are running-1.json, running-2.json."""
SCHEMA = 2


@dataclass(frozen=True, slots=True)
class Marker:
    """One living server. Written while the child waits at its gate, removed when the server has ended.

    `log_device` and `log_inode` prove ownership after the leader is gone: every process of the server inherited the log
    as its output. `scratch` is the start's temporary folder. `shared_memory` names the server's files in /dev/shm,
    `shared_memory_before` the inodes of others that were there. `replica` numbers the servers of one service.
    """

    boot_id: str
    pid: int
    start_ticks: int
    session: int
    port: int
    log_device: int
    log_inode: int
    scratch: str
    started_unix_ns: int
    tuner_pid: int
    tuner_start_ticks: int
    shared_memory: tuple[str, ...] = ()
    shared_memory_before: tuple[int, ...] = ()
    gpu_baseline_bytes: tuple[tuple[int, int], ...] = ()
    container_engine: str = ""
    replica: int = 0
    schema: int = SCHEMA

    @property
    def writer_lives(self) -> bool:
        """Return True if the tuner that started the server still runs."""
        return writer_lives(self.boot_id, self.tuner_pid, self.tuner_start_ticks)


def path_of(folder: Path, replica: int = 0) -> Path:
    """Return where the marker of a server stands."""
    return folder / (FILE_NAME if replica == 0 else f"running-{replica}.json")


def log_name(replica: int) -> str:
    """Name the log of a server beside its marker."""
    return "server.log" if replica == 0 else f"server-{replica}.log"


def found_below(folder: Path) -> list[Path]:
    """List the running files below `folder`."""
    return sorted({*folder.rglob(FILE_NAME), *folder.rglob("running-[0-9]*.json")})


def write(folder: Path, marker: Marker) -> None:
    """Put the marker into its file."""
    jsonfile.dump(path_of(folder, marker.replica), marker)


def read(path: Path) -> Marker:
    """Read a marker, also one of an earlier version. Raises jsonfile.TornFileError if it cannot be decoded."""
    # Earlier versions wrote `argv_digest`.
    return jsonfile.load(path, Marker, lambda raw: {key: raw[key] for key in raw if key != "argv_digest"})


def this_tuner() -> tuple[int, int]:
    """Return pid and start ticks of the running tuner."""
    me = proctable.entry(os.getpid())
    assert me is not None, "we are running"
    return me.pid, me.start_ticks


def writer_lives(boot: str, pid: int, start_ticks: int) -> bool:
    """Return True if a tuner that noted this of itself still runs."""
    if boot != proctable.boot_id():
        return False
    tuner = proctable.entry(pid)
    return tuner is not None and tuner.start_ticks == start_ticks and not tuner.is_zombie
