"""LiveSession: the tasks of a trial or of `tuner bench` on a real server."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tuner.bench.capacity_search import ProbeResult, Saturation, Stop
from tuner.bench.level import Level, LevelRun
from tuner.bench.measured import Cut, InvalidLoadError, LoadCutError, Measured, measure_task
from tuner.bench.quiet import LOOK_S, PATIENCE_LEVELS, PATIENCE_S, Doubt, DoubtKind, Surroundings
from tuner.bench.task import ClaimRate, HoldRate, MeasureBlock, RunLadder, SearchCapacity, Task
from tuner.load.arrivals import Arrivals, arriving
from tuner.load.backlog import Backlog
from tuner.load.drive import LevelProgress, Samples, drive_closed, drive_open, idle_lag_ms
from tuner.load.early_end import BACKLOG_GROWS, INTERRUPTED, EarlyEnd, EarlyEndKind
from tuner.load.prompts import Prompts, Request
from tuner.load.stream import Target
from tuner.measurement import Load, LoadKind, measure
from tuner.slo import Metric, Slo, longest_wait_s
from tuner.telemetry.cautions import machine_cautions
from tuner.telemetry.sampler import Recording, Sampler
from tuner.verdict import FEWEST_REQUESTS, Evidence, Outcome, Reason, client_faults, judge, kept_limits, most_violations

CONCURRENCIES = (16, 64, 256)
"""Numbers of clients that a warm-up tries in turn, if it is unknown how many fill the server."""

FILLED = 1.1
"""Rise of the throughput below which the server counts as full."""

SUPPLY = 2.0
"""Requests prepared for a level, as a multiple of the warm-up's pace."""

TOLERATED = 0.5
"""Share of the tightest wait below which no queue counts as growing."""

