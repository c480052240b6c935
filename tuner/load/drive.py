"""Schedule × stream → samples, with the client's lag."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from tuner.load.early_end import EarlyEnd, EarlyEndKind
from tuner.load.prompts import Request
from tuner.load.sockets import allow_connections, own_lack
from tuner.load.stream import Capture, Connection, Failure, RequestSample, Target, encode, sample

TICK_S = 0.005
WATCH_S = 0.1
FROZEN_S = 3.0
"""Gap of the ticker after which the client itself stood still. Beside a real vLLM (CPU build) that takes both of two
cores, gaps of one to two seconds were seen."""

_GAP_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Clock of the gaps. The usual one stands still while a laptop sleeps."""

IDLE_LIMIT_NS = 2_000_000_000
"""Longest idle time of a reused connection. vLLM closes one after 5 s."""

BACK_OFF_S = 0.1
DRAIN_S = 120.0


@dataclass(slots=True)
class LevelProgress:
    """State of a running level, for early ends. `ttft_ms` are the answers so far, in order of notice.

    `unanswered_ms` is how long each request without a token has been due; `failed` counts requests that ended
    without.
    """

    elapsed_s: float = 0.0
    sent: int = 0
    in_flight: int = 0
    failed: int = 0
    ttft_ms: list[float] = field(default_factory=list)
    unanswered_ms: list[float] = field(default_factory=list)


Watch = Callable[[LevelProgress], EarlyEnd | None]
"""Check ten times a second. What it returns ends the level at once, and is kept."""


@dataclass(frozen=True, slots=True)
class ClientFigures:
    """State of the load generator over a level. `cpu_share` is its thread's, of one core. Lags are the lateness of a
    5 ms ticker, `late_p99_ms` that of requests against their schedule."""

    cpu_share: float
    lag_p99_ms: float
    late_p99_ms: float | None


@dataclass(frozen=True, slots=True)
class Samples:
    """All requests of one level. Sending went from `started_ns` to `ended_ns`; the last answer came at `drained_ns`.
    `aborted` is the early end that a watch asked for. `exhausted` means that the requests ran out before the time."""

    requests: tuple[RequestSample, ...]
    started_ns: int
    ended_ns: int
    drained_ns: int
    planned_s: float
    ramp_s: float
    client: ClientFigures
    aborted: EarlyEnd | None = None
    server_lost: bool = False
    exhausted: bool = False


def drive_closed(
    target: Target,
    requests: Sequence[Request],
    concurrency: int,
    seconds: float,
    *,
    ramp_s: float = 0.0,
    drain_s: float = DRAIN_S,
    watch: Watch | None = None,
) -> Samples:
    """Run `concurrency` workers for `seconds`, then drain. Each sends its next request when its last is answered.
    Workers begin evenly over `ramp_s`: started together they would stay in step, wave after wave."""

    async def send(session: _Session) -> None:
        supply = iter(range(len(requests)))
        deadline = time.monotonic() + seconds

        async def worker(delay: float) -> None:
            await asyncio.sleep(delay)
            while time.monotonic() < deadline and not session.stopped:
                index = next(supply, None)
                if index is None:
                    session.supply_ended()
                    return
                capture = await session.exchange(index, time.monotonic_ns())
                if capture.looks_failed:
                    await asyncio.sleep(BACK_OFF_S)

        async with asyncio.TaskGroup() as group:
            for number in range(concurrency):
                group.create_task(worker(ramp_s * number / concurrency))

    return _drive(target, requests, send, seconds, ramp_s, drain_s, watch)


def drive_open(
    target: Target,
    requests: Sequence[Request],
    due_s: Sequence[float],
    seconds: float,
    *,
    drain_s: float = DRAIN_S,
    watch: Watch | None = None,
) -> Samples:
    """Send request i at `due_s[i]`, whatever the server does. Then drain."""

    async def send(session: _Session) -> None:
        started_ns = time.monotonic_ns()
        async with asyncio.TaskGroup() as group:
            for index, offset_s in enumerate(due_s):
                due_ns = started_ns + round(offset_s * 1e9)
                while (wait_s := (due_ns - time.monotonic_ns()) / 1e9) > 0:
                    await asyncio.sleep(wait_s)  # again: uvloop's timers have milliseconds, and may end early
                if session.stopped:
                    return
                group.create_task(session.exchange(index, due_ns))

    return _drive(target, requests, send, seconds, 0.0, drain_s, watch)


