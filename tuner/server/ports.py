"""A fresh TCP port for every start."""

from __future__ import annotations

import random
import socket
import threading
from pathlib import Path

HOST = "127.0.0.1"
"""Address that measured servers listen on."""

_LOWEST = 20_000
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_ATTEMPTS = 1000

# One set per process, because ports belong to the machine and not to a study. Two workers that choose at the same
# moment must not get the same port. None is given twice: its last owner may not be quite dead.
_given: set[int] = set()
_lock = threading.Lock()


def fresh_port() -> int:
    """Return a free port that was not given out before. Raises OSError if none is free. It lies below the range of
    outgoing connections: vLLM binds seconds later, and the load of a neighbouring trial opens many in that time."""
    with _lock:
        for port in _candidates():
            if port not in _given and _is_free(port):
                _given.add(port)
                return port
    raise OSError(f"no free TCP port on {HOST}")


def _candidates() -> list[int]:
    try:
        first_ephemeral = int(_EPHEMERAL.read_text().split()[0])
    except FileNotFoundError:
        first_ephemeral = 32_768
    highest = first_ephemeral if first_ephemeral - _LOWEST >= _ATTEMPTS else 61_000
    return random.sample(range(_LOWEST, highest), _ATTEMPTS)


def _is_free(port: int) -> bool:
    # Without SO_REUSEADDR: a port in TIME_WAIT counts as taken.
    with socket.socket() as probe:
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
