"""Remains of a dead server: memory, files, orphans."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path

from tuner.clock import RealClock
from tuner.errors import EnvironmentFaultError
from tuner.jsonfile import TornFileError
from tuner.secrecy import mask_file
from tuner.server import proctable, running_file
from tuner.server.containers import end_container
from tuner.server.family import Family
from tuner.server.gpu_memory import GpuMemory, NoGpuMemory, wait_for_memory
from tuner.server.proctable import FileId
from tuner.server.running_file import Marker, log_name
from tuner.server.shutdown import StopReport, end_family

LEFTOVER_GRACE_S = 15.0
"""Seconds for a leftover server to obey SIGTERM."""

SHM = Path("/dev/shm")
_SHARED_MEMORY = re.compile(r"(psm_|vllm_|nccl-|torch_)")
_SCRATCH = re.compile(r"tuner-[0-9a-f]{8}")
_LONGEST_SCRATCH = 60
"""Longest scratch path. A UNIX socket's path ends at 107 bytes, and vLLM appends a slash and a uuid of 36."""


def new_scratch() -> Path:
    """Name the folder of a start's temporary files."""
    name = f"tuner-{secrets.token_hex(4)}"
    usual = Path(tempfile.gettempdir(), name)
    return usual if len(os.fsencode(usual)) <= _LONGEST_SCRATCH else Path("/tmp", name)


def remove_scratch(folder: Path) -> tuple[str, ...]:
    """Remove a folder that new_scratch() named, nothing else. Return what was removed."""
    if not _SCRATCH.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
        return ()
    if folder.stat().st_uid != os.getuid():
        return ()
    names = tuple(sorted(str(path) for path in folder.iterdir()))
    shutil.rmtree(folder, ignore_errors=True)
    return names


def shared_memory_inodes() -> tuple[int, ...]:
    """Return what looks like a server's files in /dev/shm. Those that are there before a start are not its own. The
    time of a file would not say so: clocks are set back."""
    found = []
    with suppress(OSError):
        for file in SHM.iterdir():
            with suppress(FileNotFoundError):
                found += [file.lstat().st_ino] if _SHARED_MEMORY.match(file.name) else []
    return tuple(sorted(found))


def remove_shared_memory(files: Iterable[Path], *, before: Collection[int]) -> tuple[str, ...]:
    """Unlink a dead server's own, unmapped files in /dev/shm. `files` are those that its own processes used, `before`
    the inodes that were there before it. Others that look like vLLM's may be a neighbour's."""
    candidates = {file for file in files if _is_removable(file, before)}
    if not candidates:
        return ()
    for pid in proctable.table():
        candidates -= proctable.shared_memory_files(pid)
    for file in candidates:
        file.unlink(missing_ok=True)
    return tuple(sorted(map(str, candidates)))


def end_leftovers(
    study_folder: Path,
    *,
    gpu_memory: GpuMemory | None = None,
    on_memory_wait: Callable[[str], None] = lambda holders: None,
) -> list[StopReport]:
    """End the servers that a killed tuner left running.

    It finds them through the running.json files below `study_folder`. Raises EnvironmentFaultError if the tuner that
    wrote one still runs, for then it is not left over, or if a server is another user's. Nothing is touched then.
    """
    records = [(path, _read(path)) for path in running_file.found_below(study_folder)]
    for path, record in records:
        if record is not None and record.writer_lives:
            raise EnvironmentFaultError(
                f"{path.parent} is in use by another tuner (pid {record.tuner_pid})",
                hint="wait for it, stop it with Ctrl-C, or choose another --study",
            )
        if record is not None and _is_other_users(path, record):
            raise EnvironmentFaultError(
                f"a server of an earlier run is another user's: pid {record.pid} of {path.parent}",
                hint=f"end it as that user (sudo kill {record.pid}), or choose another --study",
            )
    # Without a record that can be read, ownership is not proved, and nothing is touched.
    return [
        StopReport(seconds=0.0, left=(f"unknown: {path} cannot be read",))
        if record is None
        else _end(path, record, gpu_memory or NoGpuMemory(), on_memory_wait)
        for path, record in records
    ]


def _end(path: Path, record: Marker, gpu_memory: GpuMemory, on_memory_wait: Callable[[str], None]) -> StopReport:
    clock = RealClock()
    started_ns = clock.now_ns()
    family = Family(record.pid, record.start_ticks, FileId(record.log_device, record.log_inode))
    shared_memory = {Path(name) for name in record.shared_memory}
    killed: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    if record.boot_id == proctable.boot_id():  # else all of its processes ended with that boot
        for process in family.living():
            shared_memory |= proctable.shared_memory_files(process.pid)
        ended = end_family(family, grace_s=LEFTOVER_GRACE_S, clock=clock, before_kill=lambda: None)
        killed, left = ended.killed, ended.left
        if record.container_engine:
            killed += end_container(record.container_engine, Path(record.scratch))
    mask_file(path.parent / log_name(record.replica))
    removed = remove_shared_memory(shared_memory, before=record.shared_memory_before)
    removed += remove_scratch(Path(record.scratch))
    if not left:
        path.unlink(missing_ok=True)
    return StopReport(
        seconds=(clock.now_ns() - started_ns) / 1e9,
        killed=killed,
        left=left,
        removed=removed,
        memory=wait_for_memory(
            gpu_memory, dict(record.gpu_baseline_bytes), clock, on_wait=on_memory_wait, should_stop=lambda: bool(left)
        ),
    )


def _read(path: Path) -> Marker | None:
    try:
        return running_file.read(path)
    except TornFileError:
        return None


def _is_other_users(path: Path, record: Marker) -> bool:
    """Return True if a server may not be signalled. One that is hidden (hidepid) is known by the owner of its file."""
    if record.boot_id != proctable.boot_id() or not proctable.is_foreign(record.pid):
        return False
    leader = proctable.entry(record.pid)
    if leader is not None:
        return leader.start_ticks == record.start_ticks
    return path.stat().st_uid != os.getuid()


def _is_removable(file: Path, before: Collection[int]) -> bool:
    if file.parent != SHM or not _SHARED_MEMORY.match(file.name):
        return False
    try:
        status = file.lstat()
    except FileNotFoundError:
        return False
    return status.st_uid == os.getuid() and status.st_ino not in before
