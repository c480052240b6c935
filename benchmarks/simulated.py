"""Regimes on the stand-in in virtual time, as probes for the capacity search, with their true capacity."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuner.bench.capacity_search import ProbeResult, Saturation, Stop
from tuner.load.arrivals import schedule
from tuner.sim import (
    ClosedLoop,
    EngineArguments,
    OpenLoop,
    Refused,
    Shape,
    hardware_profile,
    load_model,
    simulate,
    startup,
)
from tuner.sim.hardware import Hardware
from tuner.sim.virtual import Noise, SimulatedLevel

NOISE = Noise(step=0.05)
ALLOWED = 0.01
KEPT = Path(tempfile.gettempdir()) / "tuner-true-capacity.json"
MODEL = "Qwen/Qwen3-8B"


@dataclass(frozen=True, slots=True)
class Regime:
    """Model, card and traffic. `prompt` and `output` are ranges of tokens; `slo_s` is the limit on P99 TTFT."""

    name: str
    hardware: str
    arguments: EngineArguments
    prompt: tuple[int, int]
    output: tuple[int, int]
    slo_s: float
    clients: int
    model: str = MODEL


REGIMES = (
    Regime("chat", "h100", EngineArguments(max_model_len=4096, max_num_seqs=256), (200, 600), (80, 180), 0.5, 320),
    Regime("sequences", "h100", EngineArguments(max_model_len=4096, max_num_seqs=64), (200, 600), (80, 180), 0.5, 80),
    Regime(
        "kv",
        "h100",
        EngineArguments(max_model_len=4096, num_gpu_blocks_override=4000),
        (800, 1600),
        (120, 240),
        1.0,
        128,
    ),
    Regime("long prompts", "h100", EngineArguments(max_model_len=8192), (2000, 4000), (40, 80), 1.0, 128),
)
"""Regimes on which the rules of the search were chosen."""

HOLD_OUTS = (
    Regime("4090 chat", "rtx4090", EngineArguments(max_model_len=4096), (200, 600), (80, 180), 1.0, 128),
    Regime(
        "l40s documents",
        "l40s",
        EngineArguments(max_model_len=8192, max_num_seqs=128),
        (500, 1500),
        (150, 350),
        1.0,
        160,
        "meta-llama/Llama-3.1-8B-Instruct",
    ),
    Regime(
        "32b long prompts",
        "h100",
        EngineArguments(max_model_len=8192),
        (2000, 4000),
        (100, 200),
        2.0,
        64,
        "Qwen/Qwen3-32B",
    ),
    Regime(
        "moe mixed",
        "a100-80g",
        EngineArguments(max_model_len=4096, max_num_seqs=256),
        (200, 1200),
        (100, 300),
        0.5,
        320,
        "Qwen/Qwen3-30B-A3B",
    ),
)
"""Other cards and models. The last two had no part in the choice of the claims' rules."""


def faster(hardware: Hardware, factor: float) -> Hardware:
    """Return the same machine with every step shorter by `factor`."""
    return replace(
        hardware,
        bandwidth_bytes_per_s=hardware.bandwidth_bytes_per_s * factor,
        flops_per_s=hardware.flops_per_s * factor,
        step_overhead_s=hardware.step_overhead_s / factor,
        sequence_overhead_s=hardware.sequence_overhead_s / factor,
        launch_s_per_layer=hardware.launch_s_per_layer / factor,
        frontend_s_per_request=hardware.frontend_s_per_request / factor,
        frontend_s_per_token=hardware.frontend_s_per_token / factor,
    )


