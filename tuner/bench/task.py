"""Tasks: what is asked of one running server."""

from __future__ import annotations

from dataclasses import dataclass, field

from tuner.bench.capacity_search import Incumbent, SearchSettings
from tuner.load.arrivals import Arrivals


@dataclass(frozen=True, slots=True)
class RunLadder:
    """Closed loops of `levels` concurrent requests, `level_s` seconds each, in this order."""

    levels: tuple[int, ...]
    level_s: float


@dataclass(frozen=True, slots=True)
class HoldRate:
    """One open-loop level of `rate` requests/s."""

    rate: float
    seconds: float
    arrivals: Arrivals = field(default_factory=Arrivals)


@dataclass(frozen=True, slots=True)
class SearchCapacity:
    """The search for the highest open-loop rate that keeps the limits; a race first if there is an incumbent."""

    settings: SearchSettings = field(default_factory=SearchSettings)
    arrivals: Arrivals = field(default_factory=Arrivals)
    incumbent: Incumbent | None = None


@dataclass(frozen=True, slots=True)
class ClaimRate:
    """The proof of a rate on several traces, from `estimate` requests/s downwards."""

    estimate: float
    settings: SearchSettings = field(default_factory=SearchSettings)
    arrivals: Arrivals = field(default_factory=Arrivals)


@dataclass(frozen=True, slots=True)
class Saturate:
    """One closed loop that keeps the server full and has no limits to keep."""

    seconds: float


Task = RunLadder | HoldRate | SearchCapacity | ClaimRate | Saturate
