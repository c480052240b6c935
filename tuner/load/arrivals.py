"""Open-loop schedules: Poisson, gamma, constant, or recorded times. Pure and seeded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from tuner.errors import UsageError
from tuner.load.prompts import Request
from tuner.load.workload import Workload

MOST_BURSTY, MOST_EVEN = 0.05, 1000.0
"""Gamma shapes: at 0.05 two gaps of three are under a hundredth of the mean gap, at 1000 they are all but equal."""


class ArrivalKind(StrEnum):
    POISSON = "poisson"
    GAMMA = "gamma"
    CONSTANT = "constant"
    RECORDED = "recorded"


@dataclass(frozen=True, slots=True)
class Arrivals:
    """`burstiness` is the gamma shape, as in `vllm bench serve`: 1 is Poisson, below it clumps, above it evens out.

    Recorded arrivals are the requests' own: the workload has them.
    """

    kind: ArrivalKind = ArrivalKind.POISSON
    burstiness: float = 1.0

    def __str__(self) -> str:
        """Short, for brackets behind a figure."""
        if self.kind is ArrivalKind.GAMMA:
            return f"gamma, shape {self.burstiness:g}"
        return "arrivals as recorded" if self.kind is ArrivalKind.RECORDED else self.kind.capitalize()

    @property
    def phrase(self) -> str:
        return str(self) if self.kind is ArrivalKind.RECORDED else f"{self} arrivals"

    def asked_for(self, workload: Workload) -> float | None:
        """The --burstiness that chosen_arrivals makes these of; None where nothing need be said."""
        return None if self == chosen_arrivals(None, workload) else self.burstiness


def chosen_arrivals(burstiness: float | None, workload: Workload) -> Arrivals:
    """What a person's --burstiness asks for; None, where nothing was said, is the traffic's own times, else Poisson.

    A burstiness that was given wins over recorded times: it is the only way to ask what the same requests would do if
    they came by chance, and nobody says it by accident. Raises UsageError.
    """
    if burstiness is None:
        return Arrivals(ArrivalKind.RECORDED) if workload.timed else Arrivals()
    if not MOST_EVEN >= burstiness >= MOST_BURSTY:
        raise UsageError(
            f"--burstiness {burstiness:g}",
            hint=f"{MOST_BURSTY:g} to {MOST_EVEN:g}: 1 is Poisson, less comes in clumps, more comes evenly",
        )
    return Arrivals() if burstiness == 1 else Arrivals(ArrivalKind.GAMMA, burstiness)


def arriving(
    draw: Callable[[int], Sequence[Request]], rate: float, seconds: float, *, seed: int, trace: str, arrivals: Arrivals
) -> tuple[Sequence[Request], tuple[float, ...]]:
    """The requests of a level, `draw(count)`, and when each is due, in seconds from the start, ascending."""
    if arrivals.kind is ArrivalKind.RECORDED:
        requests = draw(math.ceil(rate * seconds))
        return requests, recorded_schedule(requests, rate)
    due = schedule(rate, seconds, seed=seed, trace=trace, arrivals=arrivals)
    return draw(len(due)), due


def schedule(
    rate: float, seconds: float, *, seed: int, trace: str | int, arrivals: Arrivals | None = None
) -> tuple[float, ...]:
    """Seconds from the start at which requests are due, ascending, all before `seconds`.

    The gaps of one (seed, trace) are the same numbers at every rate, scaled by 1 / rate: two candidates, or two rates,
    see the same bursts (common random numbers). `rate` in requests per second may be any positive number.
    """
    expected = rate * seconds
    count = math.ceil(expected + 10 * math.sqrt(expected) + 10)
    while True:
        due = np.cumsum(_unit_gaps(count, seed, trace, arrivals or Arrivals())) / rate
        if due[-1] >= seconds:
            return tuple(due[due < seconds].tolist())
        count *= 2


def recorded_schedule(requests: Sequence[Request], rate: float) -> tuple[float, ...]:
    """The requests' own gaps in their order, scaled so that the mean of these gaps is 1 / rate; the first is due at 0.

    The mean is that of the requests asked for and not of the whole recording: a level at 5 requests/s offers 5 a
    second also where the recording begins in a quiet hour. Gaps that are all 0 are equal, and stay so: 1 / rate each.
    """
    times = np.asarray([request.arrival_s for request in requests], dtype=np.float64)
    span_s = float(times[-1] - times[0])
    relative = (times - times[0]) / span_s if span_s > 0 else np.linspace(0.0, 1.0, len(times))
    return tuple((relative * ((len(times) - 1) / rate)).tolist())


def _unit_gaps(count: int, seed: int, trace: str | int, arrivals: Arrivals) -> NDArray[np.float64]:
    """Mean 1. Longer draws begin with the shorter ones' numbers."""
    if arrivals.kind is ArrivalKind.CONSTANT:
        return np.ones(count)
    digest = hashlib.sha256(f"{seed}/{trace}/arrivals".encode()).digest()
    generator = np.random.default_rng(int.from_bytes(digest[:8]))
    if arrivals.kind is ArrivalKind.POISSON:
        return generator.standard_exponential(count)
    return generator.standard_gamma(arrivals.burstiness, count) / arrivals.burstiness
