"""Clock of the engine inside the API server."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence

from tuner.model import ModelShape
from tuner.sim.faults import ActiveFaults
from tuner.sim.frontend import Frontend
from tuner.sim.hardware import Hardware
from tuner.sim.metrics import Metrics
from tuner.sim.scheduler import Completed, Request, Scheduler, Step
from tuner.sim.startup import Started
from tuner.sim.virtual import Jitter, Noise, step_cost

MAX_CATCH_UP_S = 0.05
"""Longest lateness in seconds that shorter sleeps make good. Beyond it the machine was too slow and the time is
lost."""


class EngineDeadError(Exception):
    """Death of the engine core, in vLLM's words."""

    def __init__(self) -> None:
        super().__init__("EngineCore encountered an issue. See stack trace (above) for the root cause.")


class Stream:
    """Tokens of one request as they come. A slow consumer finds several at once, as in vLLM."""

    __slots__ = (
        "_dead", "_news", "_taken", "counted", "finished", "first_s", "frontend", "generated", "reason", "request",
        "scheduled_s", "sent_s",
    )  # fmt: skip

    def __init__(self, request: Request, sent_s: float, reason: str, frontend: Frontend | None = None) -> None:
        self.request = request
        self.frontend = frontend
        self.reason = reason
        self.sent_s = sent_s
        self.scheduled_s = 0.0
        self.first_s = 0.0
        self.counted = 0  # tokens that the engine has generated; `generated` are those that the API server has written
        self.generated = 0
        self.finished = False
        self._taken = 0
        self._dead = False
        self._news = asyncio.Event()

    async def take(self, at_least: int = 1) -> tuple[int, bool]:
        """Wait for `at_least` new tokens. Returns (number, True if they are the last). Raises EngineDeadError."""
        while not self.finished and not self._dead and self.generated - self._taken < at_least:
            self._news.clear()
            await self._news.wait()
        if self._dead:
            raise EngineDeadError
        count = self.generated - self._taken
        self._taken = self.generated
        return count, self.finished

    def tell(self, generated: int, *, finished: bool) -> None:
        self.generated = generated
        self.finished = finished
        self._news.set()

    def die(self) -> None:
        self._dead = True
        self._news.set()


