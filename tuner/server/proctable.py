"""Table of /proc as values: sessions, open files, listeners. Linux only.

Every function leaves out a process that ends while it is read, and one that another user hides (mount option
hidepid); none raises for it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_LISTEN = "0A"


@dataclass(frozen=True, slots=True)
class ProcessEntry:
    """One line of the process table. `start_ticks` (since boot) makes a reused pid a different process."""

    pid: int
    name: str
    state: str
    ppid: int
    group: int
    session: int
    threads: int
    start_ticks: int

    @property
    def is_zombie(self) -> bool:
        """Return True if it ended completely. A zombie with ending threads holds its memory and files, also the
        GPU's, and cannot be reaped yet."""
        return self.state in "ZX" and self.threads <= 1

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


@dataclass(frozen=True, slots=True)
class FileId:
    """Identity of a file, which a new name or an unlink does not change."""

    device: int
    inode: int


def boot_id() -> str:
    """Return the id of the machine's current boot."""
    return (PROC / "sys/kernel/random/boot_id").read_text().strip()


def entry(pid: int) -> ProcessEntry | None:
    """Return the process, None if there is none that may be seen."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The name stands in parentheses and may hold spaces and parentheses itself: proc(5).
    name = text[text.index("(") + 1 : text.rindex(")")]
    fields = text[text.rindex(")") + 2 :].split()
    return ProcessEntry(
        pid,
        name,
        state=fields[0],
        ppid=int(fields[1]),
        group=int(fields[2]),
        session=int(fields[3]),
        threads=int(fields[17]),
        start_ticks=int(fields[19]),
    )


def table() -> dict[int, ProcessEntry]:
    """Read the whole process table, by pid."""
    pids = (int(path.name) for path in PROC.iterdir() if path.name.isdecimal())
    return {e.pid: e for pid in pids if (e := entry(pid)) is not None}


def descendants(roots: Iterable[int], processes: dict[int, ProcessEntry]) -> set[int]:
    """Collect the pids below `roots`, without the roots."""
    children: dict[int, list[int]] = {}
    for process in processes.values():
        children.setdefault(process.ppid, []).append(process.pid)
    found: set[int] = set()
    todo = list(roots)
    while todo:
        new = [pid for pid in children.get(todo.pop(), []) if pid not in found]
        found.update(new)
        todo.extend(new)
    return found


def is_alive(known: ProcessEntry) -> bool:
    """Return True if this very process runs. A zombie and a reused pid do not count."""
    now = entry(known.pid)
    return now is not None and now.start_ticks == known.start_ticks and not now.is_zombie


def send_signal(known: ProcessEntry, number: signal.Signals) -> None:
    """Signal this very process or none. The pidfd pins the process before its start time is compared: the pid cannot
    change hands in between. Another user's process is not signalled, and stays alive."""
    with suppress(ProcessLookupError, PermissionError):  # it ended by now, or is another user's
        try:
            pidfd = os.pidfd_open(known.pid)
        except ProcessLookupError:
            return
        except OSError:  # a kernel or a sandbox without pidfds
            if is_alive(known):
                os.kill(known.pid, number)
            return
        try:
            if is_alive(known):
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)


def is_foreign(pid: int) -> bool:
    """Return True if a process of this number exists that we may not signal: another user's."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except ProcessLookupError:
        return False
    return False


def output_files(pid: int) -> set[Path]:
    """Return the files that stdout and stderr go to. Empty for a process that ended or may not be read."""
    found: set[Path] = set()
    for descriptor in ("1", "2"):
        with suppress(OSError):
            found.add((PROC / str(pid) / "fd" / descriptor).readlink())
    return found


def file_id(path: Path) -> FileId:
    """Return the identity of the file at `path`."""
    status = path.stat()
    return FileId(status.st_dev, status.st_ino)


def writes_to(pid: int, file: FileId) -> bool:
    """Return True if stdout or stderr is this file. False for a process that ended or may not be read."""
    for descriptor in ("1", "2"):
        try:
            if file_id(PROC / str(pid) / "fd" / descriptor) == file:
                return True
        except OSError:
            continue
    return False


def shared_memory_files(pid: int) -> set[Path]:
    """List the existing files in /dev/shm that a process maps."""
    try:
        lines = (PROC / str(pid) / "maps").read_text(errors="replace").splitlines()
    except OSError:
        return set()  # ended, a zombie, or another user's
    paths = (line.split(maxsplit=5)[5] for line in lines if " /dev/shm/" in line)
    return {Path(path) for path in paths if not path.endswith(" (deleted)")}


def listening_inodes(port: int) -> set[int]:
    """Return the sockets that listen on a TCP port."""
    found = set()
    for name in ("tcp", "tcp6"):
        try:
            rows = (PROC / "net" / name).read_text().splitlines()[1:]
        except OSError:
            continue  # a kernel without IPv6, or a sandbox
        for row in rows:
            fields = row.split()
            if fields[3] == _LISTEN and int(fields[1].rsplit(":", 1)[1], 16) == port:
                found.add(int(fields[9]))
    return found


def socket_inodes(pid: int) -> set[int]:
    """Find the sockets that the process has open."""
    found: set[int] = set()
    try:
        descriptors = list((PROC / str(pid) / "fd").iterdir())
    except OSError:
        return found  # ended, a zombie, or another user's
    for descriptor in descriptors:
        try:
            link = str(descriptor.readlink())
        except OSError:
            continue  # closed in the meantime
        if link.startswith("socket:["):
            found.add(int(link[len("socket:[") : -1]))
    return found
