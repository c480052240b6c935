"""Copy of the traffic file in the study's folder. The user's own file may grow, change or vanish overnight."""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from tuner import formatting
from tuner.errors import EnvironmentFaultError, UsageError
from tuner.load.recorded import file_sha256
from tuner.study.own_files import WORKLOAD
from tuner.study.plan import StudyPlan

_FICLONE = 0x40049409
"""ioctl that lets two files share their blocks until one is written to (linux/fs.h)."""

_SPARE_BYTES = 2**30
"""Bytes that stay free for the study itself."""


def with_kept_workload(plan: StudyPlan, folder: Path) -> StudyPlan:
    """Copy the plan's traffic file into the study's folder, readable by this user alone, and return the plan with it.

    A hard link would be no copy: what is appended to the file is in both. On btrfs and XFS the copy shares the file's
    blocks and takes no time. Elsewhere it takes the file's size. Raises EnvironmentFaultError if that has no room, and
    UsageError if the file is not what was read.
    """
    load = plan.workload
    if load.file is None:
        return plan
    source = Path(load.file)
    kept = folder.absolute() / WORKLOAD / source.name
    if source != kept:
        _copy(source, kept)
        if file_sha256(kept) != load.file_sha256:
            kept.unlink()
            raise UsageError(
                f"{source} changed while the study was planned",
                hint="give a file that nobody writes to, such as a copy",
            )
    return replace(plan, workload=replace(load, file=str(kept)))


def _copy(source: Path, kept: Path) -> None:
    temporary = kept.with_name(f".{kept.name[:200]}.tmp")
    try:
        kept.parent.mkdir(mode=0o700, exist_ok=True)
        with source.open("rb") as old, os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as new:
            if not _cloned(old.fileno(), new.fileno()):
                _need_room(os.fstat(old.fileno()).st_size, kept.parent)
                shutil.copyfileobj(old, new, 2**20)
        temporary.replace(kept)
    except OSError as error:
        raise EnvironmentFaultError(
            f"the workload {source} cannot be copied into the study's folder: {error.strerror}",
            hint="see that it can be read, or choose a folder with more room: --studies DIR",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _cloned(old: int, new: int) -> bool:
    try:
        fcntl.ioctl(new, _FICLONE, old)
    except OSError:  # another file system, or one without shared blocks
        return False
    return True


def _need_room(size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + _SPARE_BYTES:
        raise EnvironmentFaultError(
            f"the disk of {folder.parent} has no room for a copy of the workload: {formatting.gib(size / 2**30)} of "
            f"{formatting.gib(free / 2**30)}, and a study needs {formatting.gib(_SPARE_BYTES / 2**30)}",
            hint="make room, or choose another folder with --studies DIR",
        )
