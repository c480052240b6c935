"""Closed or open load on an engine in virtual time.

No sockets and no sleeping: a minute of 200 concurrent requests takes some hundredths of a second of one core.
Deterministic: the same arguments and seed give the same arrays.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.model import ModelShape
from tuner.sim.hardware import Hardware, StepCost
from tuner.sim.scheduler import Request, Scheduler
from tuner.sim.startup import Started


@dataclass(frozen=True, slots=True)
class Shape:
    """One request of a workload. All requests of a `group` share the first `shared_tokens` of their prompt."""

    prompt_tokens: int
    output_tokens: int
    group: int = 0
    shared_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """Load of `clients`, each with one request at a time, until `duration_s`. Open answers are then waited for.
    Shapes are taken in order and again from the first. `turnaround_s` is the client's time between two requests. The
    clients begin evenly over `ramp_s`."""

    shapes: Sequence[Shape]
    clients: int
    duration_s: float
    warmup_s: float = 0.0
    turnaround_s: float = 0.5e-3
    ramp_s: float = 0.0


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Load that sends request i at `arrivals_s[i]`, ascending. Shapes are taken in order, cyclically."""

    shapes: Sequence[Shape]
    arrivals_s: Sequence[float]
    warmup_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Noise:
    """Relative standard deviations of speed. `run` scales all steps of a start alike; `step` is drawn for every
    step."""

    run: float = 0.0
    step: float = 0.0


@dataclass(frozen=True, slots=True)
class SimulatedLevel:
    """Result of a level. Arrays have one entry per request, in the order of sending, in seconds since the level's
    start."""

    sent_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    done_s: NDArray[np.float64]
    output_tokens: NDArray[np.int64]
    preempted: NDArray[np.int64]
    preemptions: int
    peak_kv_usage: float
    steps: int
    window_s: tuple[float, float]

    @property
    def qps(self) -> float:
        """Return the requests completed inside the window, per second."""
        start_s, end_s = self.window_s
        inside = (self.done_s > start_s) & (self.done_s <= end_s)
        return float(inside.sum()) / (end_s - start_s)

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        """Return TTFT of the requests sent inside the window."""
        start_s, end_s = self.window_s
        inside = (self.sent_s >= start_s) & (self.sent_s < end_s)
        ttft_s: NDArray[np.float64] = (self.first_token_s - self.sent_s)[inside]
        return ttft_s

    def ttft_percentile_ms(self, percentile: float) -> float | None:
        """Return a percentile of TTFT. None if no request was sent inside the window."""
        ttft_s = self.ttft_s
        return float(np.percentile(ttft_s, percentile)) * 1000.0 if ttft_s.size else None


def simulate(
    started: Started,
    hardware: Hardware,
    model: ModelShape,
    load: ClosedLoop | OpenLoop,
    *,
    seed: int = 0,
    noise: Noise | None = None,
    slowed: Callable[[float], float] = lambda at_s: 1.0,
) -> SimulatedLevel:
    """Run `load` on a freshly started engine (nothing cached). `slowed` is the factor on a step's duration by what else
    the machine does at a second of the level. Raises ValueError if max_model_len leaves a prompt no room: a server
    would answer it with 400."""
    longest = max((shape.prompt_tokens for shape in load.shapes), default=0)
    if longest >= started.config.max_model_len:
        raise ValueError(f"a prompt of {longest} tokens does not fit max_model_len {started.config.max_model_len}")
    return _Run(started, hardware, model, load, seed, noise or Noise(), slowed).run()


def step_cost(started: Started, hardware: Hardware, model: ModelShape) -> StepCost:
    """Return the cost model of a started engine."""
    config = started.config
    largest = config.capture_sizes[-1] if config.capture_sizes else 0
    return StepCost(
        hardware,
        model,
        config.tensor_parallel_size,
        config.kv_bytes,
        largest,
        config.pipeline_parallel_size,
        config.max_num_scheduled_tokens,
    )


class Jitter:
    """Factors on durations, of a start and of each step. Log-normal, so that none is negative."""

    __slots__ = ("_factors", "_generator", "_index", "_noise", "_run")

    def __init__(self, noise: Noise, seed: int) -> None:
        self._generator = np.random.default_rng(seed)
        self._noise = noise
        self._run = float(np.exp(self._generator.normal(0.0, noise.run))) if noise.run else 1.0
        self._factors: list[float] = []
        self._index = 0

    def factor(self) -> float:
        if not self._noise.step:
            return self._run
        if self._index == len(self._factors):
            self._factors = np.exp(self._generator.normal(0.0, self._noise.step, 4096)).tolist()
            self._index = 0
        self._index += 1
        return self._run * self._factors[self._index - 1]


