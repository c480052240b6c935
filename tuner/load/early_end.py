"""Reasons why a level of load ended before its time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from tuner.slo import Slo


class EarlyEndKind(StrEnum):
    """Kind of an early end. `RECORDED` is a text of an earlier version."""

    INTERRUPTED = "interrupted"
    BACKLOG_GROWS = "backlog-grows"
    REQUEST_FAILED = "request-failed"
    PREEMPTED = "preempted"
    LIMIT_EXCEEDED = "limit-exceeded"
    CLIENT_FROZEN = "client-frozen"
    NO_DESCRIPTORS = "no-descriptors"
    NO_PORTS = "no-ports"
    NO_SOCKET_MEMORY = "no-socket-memory"
    RECORDED = "recorded"


EARLY_ENDS = {
    EarlyEndKind.INTERRUPTED: "interrupted",
    EarlyEndKind.BACKLOG_GROWS: "the backlog grows without end",
    EarlyEndKind.REQUEST_FAILED: "a request failed",
    EarlyEndKind.PREEMPTED: "a preemption was seen",
    EarlyEndKind.LIMIT_EXCEEDED: "{late} requests exceeded the limit of {limit}",
    EarlyEndKind.CLIENT_FROZEN: "the load generator stood still for {seconds:.0f} s",
    EarlyEndKind.NO_DESCRIPTORS: "the load generator had no file descriptor left: raise the hard limit (ulimit -Hn)",
    EarlyEndKind.NO_PORTS: "the load generator had no local port left: widen net.ipv4.ip_local_port_range",
    EarlyEndKind.NO_SOCKET_MEMORY: "the load generator got no memory for a socket: raise net.ipv4.tcp_mem",
    EarlyEndKind.RECORDED: "{recorded}",
}
"""English text of each kind. The report has the Chinese one (report/phrases.py)."""

SHORTAGES = frozenset({EarlyEndKind.NO_DESCRIPTORS, EarlyEndKind.NO_PORTS, EarlyEndKind.NO_SOCKET_MEMORY})
"""Things that the client lacked. No waiting brings them."""


@dataclass(frozen=True, slots=True)
class EarlyEnd:
    """Early end of a level. `late` requests exceeded `limit`, or the client stood still for `seconds`. `recorded` is
    the text of an earlier version."""

    kind: EarlyEndKind
    late: int | None = None
    limit: Slo | None = None
    recorded: str = ""
    seconds: float = 0.0

    @property
    def is_the_clients(self) -> bool:
        """Return True if the client ended it for a fault of its own, which says nothing of the server."""
        return self.kind is EarlyEndKind.CLIENT_FROZEN or self.kind in SHORTAGES

    def __str__(self) -> str:
        return self.said(EARLY_ENDS)

    def said(self, texts: Mapping[EarlyEndKind, str]) -> str:
        """Put it into the words of `texts`."""
        return texts[self.kind].format(late=self.late, limit=self.limit, recorded=self.recorded, seconds=self.seconds)


INTERRUPTED = EarlyEnd(EarlyEndKind.INTERRUPTED)
BACKLOG_GROWS = EarlyEnd(EarlyEndKind.BACKLOG_GROWS)