def _drive(
    target: Target,
    requests: Sequence[Request],
    send: Callable[[_Session], Awaitable[None]],
    seconds: float,
    ramp_s: float,
    drain_s: float,
    watch: Watch | None,
) -> Samples:
    allow_connections()
    payloads = [encode(target, request) for request in requests]
    session = _Session(target, payloads, watch)
    with _garbage_collection_frozen(), asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(session.run(send, seconds + drain_s))
    captures = sorted(session.captures, key=lambda capture: capture.index)
    late_ms = [(c.sent_ns - c.due_ns) / 1e6 for c in captures]
    ended_ns = min(session.exhausted_ns or session.drained_ns, session.started_ns + round(seconds * 1e9))
    return Samples(
        requests=tuple(sample(capture, requests[capture.index]) for capture in captures),
        started_ns=session.started_ns,
        ended_ns=ended_ns,
        drained_ns=session.drained_ns,
        planned_s=seconds,
        ramp_s=ramp_s,
        client=ClientFigures(
            cpu_share=session.cpu_s / max((session.drained_ns - session.started_ns) / 1e9, 1e-9),
            lag_p99_ms=_percentile(session.lag_ms, 99) or 0.0,
            late_p99_ms=_percentile(late_ms, 99),
        ),
        aborted=session.aborted,
        server_lost=session.lost,
        exhausted=session.exhausted_ns is not None,
    )


