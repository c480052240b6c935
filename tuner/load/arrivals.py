"""Open-loop schedules: Poisson, gamma, constant, or recorded times. Pure and seeded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from tuner.load.prompts import Request


class ArrivalKind(StrEnum):
    POISSON = "poisson"
    GAMMA = "gamma"
    CONSTANT = "constant"


@dataclass(frozen=True, slots=True)
class Arrivals:
    """`burstiness` is the gamma shape, as in `vllm bench serve`: 1 is Poisson, below it clumps, above it evens out."""

    kind: ArrivalKind = ArrivalKind.POISSON
    burstiness: float = 1.0

    def __str__(self) -> str:
        if self.kind is ArrivalKind.GAMMA:
            return f"gamma, shape {self.burstiness:g}"
        return self.kind.capitalize()


def schedule(
    rate: float, seconds: float, *, seed: int, trace: str | int, arrivals: Arrivals | None = None
) -> tuple[float, ...]:
    """Seconds from the start at which requests are due, ascending, all before `seconds`.

    The gaps of one (seed, trace) are the same numbers at every rate, scaled: two candidates, or two rates, see the same
    bursts (common random numbers). Their mean is 1 / `rate` exactly, whatever chance says: of n requests by chance come
    1 / √n more or less, and a promise at 44 requests/s was once held on six traces that offered 42.8 on average.
    `rate` in requests per second may be any positive number.
    """
    count = math.ceil(rate * seconds) + 1
    gaps = _unit_gaps(count, seed, trace, arrivals or Arrivals())
    due = np.cumsum(gaps) * (count / gaps.sum()) / rate
    return tuple(due[due < seconds].tolist())


def recorded_schedule(requests: Sequence[Request], seconds: float) -> tuple[float, ...]:
    """The requests' own arrival times, from the first one on, as far as they lie within `seconds`."""
    times = [r.arrival_s for r in requests if r.arrival_s is not None]
    return tuple(at - times[0] for at in times if at - times[0] < seconds)


def _unit_gaps(count: int, seed: int, trace: str | int, arrivals: Arrivals) -> NDArray[np.float64]:
    """Mean 1. Longer draws begin with the shorter ones' numbers."""
    if arrivals.kind is ArrivalKind.CONSTANT:
        return np.ones(count)
    digest = hashlib.sha256(f"{seed}/{trace}/arrivals".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8]))
    if arrivals.kind is ArrivalKind.POISSON:
        return generator.standard_exponential(count)
    return generator.standard_gamma(arrivals.burstiness, count) / arrivals.burstiness