WARM_UP_WAVES = 8
IDLE_LIMIT_S = 30.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Throughput and answer time of the warm-up, about the most that any level reaches."""

    clients: int
    qps: float
    answer_s: float

    @classmethod
    def of(cls, warm: Samples, clients: int) -> Pace:
        answers_s = [(r.last_ns - r.due_ns) / 1e9 for r in warm.requests if r.last_ns is not None]
        seconds = (warm.drained_ns - warm.started_ns) / 1e9
        return cls(clients, len(answers_s) / max(seconds, 1e-3), float(np.mean(answers_s)) if answers_s else 0.0)

    def requests(self, seconds: float, clients: int) -> int:
        """Return the number of requests that a closed loop cannot exhaust."""
        return round(SUPPLY * self.qps * seconds) + 2 * clients


@dataclass
class LiveSession:
    """Session and loads of one running server. The first task warms it up.

    Attributes:
        should_stop: Asked ten times a second; True cuts the load off.
        alive: Asked after every load. Behind a door the others may answer although one server is lost.
        on_level: Called with every level before the next one begins.
        clients: Number of clients that fill the server. None: the warm-up finds it.
        on_wait: Called with the reasons before a wait for a quiet machine, and with none after it.
    """

    target: Target
    prompts: Prompts
    slos: tuple[Slo, ...]
    sampler: Sampler
    should_stop: Callable[[], bool]
    on_level: Callable[[LevelRun], None]
    warm_up_s: float
    seed: int = 0
    clients: int | None = None
    alive: Callable[[], bool] = lambda: True
    on_wait: Callable[[tuple[Reason, ...]], None] = lambda reasons: None
    levels: list[Level] = field(default_factory=list, init=False)
    seconds: float = field(default=0.0, init=False)
    waited_s: float = field(default=0.0, init=False)
    _arrivals: Arrivals = field(default_factory=Arrivals, init=False)
    _pace: Pace | None = field(default=None, init=False)
    _repeats: Counter[str] = field(default_factory=Counter, init=False)
    _surroundings: Surroundings = field(default_factory=Surroundings, init=False)

    def run(self, task: Task) -> Measured:
        return measure_task(task, self, longest_wait_s(self.slos))

    def warm_up(self, task: Task) -> None:
        """Load the server before measuring. The first load is 8 to 20 % slower (docs/vllm.md)."""
        if isinstance(task, HoldRate | SearchCapacity | MeasureBlock | ClaimRate):
            self._arrivals = task.arrivals
        if self._pace is not None:
            return
        if isinstance(task, HoldRate):
            requests, due = arriving(
                lambda count: self.prompts.requests("warm-up", count),
                task.rate, self.warm_up_s, seed=self.seed, trace="warm-up", arrivals=self._arrivals,
            )  # fmt: skip
            self._check(drive_open(self.target, requests, due, self.warm_up_s, watch=self._interrupted))
            return
        clients = max(task.levels) if isinstance(task, RunLadder) else self.clients
        self._pace = self._fill() if clients is None else self._pace_at(clients, self.warm_up_s)

    def closed(self, concurrency: int, seconds: float) -> Level:
        return self._undisturbed(lambda: self._closed(concurrency, seconds)).level

    def _closed(self, concurrency: int, seconds: float) -> LevelRun:
        self._wait_until_idle()
        assert self._pace is not None
        requests = self._requests(f"level-{concurrency}", self._pace.requests(seconds, concurrency))
        recording = self.sampler.start()
        watch = LevelWatch(self.slos, recording, self.should_stop, len(requests) / SUPPLY)
        ramp_s = min(self._pace.answer_s, seconds / 4)
        samples = drive_closed(self.target, requests, concurrency, seconds, ramp_s=ramp_s, watch=watch)
        return self._finished(samples, recording, Load(LoadKind.CLOSED, concurrency))

    def probe(self, rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        run = self._undisturbed(lambda: self._open(rate, seconds, trace, stop))
        cut = run.measurement.aborted is not None
        passed = kept_limits(run.measurement, run.verdict, Evidence.NONE)
        return ProbeResult(rate, passed, None if cut else run.verdict.slo_margin, run.seconds)

    def saturate(self, seconds: float) -> Saturation:
        """Keep the server full. At most the first third is left out, and no limit ends it: it is no candidate."""

        def doubt(level: Level) -> Doubt | None:
            faults = client_faults(level.measurement, self.slos)
            return self._surroundings.spoilt(level.measurement, faults)

        run = self._undisturbed(lambda: self._filling(seconds), doubt)
        seen = run.measurement
        if seen.e2e_ms is None:
            return Saturation(0.0, run.seconds)
        # If answers take longer than `seconds`, none ends in its time; those that come later tell the pace too.
        return Saturation(seen.qps or seen.completed / run.seconds, seen.e2e_ms.mean / 1000)

    def _filling(self, seconds: float) -> LevelRun:
        self._wait_until_idle()
        assert self._pace is not None
        clients = self._pace.clients
        prepared = self._requests("saturation", self._pace.requests(seconds, clients))
        recording = self.sampler.start()
        samples = drive_closed(self.target, prepared, clients, seconds, watch=self._interrupted)
        return self._finished(samples, recording, Load(LoadKind.CLOSED, clients))

    def _undisturbed(
        self, load: Callable[[], LevelRun], doubt_of: Callable[[Level], Doubt | None] | None = None
    ) -> LevelRun:
        """Load, and load again what says nothing of the server (quiet.py), each kind of doubt once. Raises
        InvalidLoadError if the load cannot be offered undisturbed."""
        doubted: set[DoubtKind] = set()
        while True:
            run = load()
            doubt = (doubt_of or self._surroundings.doubt)(run.level)
            again = doubt is not None and doubt.kind in doubted
            if doubt is None or (again and doubt.kind in (DoubtKind.LOUD, DoubtKind.FAILED)):
                self._surroundings.counts(run.measurement, again=again)
                return self._kept(run)
            run = self._kept(replace(run, verdict=replace(run.verdict, outcome=Outcome.INVALID, reasons=doubt.reasons)))
            if again or doubt.kind is DoubtKind.CLIENT:
                raise InvalidLoadError(run.measurement.load, run.verdict)
            doubted.add(doubt.kind)
            if doubt.kind is not DoubtKind.FAILED:
                self._wait_for_quiet(doubt, run.measurement.planned_s)

    def _wait_for_quiet(self, doubt: Doubt, level_s: float) -> None:
        """Wait until the machine is as quiet as it was, or patience ends."""
        self.on_wait(doubt.reasons)
        most_s = min(PATIENCE_S, self.waited_s + PATIENCE_LEVELS * level_s)
        while True:
            quiet = self._is_quiet()
            self.waited_s += LOOK_S
            if quiet or self.waited_s >= most_s:
                break
        self.on_wait(())

    def _is_quiet(self) -> bool:
        """Look at the machine without load."""
        if self.should_stop():
            raise LoadCutError(Cut.INTERRUPTED)
        recording = self.sampler.start()
        lag_ms = idle_lag_ms(LOOK_S)
        return self._surroundings.is_quiet(machine_cautions(recording.finish()), lag_ms, self.slos)

    def _open(self, rate: float, seconds: float, trace: str, stop: Stop) -> LevelRun:
        self._wait_until_idle()
        requests, due = arriving(
            lambda count: self._requests(trace, count),
            rate, seconds, seed=self.seed, trace=trace, arrivals=self._arrivals,
        )  # fmt: skip
        recording = self.sampler.start()
        slos = self.slos if stop is Stop.AT_REJECTION else ()
        level_watch = LevelWatch(slos, recording, self.should_stop, len(due))
        backlog = Backlog(seconds, TOLERATED * longest_wait_s(self.slos) * 1000)

        def watch(progress: LevelProgress) -> EarlyEnd | None:
            grows = stop is Stop.AT_REJECTION and backlog.grows(progress)
            return level_watch(progress) or (BACKLOG_GROWS if grows else None)

        samples = drive_open(self.target, requests, due, seconds, watch=watch)
        return self._finished(samples, recording, Load(LoadKind.OPEN, rate))

    def _fill(self) -> Pace:
        """Find the clients that fill the server without a long queue."""
        best: Pace | None = None
        for clients in CONCURRENCIES:
            pace = self._pace_at(clients, self.warm_up_s / len(CONCURRENCIES))
            if best is not None and pace.qps < FILLED * best.qps:
                break
            best = pace
        assert best is not None
        return best

    def _pace_at(self, clients: int, seconds: float) -> Pace:
        """Send throw-away prompts in rounds, since their number is unknown. The last round gives the pace, but not the
        very first answers: a server that compiles for them is far slower than afterwards."""
        deadline = time.monotonic() + seconds
        for attempt in itertools.count():
            left_s = max(0.1, deadline - time.monotonic())
            requests = self.prompts.requests(f"warm-up-{clients}-{attempt}", WARM_UP_WAVES * clients)
            samples = self._check(drive_closed(self.target, requests, clients, left_s, watch=self._interrupted))
            only_the_first = attempt == 0 and len(samples.requests) <= clients
            stood_still = samples.aborted is not None and samples.aborted.kind is EarlyEndKind.CLIENT_FROZEN
            if time.monotonic() >= deadline and not only_the_first and not stood_still:
                return Pace.of(samples, clients)
        raise AssertionError("itertools.count ends")

    def _requests(self, key: str, count: int) -> list[Request]:
        """Return a key's lengths with new words each time. The prefix cache knows the old ones."""
        self._repeats[key] += 1
        return self.prompts.requests(key, count, self._repeats[key] - 1)

    def _wait_until_idle(self) -> None:
        if self.should_stop():
            raise LoadCutError(Cut.INTERRUPTED)
        if not self.sampler.wait_until_idle(IDLE_LIMIT_S):
            raise LoadCutError(Cut.NOT_IDLE)

    def _finished(self, samples: Samples, recording: Recording, load: Load) -> LevelRun:
        telemetry = recording.finish()
        self._check(samples)
        measurement = measure(samples, telemetry, load, seed=self.seed, slos=self.slos)
        return LevelRun(measurement, judge(measurement, self.slos), samples, telemetry)

    def _kept(self, run: LevelRun) -> LevelRun:
        self.levels.append(run.level)
        self.seconds += run.seconds
        self.on_level(run)
        return run

    def _check(self, samples: Samples) -> Samples:
        if samples.server_lost or not self.alive():
            raise LoadCutError(Cut.SERVER_LOST)
        if samples.aborted == INTERRUPTED:
            raise LoadCutError(Cut.INTERRUPTED)
        return samples

    def _interrupted(self, progress: LevelProgress) -> EarlyEnd | None:
        return INTERRUPTED if self.should_stop() else None


class LevelWatch:
    """Watch that ends a level with a certain verdict: a preemption, a failure, or too many late answers."""

    def __init__(
        self, slos: Sequence[Slo], recording: Recording, should_stop: Callable[[], bool], planned: float
    ) -> None:
        self._limits = [
            (slo, most_violations(round(max(planned, FEWEST_REQUESTS)), slo))
            for slo in slos
            if slo.metric is Metric.TTFT
        ]
        self._recording = recording
        self._should_stop = should_stop

    def __call__(self, progress: LevelProgress) -> EarlyEnd | None:
        if self._should_stop():
            return INTERRUPTED
        if progress.failed:
            return EarlyEnd(EarlyEndKind.REQUEST_FAILED)
        if self._recording.preemptions:
            return EarlyEnd(EarlyEndKind.PREEMPTED)
        for slo, most in self._limits:
            late = sum(ms > slo.limit_ms for ms in (*progress.ttft_ms, *progress.unanswered_ms))
            if late > most:
                return EarlyEnd(EarlyEndKind.LIMIT_EXCEEDED, late, slo)
        return None