class _Run:
    """One level. Three resources in series: the frontend's thread, the engine, the frontend's thread again."""

    def __init__(
        self,
        started: Started,
        hardware: Hardware,
        model: ModelShape,
        load: ClosedLoop | OpenLoop,
        seed: int,
        noise: Noise,
        slowed: Callable[[float], float],
    ) -> None:
        self._load = load
        self._hardware = hardware
        self._slowed = slowed
        self._block = started.config.block_size
        self._cost = step_cost(started, hardware, model)
        self._jitter = Jitter(noise, seed)
        self._scheduler = Scheduler(started.config, started.usable_blocks)
        self._max_len = started.config.max_model_len
        self._frontend_free_s = 0.0
        self._sends: list[tuple[float, int]] = []
        self._arriving: deque[tuple[float, Request]] = deque()
        self._requests: list[Request] = []
        self._sent: list[float] = []
        self._first: list[float] = []
        self._done: list[float] = []

    def run(self) -> SimulatedLevel:
        load, now_s = self._load, 0.0
        if isinstance(load, ClosedLoop):
            self._sends = [(load.ramp_s * client / load.clients, client) for client in range(load.clients)]
            end_s = load.duration_s
        else:
            self._sends = [(at_s, index) for index, at_s in enumerate(load.arrivals_s)]
            end_s = load.arrivals_s[-1] if len(load.arrivals_s) else 0.0
        heapq.heapify(self._sends)
        while self._sends or self._arriving or self._scheduler.busy:
            self._accept(now_s)
            step = self._scheduler.schedule()
            if step is None:
                self._read_until(max(now_s, self._sends[0][0] if self._sends else now_s))
                if not self._arriving:
                    break
                now_s = max(now_s, self._arriving[0][0])
                continue
            now_s += self._cost.seconds(step.work) * self._jitter.factor() * self._slowed(now_s)
            completed = self._scheduler.complete(step)
            delivered_s = self._deliver(now_s, step.work.sampled)
            for request in completed.prefilled:
                if not self._first[request.name]:
                    self._first[request.name] = delivered_s
            for request in completed.finished:
                self._finish(request, delivered_s)
        return self._level(load.warmup_s, end_s)

    def _read_until(self, now_s: float) -> None:
        """Let the frontend read requests until `now_s`."""
        while self._sends and max(self._sends[0][0], self._frontend_free_s) <= now_s:
            at_s, client = heapq.heappop(self._sends)
            self._frontend_free_s = max(at_s, self._frontend_free_s) + self._hardware.frontend_s_per_request
            self._arriving.append((self._frontend_free_s, self._send(at_s, client)))

    def _accept(self, now_s: float) -> None:
        """Hand the requests read by `now_s` to the scheduler."""
        while self._arriving and self._arriving[0][0] <= now_s:
            self._scheduler.add(self._arriving.popleft()[1])

    def _send(self, at_s: float, client: int) -> Request:
        shapes = self._load.shapes
        name = len(self._requests)
        shape = shapes[(client if isinstance(self._load, OpenLoop) else name) % len(shapes)]
        keys = [(-1 - shape.group, index) for index in range(shape.shared_tokens // self._block)]
        output = max(1, min(shape.output_tokens, self._max_len - shape.prompt_tokens))
        request = Request(name, shape.prompt_tokens, output, keys, at_s)
        self._requests.append(request)
        self._sent.append(at_s)
        self._first.append(0.0)
        self._done.append(0.0)
        return request

    def _deliver(self, now_s: float, tokens: int) -> float:
        """Return when the frontend has written a step's tokens. It reads earlier requests first."""
        self._read_until(now_s)
        self._frontend_free_s = max(now_s, self._frontend_free_s) + tokens * self._hardware.frontend_s_per_token
        return self._frontend_free_s

    def _finish(self, request: Request, at_s: float) -> None:
        self._done[request.name] = at_s
        load = self._load
        if isinstance(load, ClosedLoop) and at_s + load.turnaround_s < load.duration_s:
            heapq.heappush(self._sends, (at_s + load.turnaround_s, request.name))

    def _level(self, warmup_s: float, end_s: float) -> SimulatedLevel:
        return SimulatedLevel(
            sent_s=np.array(self._sent),
            first_token_s=np.array(self._first),
            done_s=np.array(self._done),
            output_tokens=np.array([request.output_tokens for request in self._requests], dtype=np.int64),
            preempted=np.array([request.preemptions for request in self._requests], dtype=np.int64),
            preemptions=self._scheduler.preemptions,
            peak_kv_usage=self._scheduler.pool.peak_used / max(1, self._scheduler.pool.blocks),
            steps=self._scheduler.step,
            window_s=(warmup_s, end_s),
        )
