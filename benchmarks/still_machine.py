"""Truth of a candidate on a machine where nothing changes: what benchmarks/disturbed.py compares nights with."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from search.landscapes import LANDSCAPES, WARM_UP_S
from search.table import start
from simulated import ALLOWED, crossing
from virtual_load import STEP_SD, Lengths

from tuner.candidate import Candidate
from tuner.load.arrivals import schedule
from tuner.sim import ClosedLoop, Noise, OpenLoop, SimulatedLevel, Started, simulate
from tuner.study.plan import Ladder

LANDSCAPE = LANDSCAPES["ttft-bound"]
CLOSED = Ladder((16, 32, 48, 64, 96, 128), 30.0, WARM_UP_S)
KEPT = Path(tempfile.gettempdir()) / "tuner-disturbed-truth"
TRUTH_S, TRUTH_TRACES, FEW_TRACES, CLOSED_TRACES = 600.0, 40, 6, 4
MARGINAL = (0.005, 0.02)
"""Shares of late requests between which a level of a minute may keep the limit or break it."""

SLOPE, LEAST_STEP = 12.0, 0.02
"""Usual slope of ln(share of late requests) over ln(rate), and the least distance of two rates on that line."""


def started(candidate: Candidate, compiled: set[str] | None = None) -> Started:
    """Start a candidate. No two prompts share a prefix, so a prefix cache would cost time and change nothing."""
    found = start(LANDSCAPE, {**candidate.as_dict(), "enable-prefix-caching": False}, compiled)
    assert isinstance(found, Started), f"every candidate of this space starts: {found}"
    return found


def truths(load: str, candidate: Candidate, slows: float = 1.0) -> list[float]:
    """Return the true requests/s of a candidate on a still machine. `slows` is the factor on every step. In a closed
    loop several levels may be its best: that which surely keeps the limit, and those that just keep or break it."""
    if load == "open":
        return kept("open ", candidate, slows, TRUTH_TRACES, lambda still: [still.open()])
    best: list[float] = []
    for clients in CLOSED.levels:
        qps, late = kept(f"closed {clients}", candidate, slows, CLOSED_TRACES, partial(Still.closed, clients=clients))
        if late > MARGINAL[1]:
            break
        best = [qps] if late <= MARGINAL[0] else [*best, qps]
    return best


def kept(
    load: str, candidate: Candidate, slows: float, traces: int, found: Callable[[Still], list[float]]
) -> list[float]:
    """Return what is `found`, kept in a file."""
    key = f"{load} {sorted(candidate.as_dict().items())} {LANDSCAPE.limit_ms} {TRUTH_S} {traces} {slows}"
    file = KEPT / hashlib.sha256(key.encode()).hexdigest()[:24]
    if not file.is_file():
        KEPT.mkdir(exist_ok=True)
        file.write_text(f"{' '.join(map(repr, found(Still(candidate, slows))))}\n{key}\n")
    return [float(figure) for figure in file.read_text().split("\n")[0].split()]


@dataclass(frozen=True, slots=True)
class Still:
    """A candidate's server on a machine where nothing changes."""

    candidate: Candidate
    slows: float

    def closed(self, clients: int) -> list[float]:
        """Return the QPS of a closed loop and the share of its late requests."""
        levels = [self._closed(clients, seed) for seed in range(90_000, 90_000 + CLOSED_TRACES)]
        late = [level.ttft_s > LANDSCAPE.limit_ms / 1000 for level in levels]
        return [fmean(level.qps for level in levels), float(np.concatenate(late).mean())]

    def _closed(self, clients: int, seed: int) -> SimulatedLevel:
        shapes = Lengths(LANDSCAPE.workload, seed).requests("truth", 20_000)
        return self._simulated(ClosedLoop(shapes, clients, TRUTH_S, 60.0), seed)

    def open(self) -> float:
        """Find the rate at which one request in a hundred is late: roughly on few traces, then on all, at two rates."""
        rate = 8.0 / self.slows
        for traces in (FEW_TRACES, FEW_TRACES, FEW_TRACES):
            rate = self._nearer(rate, float(self._late(rate, traces).mean()))
        first = self._late(rate, TRUTH_TRACES).mean()
        second = self._nearer(rate, float(first))
        other = second if abs(second / rate - 1) > LEAST_STEP else rate * (1 + LEAST_STEP)
        shares = np.array([first, self._late(other, TRUTH_TRACES).mean()])
        return crossing(np.array([rate, other]), shares)

    @staticmethod
    def _nearer(rate: float, share: float) -> float:
        """Follow the usual slope of ln(share of late requests) over ln(rate), by at most a tenth."""
        return rate * float(np.clip((ALLOWED / max(share, 1e-6)) ** (1 / SLOPE), 0.9, 1.1))

    def _late(self, rate: float, traces: int) -> NDArray[np.float64]:
        """Return the share of late requests of each trace."""
        shares = []
        for seed in range(90_000, 90_000 + traces):
            due = schedule(rate, TRUTH_S, seed=seed, trace="truth")
            level = self._simulated(OpenLoop(Lengths(LANDSCAPE.workload, seed).requests("truth", len(due)), due), seed)
            shares.append(float((level.first_token_s - level.sent_s > LANDSCAPE.limit_ms / 1000).mean()))
        return np.array(shares)

    def _simulated(self, load: OpenLoop | ClosedLoop, seed: int) -> SimulatedLevel:
        found, noise = started(self.candidate), Noise(step=STEP_SD)
        return simulate(
            found, LANDSCAPE.hardware, LANDSCAPE.shape, load, seed=seed, noise=noise, slowed=lambda at_s: self.slows
        )
