"""Tasks: what is asked of one running server."""

from __future__ import annotations

from dataclasses import dataclass, field

from tuner.bench.capacity_search import Incumbent, SearchSettings
from tuner.load.arrivals import Arrivals


@dataclass(frozen=True, slots=True)
class RunLadder:
    """Closed loops of `levels` concurrent requests, `level_s` seconds each.

    `lower` are further levels. From one of `levels` that breaks a limit the load goes down them until one keeps all.
    """

    levels: tuple[int, ...]
    level_s: float
    lower: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class HoldRate:
    """One open-loop level of `rate` requests/s."""

    rate: float
    seconds: float
    arrivals: Arrivals = field(default_factory=Arrivals)


@dataclass(frozen=True, slots=True)
class SearchCapacity:
    """Search for the highest open-loop rate that keeps the limits. With an incumbent it races first."""

    settings: SearchSettings = field(default_factory=SearchSettings)
    arrivals: Arrivals = field(default_factory=Arrivals)
    incumbent: Incumbent | None = None


@dataclass(frozen=True, slots=True)
class MeasureBlock:
    """Search for the highest rate by steps from `start`, without a closed loop. Candidates whose blocks had the same
    traffic can be compared. `answer_s` is the mean answer time, 0 if unknown."""

    start: float
    settings: SearchSettings = field(default_factory=SearchSettings)
    arrivals: Arrivals = field(default_factory=Arrivals)
    answer_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ClaimRate:
    """Proof of a rate on several traces, from `estimate` downwards.

    Several servers behind a door are filled first, for `saturate_s` seconds. Alone they came to `saturation`
    requests/s in all. What is lost of that lowers the estimate. None: the servers are not filled.

    `block` comes before the claim, which then begins at its rate.
    """

    estimate: float
    settings: SearchSettings = field(default_factory=SearchSettings)
    arrivals: Arrivals = field(default_factory=Arrivals)
    saturate_s: float | None = None
    saturation: float | None = None
    block: MeasureBlock | None = None


@dataclass(frozen=True, slots=True)
class Saturate:
    """Closed loop that keeps the server full, without limits."""

    seconds: float


Task = RunLadder | HoldRate | SearchCapacity | MeasureBlock | ClaimRate | Saturate
