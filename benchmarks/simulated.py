"""Four regimes on the stand-in in virtual time, as probes for the capacity search, with their true capacity."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.pool import Pool

import numpy as np
from numpy.typing import NDArray

from tuner.load.arrivals import schedule
from tuner.load.capacity_search import ProbeResult, Saturation, Stop
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
MODEL = "Qwen/Qwen3-8B"


@dataclass(frozen=True, slots=True)
class Regime:
    """`prompt` and `output` are ranges of tokens; `slo_s` the limit on P99 TTFT."""

    name: str
    hardware: str
    arguments: EngineArguments
    prompt: tuple[int, int]
    output: tuple[int, int]
    slo_s: float
    clients: int


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


def faster(hardware: Hardware, factor: float) -> Hardware:
    """The same machine with every step shorter by `factor`."""
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
        self._model = load_model(MODEL)
        started = startup(regime.arguments, self._hardware, self._model)
        if isinstance(started, Refused):
            raise RuntimeError(started.message)
        self._started = started
        self._runs = 0
        self.spent_s = 0.0

    def probe(self, rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        level = self.open_level(rate, seconds, trace)
        ttft_s = level.first_token_s - level.sent_s
        limit = self.regime.slo_s
        allowed = int(0.01 * len(ttft_s))
        late_at = np.sort((level.sent_s + limit)[ttft_s > limit])
        passed = len(late_at) <= allowed
        spent = seconds + limit if passed or stop is Stop.AT_END else float(late_at[allowed])
        self.spent_s += spent
        cut = not passed and stop is Stop.AT_REJECTION
        return ProbeResult(rate, passed, None if cut else float(np.log(p99(ttft_s) / limit)), spent)

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


def p99(ttft_s: NDArray[np.float64]) -> float:
    return float(np.percentile(ttft_s, 99, method="inverted_cdf"))


def true_capacity(regime: Regime, start: float, pool: Pool, seconds: float = 400.0, traces: int = 6) -> float:
    """The Poisson rate at which one request in a hundred exceeds the limit, over `traces` long runs; by interpolation.

    Its own error is about one per cent: violations come in clusters.
    """

    def excess(rate: float) -> float:
        late = pool.starmap(late_share, [(regime, rate, seconds, number) for number in range(traces)], chunksize=1)
        return float(np.log(max(float(np.mean(late)), 1e-5) / 0.01))

    low: float = start * 0.8
    high: float = start
    below, above = excess(low), excess(high)
    while above <= 0:
        low, below, high = high, above, high * 1.08
        above = excess(high)
    while below > 0:
        high, above, low = low, below, low * 0.9
        below = excess(low)
    while high / low > 1.03:
        middle = float((low * high) ** 0.5)
        value = excess(middle)
        if value <= 0:
            low, below = middle, value
        else:
            high, above = middle, value
    return float(low * (high / low) ** (-below / (above - below)))


def late_share(regime: Regime, rate: float, seconds: float, number: int) -> float:
    level = Bench(regime, 90_000 + number).open_level(rate, seconds, "truth")
    return float(((level.first_token_s - level.sent_s) > regime.slo_s).mean())
