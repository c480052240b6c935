"""Loads of the real LiveSession on a simulated engine in virtual time, on a machine that others may disturb.

Only the sockets are replaced: `drive_open`, `drive_closed`, the sampler and the clock. Verdicts, early ends, waits for
quiet, repeats and the capacity search are the product's own. A level's watch is asked once a second, not ten times.
"""

from __future__ import annotations

import random
import threading
from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from tests.fakes import ScriptedClock
from tuner.bench import session as live
from tuner.bench.session import LiveSession
from tuner.load.drive import ClientFigures, LevelProgress, Samples, Watch
from tuner.load.early_end import EarlyEnd
from tuner.load.stream import Failure, RequestSample, Target
from tuner.load.workload import Workload
from tuner.sim import ClosedLoop, Hardware, ModelShape, Noise, OpenLoop, Shape, SimulatedLevel, Started, simulate
from tuner.slo import Slo
from tuner.telemetry.host import HostReading
from tuner.telemetry.prometheus import Scrape
from tuner.telemetry.sampler import Row, Telemetry

STEP_SD = 0.05
WATCH_S = 1.0
ROW_S = 2.0
"""Seconds between two readings of the host."""

QUIET_LAG_MS = 0.8
"""P99 lateness of the client on a quiet machine."""

CORES = float(psutil.cpu_count() or 2)


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Something that slows the engine from `start_s` to `end_s` of the night.

    A step takes `slows` times as long. The client is late by `late_ms` at P99 in the median level. `foreign_cores` are
    what telemetry shows.
    """

    start_s: float
    end_s: float
    slows: float
    late_ms: float = 0.0
    foreign_cores: float = 0.0

    def covers(self, at_s: float) -> bool:
        return self.start_s <= at_s < self.end_s


LATE_SD = 1.1
"""Spread of ln(P99 lateness) from level to level beside a neighbour."""


@dataclass
class VirtualServer:
    """One started engine on a machine with a clock. `start_factor` is what this start's steps take longer."""

    started: Started
    hardware: Hardware
    model: ModelShape
    clock: ScriptedClock
    seed: int
    disturbances: Sequence[Disturbance] = ()
    start_factor: float = 1.0
    recording: VirtualRecording | None = None
    _runs: int = field(default=0, init=False)

    @property
    def now_s(self) -> float:
        return self.clock.now_ns() / 1e9

    def at(self, at_s: float) -> Disturbance | None:
        return next((found for found in self.disturbances if found.covers(at_s)), None)

    def open(self, shapes: Sequence[Shape], due_s: Sequence[float], seconds: float, watch: Watch | None) -> Samples:
        return self._run(OpenLoop(shapes, due_s), seconds, watch)

    def closed(
        self, shapes: Sequence[Shape], clients: int, seconds: float, watch: Watch | None, ramp_s: float
    ) -> Samples:
        return self._run(ClosedLoop(shapes, clients, seconds, ramp_s=ramp_s), seconds, watch)

    def _run(self, load: OpenLoop | ClosedLoop, seconds: float, watch: Watch | None) -> Samples:
        began_s, self._runs = self.now_s, self._runs + 1
        touching = [d for d in self.disturbances if d.end_s > began_s]
        own = self.start_factor

        def slowed(at_s: float) -> float:
            factor = own
            for found in touching:
                if found.start_s <= began_s + at_s < found.end_s:
                    factor *= found.slows
            return factor

        level = simulate(
            self.started, self.hardware, self.model, load,
            seed=1000 * self.seed + self._runs, noise=Noise(step=STEP_SD), slowed=slowed,
        )  # fmt: skip
        played = _Played(level, self._delays_ms(level, began_s), seconds)
        end_s, aborted = played.watched(watch, self.recording)
        self.clock.sleep(end_s)
        samples = played.samples(began_s, end_s, aborted, self.lags_ms(began_s, end_s))
        if self.recording is not None:
            self.recording.preemptions = level.preemptions if aborted is None else played.preempted(end_s)
            self.recording.kv_usage = level.peak_kv_usage
        return samples

    def _delays_ms(self, level: SimulatedLevel, began_s: float) -> NDArray[np.float64]:
        """Draw how late the client sends each request."""
        return self._late_ms(began_s + level.sent_s, self._level_late_ms())

    def lags_ms(self, began_s: float, end_s: float) -> NDArray[np.float64]:
        """Draw the lateness of the client's ticker."""
        return self._late_ms(np.linspace(began_s, began_s + end_s, 400), self._level_late_ms())

    def _late_ms(self, at_s: NDArray[np.float64], p99_ms: float) -> NDArray[np.float64]:
        rng = np.random.default_rng(1000 * self.seed + self._runs)
        late = np.array([(found := self.at(float(s))) is not None and found.late_ms > 0 for s in at_s], dtype=bool)
        tail = np.where(late, max(p99_ms, QUIET_LAG_MS), QUIET_LAG_MS) / np.log(100)
        return np.asarray(rng.exponential(1.0, len(at_s)) * tail)

    def _level_late_ms(self) -> float:
        draw = random.Random(f"{self.seed}/{self._runs}")
        median = max((d.late_ms for d in self.disturbances), default=0.0)
        return median * float(np.exp(draw.gauss(0.0, LATE_SD)))


