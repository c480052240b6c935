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
"""Smallest and largest gamma shape. At 0.05 two of three gaps are under a hundredth of the mean; at 1000 all are
alike."""


class ArrivalKind(StrEnum):
    POISSON = "poisson"
    GAMMA = "gamma"
    CONSTANT = "constant"
    RECORDED = "recorded"


@dataclass(frozen=True, slots=True)
class Arrivals:
    """Distribution of arrivals. `burstiness` is the gamma shape of `vllm bench serve`: 1 is Poisson, less clumps,
    more evens out. Recorded arrivals take the times of the workload's own requests. One server of several gets one in
    `share` of the machine's requests, by chance: a balancer that looks for the least busy one is kinder.
    """

    kind: ArrivalKind = ArrivalKind.POISSON
    burstiness: float = 1.0
    share: int = 1

    def __str__(self) -> str:
        """Describe the arrivals briefly, for brackets behind a figure."""
        if self.kind is ArrivalKind.GAMMA:
            return f"gamma, shape {self.burstiness:g}"
        return "arrivals as recorded" if self.kind is ArrivalKind.RECORDED else self.kind.capitalize()

    @property
    def phrase(self) -> str:
        return str(self) if self.kind is ArrivalKind.RECORDED else f"{self} arrivals"

    def asked_for(self, workload: Workload) -> float | None:
        """Return the --burstiness that gives these arrivals. None if it is the workload's default."""
        return None if self == chosen_arrivals(None, workload) else self.burstiness


def chosen_arrivals(burstiness: float | None, workload: Workload) -> Arrivals:
    """Resolve --burstiness to arrivals. None selects the traffic's own times, or Poisson if it has none.

    A given burstiness wins over recorded times. It is the only way to ask what the same requests would do under
    random arrivals. Raises UsageError.
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
    """Return requests, `draw(count)`, and their due times in seconds."""
    if arrivals.kind is ArrivalKind.RECORDED:
        requests = draw(math.ceil(rate * arrivals.share * seconds))
        due = recorded_schedule(requests, rate * arrivals.share)
        mine = _share(len(due), seed, trace, arrivals)
        return [requests[i] for i in mine], tuple(due[i] for i in mine)
    due = schedule(rate, seconds, seed=seed, trace=trace, arrivals=arrivals)
    return draw(len(due)), due


def schedule(
    rate: float, seconds: float, *, seed: int, trace: str | int, arrivals: Arrivals | None = None
) -> tuple[float, ...]:
    """Return ascending due times in seconds, all before `seconds`.

    The gaps of one (seed, trace) are the same numbers at every rate, scaled by 1 / rate. So two candidates, or two
    rates, see the same bursts (common random numbers). `rate` is requests per second, any positive number.
    """
    arrivals = arrivals or Arrivals()
    if arrivals.kind is ArrivalKind.POISSON:
        arrivals = Arrivals()  # a share of Poisson arrivals by chance is Poisson
    expected = rate * arrivals.share * seconds
    count = math.ceil(expected + 10 * math.sqrt(expected) + 10)
    while True:
        due = np.cumsum(_unit_gaps(count, seed, trace, arrivals)) / (rate * arrivals.share)
        if due[-1] >= seconds:
            mine = due[_share(count, seed, trace, arrivals)]
            return tuple(mine[mine < seconds].tolist())
        count *= 2


def recorded_schedule(requests: Sequence[Request], rate: float) -> tuple[float, ...]:
    """Scale the recorded gaps to a mean of 1 / rate. The first request is due at 0.

    The mean is taken over the given requests, not over the whole recording. So a level at 5 requests/s offers 5 a
    second even if the recording begins in a quiet hour. If all gaps are 0, each becomes 1 / rate.
    """
    times = np.asarray([request.arrival_s for request in requests], dtype=np.float64)
    span_s = float(times[-1] - times[0])
    relative = (times - times[0]) / span_s if span_s > 0 else np.linspace(0.0, 1.0, len(times))
    return tuple((relative * ((len(times) - 1) / rate)).tolist())


def _unit_gaps(count: int, seed: int, trace: str | int, arrivals: Arrivals) -> NDArray[np.float64]:
    """Draw gaps with mean 1. Longer draws begin with the numbers of shorter ones."""
    if arrivals.kind is ArrivalKind.CONSTANT:
        return np.ones(count)
    generator = _generator(f"{seed}/{trace}/arrivals")
    if arrivals.kind is ArrivalKind.POISSON:
        return generator.standard_exponential(count)
    return generator.standard_gamma(arrivals.burstiness, count) / arrivals.burstiness


def _share(count: int, seed: int, trace: str | int, arrivals: Arrivals) -> list[int]:
    """Draw which of `count` requests one server gets. Longer draws begin with the numbers of shorter ones."""
    if arrivals.share == 1:
        return list(range(count))
    drawn = _generator(f"{seed}/{trace}/share").random(count)
    return [int(i) for i in np.flatnonzero(drawn < 1 / arrivals.share)]


def _generator(key: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]))
