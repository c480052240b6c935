"""Lock of a study's folder: the kernel's, or on a disk without locks a note of who works there."""

from __future__ import annotations

import errno
import fcntl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuner.errors import UsageError
from tuner.jsonfile import DiskWarning
from tuner.server import proctable, running_file

_FILE = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of network disks that have no locks."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the study for this process. The kernel lets go of it however the process ends. Raises UsageError if
    another holds it."""
    with (folder / _FILE).open("a+") as file:
        is_noted = False
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise _in_use(folder) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            if _is_noted(folder):
                raise _in_use(folder) from error
            warnings.warn(f"this disk has no locks ({error.strerror}): one tuner a study, see to it", DiskWarning, 2)
            file.truncate(0)
            print(proctable.boot_id(), *running_file.this_tuner(), file=file, flush=True)
            is_noted = True
        try:
            yield
        finally:
            if is_noted:
                file.truncate(0)


def is_locked(folder: Path) -> bool:
    """Return True if a tuner holds the study. Our own shared lock lasts microseconds."""
    try:
        with (folder / _FILE).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:  # no lock file: copied from elsewhere, or never started
        return error.errno in _NO_LOCKS and _is_noted(folder)
    return False


def _is_noted(folder: Path) -> bool:
    """Return True if the process that left its note still runs on this machine."""
    words = (folder / _FILE).read_text(errors="replace").split()
    return (
        len(words) == 3
        and all(word.isdecimal() for word in words[1:])
        and running_file.writer_lives(words[0], int(words[1]), int(words[2]))
    )


def _in_use(folder: Path) -> UsageError:
    return UsageError(
        f"study {folder.name!r} is being worked on by another tuner",
        hint="wait for it, or choose another name with --study",
    )