@dataclass
class _Played:
    """A simulated level as the client sees it."""

    level: SimulatedLevel
    delay_ms: NDArray[np.float64]
    seconds: float

    def __post_init__(self) -> None:
        delay_s = self.delay_ms / 1000
        self.due_s = self.level.sent_s
        self.first_s = self.level.first_token_s + delay_s
        self.done_s = self.level.done_s + delay_s

    def preempted(self, at_s: float) -> int:
        """Count the preemptions that showed by `at_s`: they show when a request goes on."""
        return int(self.level.preempted[self.done_s <= at_s].sum())

    def watched(self, watch: Watch | None, recording: VirtualRecording | None) -> tuple[float, EarlyEnd | None]:
        """Return when the level ends, and why if it is early."""
        drained_s = max(float(self.done_s.max(initial=0.0)), self.seconds)
        if watch is None:
            return drained_s, None
        progress, order = LevelProgress(), np.argsort(self.first_s)
        noticed = self.first_s[order]
        ttft_ms = ((self.first_s - self.due_s) * 1000)[order].tolist()
        has_preemptions = self.level.preemptions > 0
        seen = 0
        for at_s in np.arange(WATCH_S, drained_s, WATCH_S):
            count = int(np.searchsorted(noticed, at_s, side="right"))
            progress.ttft_ms.extend(ttft_ms[seen:count])
            seen = count
            progress.elapsed_s = float(at_s)
            progress.sent = int(np.searchsorted(self.due_s, at_s, side="right"))
            sent = slice(0, progress.sent)
            progress.in_flight = int((self.done_s[sent] > at_s).sum())
            due = self.due_s[sent][self.first_s[sent] > at_s]
            progress.unanswered_ms = ((at_s - due) * 1000).tolist()
            if recording is not None:
                recording.preemptions = self.preempted(float(at_s)) if has_preemptions else 0
            reason = watch(progress)
            if reason is not None:
                return float(at_s), reason
        return drained_s, None

    def samples(self, began_s: float, end_s: float, aborted: EarlyEnd | None, lag_ms: NDArray[np.float64]) -> Samples:
        base = round(began_s * 1e9)
        sent = range(len(self.due_s) if aborted is None else int(np.searchsorted(self.due_s, end_s, side="right")))
        late = self.delay_ms[: len(sent)]
        return Samples(
            requests=tuple(self._request(i, base, end_s) for i in sent),
            started_ns=base,
            ended_ns=base + round(min(self.seconds, end_s) * 1e9),
            drained_ns=base + round(end_s * 1e9),
            planned_s=self.seconds,
            ramp_s=0.0,
            client=ClientFigures(
                0.05, float(np.percentile(lag_ms, 99)), float(np.percentile(late, 99)) if len(late) else None
            ),
            aborted=aborted,
        )  # fmt: skip

    def _request(self, i: int, base: int, end_s: float) -> RequestSample:
        first, done = self.first_s[i] <= end_s, self.done_s[i] <= end_s
        due_ns, tokens = base + round(self.due_s[i] * 1e9), int(self.level.output_tokens[i])
        first_ns = base + round(self.first_s[i] * 1e9) if first else None
        last_ns = base + round(self.done_s[i] * 1e9) if done else first_ns
        return RequestSample(
            index=i, due_ns=due_ns, sent_ns=due_ns + round(self.delay_ms[i] * 1e6), first_ns=first_ns, last_ns=last_ns,
            end_ns=last_ns if done and last_ns is not None else base + round(end_s * 1e9), asked_tokens=tokens,
            prompt_tokens=1, output_tokens=tokens if done else None, cached_tokens=0, status=200,
            failure=None if done else Failure.CUT, error=None, token_ns=array("q", [first_ns] if first_ns else []),
        )  # fmt: skip


