"""Cause of a refused start or a death: whose fault, which line, which bound."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """Owner of a failure.

    Attributes:
        CANDIDATE: The searched values. Another candidate may start.
        STUDY: What every start of the study shares: model, quantization, passed arguments, number of GPUs. No
            candidate can start, and the machine is sound.
        ENVIRONMENT: The machine, its network or its installation.
        OURS: tuner itself.
        UNKNOWN: The log names no reason.
    """

    CANDIDATE = "candidate"
    STUDY = "study"
    ENVIRONMENT = "environment"
    OURS = "ours"
    UNKNOWN = "unknown"


REQUEST_REFUSED = "request-refused"
"""Kind of a cause: the server got ready, and a request alone failed."""


OF_ONE_LAYOUT = frozenset({
    "unsupported", "model-unsupported", "quantization-unsupported", "experts-not-divisible", "too-few-gpus",
})  # fmt: skip
"""Kinds of the study's faults that another layout may be without."""


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
