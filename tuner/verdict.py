"""Measurement × SLOs → feasible, infeasible by how much, undecided or invalid."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNDECIDED = "undecided"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`reasons` are one line each, empty only when feasible.

    `slo_margin` is ln(measured / limit) of the tightest latency limit, negative when kept, None when not observed.
    `confidence` in 0..1 that the outcome is right as far as the sample tells, None when it cannot be said.
    `missing_requests`: how many more requests an undecided level needs.
    """

    outcome: Outcome
    reasons: tuple[str, ...] = ()
    slo_margin: float | None = None
    confidence: float | None = None
    missing_requests: int = 0