class VirtualRecording:
    """Recording of one level, as telemetry.sampler makes it."""

    def __init__(self, server: VirtualServer) -> None:
        self._server = server
        self._began_s = server.now_s
        self.preemptions = 0
        self.kv_usage = 0.0

    def finish(self) -> Telemetry:
        server, began_s, end_s = self._server, self._began_s, self._server.now_s
        rows = [self._row(float(at_s)) for at_s in np.arange(began_s + ROW_S, end_s, ROW_S)]
        before, after = (Scrape(0, running=0, waiting=0, preemptions=float(n)) for n in (0, self.preemptions))
        server.recording = None
        return Telemetry(tuple(rows), before, after, (1,))

    def _row(self, at_s: float) -> Row:
        found = self._server.at(at_s)
        foreign = found.foreign_cores if found is not None else 0.02
        busy = min(CORES, 0.25 + foreign)
        host = HostReading(busy / CORES, busy, 0.05, busy - 0.05 - foreign, 1 << 34)
        at_ns = round(at_s * 1e9)
        return Row(at_ns, Scrape(at_ns, running=1, waiting=0, kv_usage=self.kv_usage), (), host)


class VirtualSampler:
    """Sampler of one virtual server."""

    def __init__(self, server: VirtualServer) -> None:
        self._server = server
        self.servers = self.leaders = self.gpu_indices = ()

    def start(self) -> VirtualRecording:
        self._server.recording = VirtualRecording(self._server)
        return self._server.recording

    def wait_until_idle(self, limit_s: float) -> bool:
        return True


class Lengths:
    """Lengths of requests without words. They depend on seed, key and index alone."""

    def __init__(self, workload: Workload, seed: int) -> None:
        self._shares = workload.shares
        self._seed = seed

    def requests(self, key: str, count: int, repeat: int = 0) -> list[Shape]:
        rng = random.Random(f"{self._seed}/{key}")
        shares = rng.choices(self._shares, [s.weight for s in self._shares], k=max(1, count))
        # A generator of its own, so that a longer draw begins with the numbers of a shorter one.
        lengths = random.Random(f"{self._seed}/{key}/lengths")
        return [
            Shape(lengths.randint(s.prompt.low, s.prompt.high), lengths.randint(s.output.low, s.output.high))
            for s in shares
        ]


def session(
    server: VirtualServer, workload: Workload, slos: tuple[Slo, ...], warm_up_s: float, seed: int, clients: int
) -> LiveSession:
    """Return the product's session on a virtual server."""
    return LiveSession(
        target=Target("http://virtual", "model"),
        prompts=Lengths(workload, seed),  # type: ignore[arg-type]
        slos=slos,
        sampler=VirtualSampler(server),  # type: ignore[arg-type]
        should_stop=threading.Event().is_set,
        on_level=lambda run: None,
        warm_up_s=warm_up_s,
        seed=seed,
        clients=clients,
    )


class _VirtualTime:
    """The functions of `time` that a session uses."""

    def __init__(self, clock: ScriptedClock) -> None:
        self._clock = clock

    def monotonic(self) -> float:
        return self._clock.now_ns() / 1e9

    def monotonic_ns(self) -> int:
        return self._clock.now_ns()

    def sleep(self, seconds: float) -> None:
        self._clock.sleep(seconds)


@contextmanager
def driving(server: VirtualServer) -> Iterator[None]:
    """Let the sessions of this process drive `server` in its own time."""

    def idle_lag_ms(seconds: float) -> float:
        server.clock.sleep(seconds)
        return float(np.percentile(server.lags_ms(server.now_s - seconds, seconds), 99))

    def drive_open(target: Target, requests: Any, due_s: Any, seconds: float, **options: Any) -> Samples:
        return server.open(requests, due_s, seconds, options.get("watch"))

    def drive_closed(target: Target, requests: Any, clients: int, seconds: float, **options: Any) -> Samples:
        return server.closed(requests, clients, seconds, options.get("watch"), options.get("ramp_s", 0.0))

    replaced = {
        "drive_open": drive_open, "drive_closed": drive_closed, "idle_lag_ms": idle_lag_ms,
        "time": _VirtualTime(server.clock),
    }  # fmt: skip
    kept = {name: getattr(live, name) for name in replaced}
    try:
        for name, value in replaced.items():
            setattr(live, name, value)
        yield
    finally:
        for name, value in kept.items():
            setattr(live, name, value)
