"""Cause of a refused start or a death: whose fault, which line, which bound."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    CANDIDATE = "candidate"
    ENVIRONMENT = "environment"
    OURS = "ours"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Bound:
    """Bound of a refusal: a candidate with `flag` beyond `limit` is refused too, all else being equal. `relation` is
    "<=" (values must not be larger than `limit`) or ">="."""

    flag: str
    relation: str
    limit: float


@dataclass(frozen=True, slots=True)
class Cause:
    """Reason why a server did not start or died. `kind` is a stable name (`kv-too-small`), `line` the log's own
    words."""

    kind: str
    fault: Fault
    line: str
    explanation: str
    hint: str
    bounds: tuple[Bound, ...] = ()