class _Session:
    """One level on one event loop."""

    def __init__(self, target: Target, payloads: Sequence[bytes], watch: Watch | None) -> None:
        self._address = target.address
        self._tls = target.tls
        self._payloads = payloads
        self._watch = watch
        self._idle: list[Connection] = []
        self._in_flight: set[Capture] = set()
        self._unnoticed: set[Capture] = set()
        self._kept = 0
        """Reused connections that answered. Those that the server `_closed` instead must not be more."""
        self._closed = 0
        self._progress = LevelProgress()
        self._stop: asyncio.Future[None] | None = None
        self._beat_s = 0.0
        self.captures: list[Capture] = []
        self.lag_ms: list[float] = []
        self.started_ns = self.drained_ns = 0
        self.cpu_s = 0.0
        self.aborted: EarlyEnd | None = None
        self.lost = False
        self.exhausted_ns: int | None = None

    @property
    def stopped(self) -> bool:
        return self._stop is not None and self._stop.done()

    async def run(self, send: Callable[[_Session], Awaitable[None]], limit_s: float) -> None:
        loop = asyncio.get_running_loop()
        self._stop = loop.create_future()
        self.started_ns, cpu_s = time.monotonic_ns(), time.thread_time()
        self._beat_s = time.clock_gettime(_GAP_CLOCK)
        sending = asyncio.ensure_future(send(self))
        beat = asyncio.create_task(self._beat())
        await asyncio.wait({sending, self._stop}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        self._notice_gap()  # a timeout may come before the next beat
        if not sending.done():
            cut = Failure.CUT if self.stopped else Failure.TIMEOUT
            self._end()
            for capture in list(self._in_flight):
                capture.finish(cut)
            await asyncio.sleep(0)
            sending.cancel()
        self.drained_ns, self.cpu_s = time.monotonic_ns(), time.thread_time() - cpu_s
        beat.cancel()
        results = await asyncio.gather(sending, beat, return_exceptions=True)
        for connection in self._idle:
            connection.close()
        for result in results:
            if isinstance(result, Exception):
                raise result

    def supply_ended(self) -> None:
        self.exhausted_ns = self.exhausted_ns or time.monotonic_ns()

    def _end(self) -> None:
        if self._stop is not None and not self._stop.done():
            self._stop.set_result(None)

    async def exchange(self, index: int, due_ns: int) -> Capture:
        capture = Capture(index, due_ns)
        self.captures.append(capture)
        self._in_flight.add(capture)
        self._unnoticed.add(capture)
        while not capture.ended:
            await self._send(capture)
        self._in_flight.discard(capture)
        return capture

    async def _send(self, capture: Capture) -> None:
        """Send a request and wait for its answer. It has not ended if the server closed a reused connection on it."""
        again = capture.woken.done()
        if again:
            self._closed += 1
            capture.woken = asyncio.get_running_loop().create_future()
        try:
            connection = await self._connect(reuse=not again and self._closed <= self._kept)
        except OSError as error:
            lack = own_lack(error)
            capture.finish(Failure.CONNECT if lack is None else Failure.CUT)
            if lack is not None:
                self._abort(EarlyEnd(lack))
            elif isinstance(error, ConnectionRefusedError):
                self.lost = True
                self._end()
            return
        reused = connection.idle_since_ns != 0
        if self.stopped:
            capture.finish(Failure.CUT)
        elif not capture.ended:
            connection.send(self._payloads[capture.index], capture)
        await capture.woken
        self._kept += reused and capture.ended
        if capture.failure in (Failure.CUT, Failure.TIMEOUT):
            connection.close()
        elif connection.usable:
            self._idle.append(connection)

    async def _connect(self, *, reuse: bool) -> Connection:
        newest_ns = time.monotonic_ns() - IDLE_LIMIT_NS
        while self._idle:
            connection = self._idle.pop()
            if reuse and connection.usable and connection.idle_since_ns >= newest_ns:
                return connection
            connection.close()
        host, port = self._address
        _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port, ssl=self._tls)
        return connection

    async def _beat(self) -> None:
        """Tick: its lateness is the client's lag. Asks the watch every 0.1 s."""
        next_watch = time.monotonic() + WATCH_S
        while True:
            before = time.monotonic()
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            self.lag_ms.append(max(0.0, (now - before - TICK_S) * 1000))
            self._notice_gap()
            if self._watch is not None and now >= next_watch:
                next_watch = now + WATCH_S
                self._ask(self._watch)

    def _notice_gap(self) -> None:
        """End the level if the client stood still. Whatever else ended it is not the server's then."""
        before_s, self._beat_s = self._beat_s, time.clock_gettime(_GAP_CLOCK)
        if (gap_s := self._beat_s - before_s) > FROZEN_S:
            self.aborted = EarlyEnd(EarlyEndKind.CLIENT_FROZEN, seconds=gap_s)
            self._end()

    def _abort(self, reason: EarlyEnd) -> None:
        if self.aborted is None:
            self.aborted = reason
            self._end()

    def _ask(self, watch: Watch) -> None:
        now_ns = time.monotonic_ns()
        progress = self._progress
        unanswered = []
        for capture in list(self._unnoticed):
            if capture.ended and capture.looks_failed:
                progress.failed += 1
            elif capture.answered_ns or capture.ended:
                progress.ttft_ms.append(((capture.answered_ns or capture.end_ns) - capture.due_ns) / 1e6)
            else:
                unanswered.append((now_ns - capture.due_ns) / 1e6)
                continue
            self._unnoticed.discard(capture)
        progress.elapsed_s = (now_ns - self.started_ns) / 1e9
        progress.sent = len(self.captures)
        progress.in_flight = len(self._in_flight)
        progress.unanswered_ms = unanswered
        reason = watch(progress)
        if reason is not None:
            self._abort(reason)


def idle_lag_ms(seconds: float) -> float:
    """Return the P99 lateness of the ticker without a load."""
    lags_ms, ends = [0.0], time.monotonic() + seconds
    while (before := time.monotonic()) < ends:
        time.sleep(TICK_S)
        lags_ms.append((time.monotonic() - before - TICK_S) * 1000)
    return _percentile(lags_ms, 99) or 0.0


@contextmanager
def _garbage_collection_frozen() -> Iterator[None]:
    """Freeze collection. A full one over a million kept packets takes longer than an answer."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """Return uvloop if installed. It needs 3 to 4 times less CPU per chunk than asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _percentile(values: list[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None
