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
    RECORDED = "recorded"


EARLY_ENDS = {
    EarlyEndKind.INTERRUPTED: "interrupted",
    EarlyEndKind.BACKLOG_GROWS: "the backlog grows without end",
    EarlyEndKind.REQUEST_FAILED: "a request failed",
    EarlyEndKind.PREEMPTED: "a preemption was seen",
    EarlyEndKind.LIMIT_EXCEEDED: "{late} requests exceeded the limit of {limit}",
    EarlyEndKind.RECORDED: "{recorded}",
}
"""English text of each kind. The report has the Chinese one (report/phrases.py)."""


@dataclass(frozen=True, slots=True)
class EarlyEnd:
    """Early end of a level. `late` requests exceeded `limit`; `recorded` is the text of an earlier version."""

    kind: EarlyEndKind
    late: int | None = None
    limit: Slo | None = None
    recorded: str = ""

    def __str__(self) -> str:
        return self.said(EARLY_ENDS)

    def said(self, texts: Mapping[EarlyEndKind, str]) -> str:
        """Put it into the words of `texts`."""
        return texts[self.kind].format(late=self.late, limit=self.limit, recorded=self.recorded)


INTERRUPTED = EarlyEnd(EarlyEndKind.INTERRUPTED)
BACKLOG_GROWS = EarlyEnd(EarlyEndKind.BACKLOG_GROWS)