class EngineLoop:
    """One engine with its requests and their streams."""

    def __init__(
        self,
        started: Started,
        hardware: Hardware,
        model: ModelShape,
        metrics: Metrics,
        faults: ActiveFaults,
        *,
        speed: float,
        noise: Noise,
        seed: int,
        slowed: Callable[[], float] = lambda: 1.0,
    ) -> None:
        """Create an engine. `slowed` is the factor on a step's duration by what else the machine does."""
        self.started = started
        self.scheduler = Scheduler(started.config, started.usable_blocks)
        self.dead = False
        self._cost = step_cost(started, hardware, model)
        self._metrics = metrics
        self._faults = faults
        self._speed = speed
        self._jitter = Jitter(noise, seed)
        self._slowed = slowed
        self._streams: dict[Request, Stream] = {}
        self._aborted: list[Request] = []
        self._names = itertools.count()
        self._wake = asyncio.Event()
        self._preempted: dict[Request, int] = {}
        self._cached = 0, 0

    @property
    def load(self) -> tuple[int, int, float]:
        """Return its waiting and running requests, and the held share of its KV cache."""
        scheduler = self.scheduler
        return len(scheduler.waiting), len(scheduler.running), scheduler.pool.usage

    @property
    def tokens_seen(self) -> tuple[float, float]:
        """Return the prompt and output tokens that it has processed."""
        return self._metrics.prompt_tokens._value.get(), self._metrics.generation_tokens._value.get()

    def submit(
        self,
        prompt_tokens: int,
        output_tokens: int,
        keys: Sequence[Hashable],
        sent_s: float,
        reason: str = "length",
        frontend: Frontend | None = None,
    ) -> Stream:
        """Queue a request that fits max_model_len. `sent_s` is the loop's time at its arrival. `reason` says why the
        request ends after `output_tokens`: it may have no more ("length") or wants no more ("stop"). Its tokens take
        the time of `frontend`, if one is given."""
        if self.dead:
            raise EngineDeadError
        request = Request(next(self._names), prompt_tokens, output_tokens, keys, sent_s)
        stream = Stream(request, sent_s, reason, frontend)
        self._streams[request] = stream
        self.scheduler.add(request)
        self._wake.set()
        return stream

    def abort(self, stream: Stream) -> None:
        """Abort the request between two steps."""
        if self._streams.pop(stream.request, None) is not None:
            self._aborted.append(stream.request)
            self._preempted.pop(stream.request, None)
            self._metrics.success["abort"].inc()
            self._wake.set()

    def die(self) -> None:
        """End every stream with an error for good."""
        self.dead = True
        for stream in self._streams.values():
            stream.die()
        self._streams.clear()
        self._wake.set()

    async def run(self, hung: Callable[[], bool]) -> None:
        """Step until the engine dies. `hung` tells if it has stopped for good (a fault)."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time()
        while not self.dead:
            self._drop_aborted()
            step = None if hung() else self.scheduler.schedule()
            if step is None:
                self._wake.clear()
                await self._wake.wait()
                deadline_s = loop.time()
                continue
            begun_s = deadline_s = max(deadline_s, loop.time() - MAX_CATCH_UP_S)
            deadline_s += self._cost.seconds(step.work) * self._jitter.factor() * self._slowed() / self._speed
            await asyncio.sleep(max(0.0, deadline_s - loop.time()))
            if not self.dead:
                self._publish(step, self.scheduler.complete(step), begun_s, loop.time())

    def _drop_aborted(self) -> None:
        for request in self._aborted:
            self.scheduler.abort(request)
        self._aborted.clear()

    def _publish(self, step: Step, completed: Completed, begun_s: float, now_s: float) -> None:
        metrics, scheduler = self._metrics, self.scheduler
        for request in step.admitted:
            stream = self._streams.get(request)
            if stream is not None and not stream.scheduled_s:
                stream.scheduled_s = begun_s
                metrics.queue_s.observe(max(0.0, begun_s - stream.sent_s))
        new_tokens = 0
        itl_s = now_s - begun_s
        written: dict[Frontend, list[Stream]] = {}
        for request in itertools.chain(scheduler.running, completed.finished):
            stream = self._streams.get(request)
            generated = scheduler.generated(request)
            if stream is None or generated == stream.counted:
                continue
            new_tokens += 1
            if not stream.first_s:
                self._first_token(stream, now_s)
            else:
                metrics.itl_s.observe(itl_s)
            self._report_preemptions(request)
            stream.counted = generated
            if stream.frontend is None:
                stream.tell(generated, finished=generated >= request.output_tokens)
            else:
                written.setdefault(stream.frontend, []).append(stream)
        _write(written, now_s)
        for request in completed.finished:
            finished = self._streams.pop(request, None)
            if finished is not None:
                self._finished(finished, now_s)
        metrics.generation_tokens.inc(new_tokens)
        metrics.prefix_queries.inc(scheduler.prefix_queries - self._cached[0])
        metrics.prefix_hits.inc(scheduler.prefix_hits - self._cached[1])
        self._cached = scheduler.prefix_queries, scheduler.prefix_hits
        metrics.running.set(len(scheduler.running))
        metrics.waiting.set(len(scheduler.waiting))
        metrics.kv_usage.set(scheduler.pool.usage)

    def _first_token(self, stream: Stream, now_s: float) -> None:
        leak = self._faults.get("ttft-leak")
        stream.first_s = now_s
        leaked_s = leak.number / 1000 * stream.request.name if leak is not None else 0.0
        self._metrics.ttft_s.observe(now_s - stream.sent_s + leaked_s)
        self._metrics.prompt_tokens.inc(stream.request.prompt_tokens)
        self._metrics.prompt_tokens_cached.inc(stream.request.hit_tokens)
        self._metrics.prefill_s.observe(now_s - stream.scheduled_s)

    def _report_preemptions(self, request: Request) -> None:
        """Count preemptions with the next output, as vLLM does. An aborted request never reports it."""
        if request.preemptions > self._preempted.get(request, 0):
            self._metrics.preemptions.inc(request.preemptions - self._preempted.get(request, 0))
            self._preempted[request] = request.preemptions

    def _finished(self, stream: Stream, now_s: float) -> None:
        metrics, request = self._metrics, stream.request
        self._preempted.pop(request, None)
        metrics.success[stream.reason].inc()
        metrics.e2e_s.observe(now_s - stream.sent_s)
        metrics.inference_s.observe(now_s - stream.scheduled_s)
        metrics.decode_s.observe(now_s - stream.first_s)
        if request.output_tokens > 1:
            metrics.tpot_s.observe((now_s - stream.first_s) / (request.output_tokens - 1))
        metrics.request_preemptions.observe(request.preemptions)
        metrics.request_prompt_tokens.observe(request.prompt_tokens)
        metrics.request_generation_tokens.observe(request.output_tokens)


def _write(streams: Mapping[Frontend, Sequence[Stream]], now_s: float) -> None:
    """Let each API server write a token of its streams once it has the time."""
    loop = asyncio.get_running_loop()
    for frontend, mine in streams.items():
        at_s = frontend.write(now_s, len(mine))
        for stream in mine:
            loop.call_at(at_s, _tell_at, stream, stream.counted)


def _tell_at(stream: Stream, generated: int) -> None:
    stream.tell(generated, finished=generated >= stream.request.output_tokens)