class Bench:
    """One candidate under a regime. `seed` fixes prompts and arrivals: equal seeds are common random numbers."""

    def __init__(self, regime: Regime, seed: int, speed: float = 1.0) -> None:
        self.regime = regime
        self.seed = seed
        self._hardware = faster(hardware_profile(regime.hardware), speed)
        self._model = load_model(regime.model)
        started = startup(regime.arguments, self._hardware, self._model)
        if isinstance(started, Refused):
            raise RuntimeError(started.message)
        self._started = started
        self._runs = 0
        self.spent_s = 0.0

    def probe(self, rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        level = self.open_level(rate, seconds, trace)
        limit = self.regime.slo_s
        rejected = rejected_at_s(level, seconds, limit)
        cut = rejected is not None and stop is Stop.AT_REJECTION
        spent = rejected if rejected is not None and cut else seconds + limit
        self.spent_s += spent
        ratio = p99(level.first_token_s - level.sent_s) / limit
        return ProbeResult(rate, rejected is None, None if cut else float(np.log(ratio)), spent)

    def saturate(self, seconds: float) -> Saturation:
        level = self.closed_level(self.regime.clients, seconds, seconds / 3)
        self.spent_s += seconds
        answered = level.done_s > 0
        return Saturation(level.qps, float((level.done_s - level.sent_s)[answered].mean()))

    def open_level(self, rate: float, seconds: float, trace: str) -> SimulatedLevel:
        due = schedule(rate, seconds, seed=self.seed, trace=trace)
        return self._run(OpenLoop(self._shapes(trace, len(due)), due))

    def closed_level(self, clients: int, seconds: float, warm_up_s: float) -> SimulatedLevel:
        return self._run(ClosedLoop(self._shapes(f"closed-{clients}", 4000), clients, seconds, warm_up_s))

    def _run(self, load: ClosedLoop | OpenLoop) -> SimulatedLevel:
        self._runs += 1
        return simulate(
            self._started, self._hardware, self._model, load, seed=1000 * self.seed + self._runs, noise=NOISE
        )

    def _shapes(self, trace: str, count: int) -> Sequence[Shape]:
        rng = random.Random(f"{self.seed}/{trace}")
        return [Shape(rng.randint(*self.regime.prompt), rng.randint(*self.regime.output)) for _ in range(max(1, count))]


def rejected_at_s(level: SimulatedLevel, seconds: float, limit_s: float) -> float | None:
    """Return when a probe of the first `seconds` is certain not to pass. None if it passes.

    It fails with more than one request in a hundred over the limit. Each counts once it is unanswered for that long.
    """
    due = level.sent_s < seconds
    late = due & (level.first_token_s - level.sent_s > limit_s)
    late_at_s = np.sort(level.sent_s[late] + limit_s)
    allowed = int(ALLOWED * due.sum())
    return float(late_at_s[allowed]) if len(late_at_s) > allowed else None


def p99(ttft_s: NDArray[np.float64]) -> float:
    return float(np.percentile(ttft_s, 99, method="inverted_cdf"))


@dataclass(frozen=True, slots=True)
class Truth:
    """True capacity in requests per second, and its standard error as a share of it."""

    rate: float
    error: float


def true_capacity(regime: Regime, start: float, pool: Pool, seconds: float = 600.0, traces: int = 12) -> Truth:
    """Find the Poisson rate at which one request in a hundred exceeds the limit. `start` is about 0.9 of saturation.

    Short runs enclose it within 6 %. Then `traces` long ones follow at three rates across that interval. A straight
    line is fitted through ln(share of late requests) over ln(rate), without rates that have hardly any late request.
    The error is the jackknife's over traces, which are the same at all rates: violations come in clusters and are
    not independent.

    The result is kept in a file, since it takes minutes. `start` was measured on the same simulator and changes with
    it.
    """
    kept = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    key = f"{regime} {start!r} {seconds} {traces}"
    if key not in kept:
        truth = _true_capacity(regime, start, pool, seconds, traces)
        kept[key] = [truth.rate, truth.error]
        KEPT.write_text(json.dumps(kept))
    return Truth(*kept[key])


def _true_capacity(regime: Regime, start: float, pool: Pool, seconds: float, traces: int) -> Truth:
    def late(rate: float, seconds: float, count: int) -> NDArray[np.float64]:
        tasks = [(regime, rate, seconds, number) for number in range(count)]
        return np.array(pool.starmap(late_share, tasks, chunksize=1))

    low, high = 0.94 * start, start
    while late(high, seconds / 3, 4).mean() <= ALLOWED:
        low, high = high, high * 1.06
    while late(low, seconds / 3, 4).mean() > ALLOWED:
        low, high = low * 0.94, low
    rates = np.geomspace(low, high, 3)
    shares = np.array([late(float(rate), seconds, traces) for rate in rates])
    estimate = crossing(rates, shares.mean(axis=1))
    without = [crossing(rates, np.delete(shares, trace, axis=1).mean(axis=1)) for trace in range(traces)]
    error = np.sqrt((traces - 1) * np.var(without)) / estimate
    return Truth(estimate, float(error))


def crossing(rates: NDArray[np.float64], shares: NDArray[np.float64]) -> float:
    """Return the rate at which the fitted share is ALLOWED."""
    seen = shares > ALLOWED / 50
    slope, level = np.polyfit(np.log(rates[seen]), np.log(shares[seen] / ALLOWED), 1)
    return float(np.exp(-level / slope))


def late_share(regime: Regime, rate: float, seconds: float, number: int) -> float:
    level = Bench(regime, 90_000 + number).open_level(rate, seconds, "truth")
    return float(((level.first_token_s - level.sent_s) > regime.slo_s).mean())
