"""Sockets of the client: how many it may open, and what it lacked if it could not."""

from __future__ import annotations

import errno
import resource
import socket
from contextlib import suppress

from tuner.load.early_end import EarlyEndKind

MOST_FILES = 65_536
"""Soft limit of file descriptors that a load asks for, as vLLM does. Each connection needs one."""

_OWN_LACKS = {
    errno.EMFILE: EarlyEndKind.NO_DESCRIPTORS,
    errno.ENFILE: EarlyEndKind.NO_DESCRIPTORS,
    errno.EADDRNOTAVAIL: EarlyEndKind.NO_PORTS,
    errno.ENOBUFS: EarlyEndKind.NO_SOCKET_MEMORY,
    errno.ENOMEM: EarlyEndKind.NO_SOCKET_MEMORY,
}


def own_lack(error: OSError) -> EarlyEndKind | None:
    """Return what the client lacked for a connection, None if the server refused it. A name that is not resolved for
    want of a descriptor does not say so. A socket does."""
    try:
        socket.socket().close()
    except OSError as own:
        error = own
    return _OWN_LACKS.get(error.errno or 0)


def allow_connections() -> None:
    """Raise the soft limit of file descriptors as far as the hard one lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(MOST_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
