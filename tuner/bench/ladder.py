"""Closed-loop ladder over one running server: one level after the other, cut where going on cannot help."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tuner.load.drive import LevelProgress, Samples, ServerLostError, drive_closed
from tuner.load.prompts import Prompts
from tuner.load.stream import Target
from tuner.measurement import Load, LoadKind, Measurement, measure
from tuner.slo import Metric, Slo
from tuner.telemetry.sampler import Recording, Sampler, Telemetry
from tuner.verdict import FEWEST_REQUESTS, Outcome, Verdict, judge, most_violations

RISE = 1.02
"""A level must bring 2 % more QPS than the best one before, or the ladder ends."""

SUPPLY = 2.0
"""Requests prepared for a level, as a multiple of what the warm-up's throughput would use up."""

WARM_UP_WAVES = 8
IDLE_LIMIT_S = 30.0
INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class LevelRun:
    """A finished level with everything that was seen: for files and progress, not for records."""

    measurement: Measurement
    verdict: Verdict
    samples: Samples
    telemetry: Telemetry


class LadderLostError(ServerLostError):
    """The server went away; `levels` are the ones that were finished before."""

    def __init__(self, levels: tuple[tuple[Measurement, Verdict], ...]) -> None:
        super().__init__("the server stopped listening under load")
        self.levels = levels


def run_ladder(
    target: Target,
    prompts: Prompts,
    levels: Sequence[int],
    level_s: float,
    warm_up_s: float,
    slos: Sequence[Slo],
    sampler: Sampler,
    should_stop: Callable[[], bool],
    on_level: Callable[[LevelRun], None],
    seed: int = 0,
) -> tuple[tuple[Measurement, Verdict], ...]:
    """Measures `levels` (concurrent requests) in their order, each on prompts of its own.

    `on_level` is called after every level, before the next one starts. Stopped by `should_stop`, it returns what it
    has. Raises LadderLostError when the server goes away.
    """
    pace = warm_up(target, prompts, max(levels), warm_up_s, should_stop)
    done: list[tuple[Measurement, Verdict]] = []
    for level in levels:
        if should_stop() or not sampler.wait_until_idle(IDLE_LIMIT_S):
            break
        run = _level(target, prompts, level, level_s, slos, sampler, should_stop, pace, seed)
        if run.samples.server_lost:
            raise LadderLostError(tuple(done))
        if run.samples.aborted == INTERRUPTED:
            break
        best = max((m.qps or 0.0 for m, _ in done), default=0.0)
        done.append((run.measurement, run.verdict))
        on_level(run)
        if run.verdict.outcome is Outcome.INFEASIBLE or (run.measurement.qps or 0.0) < RISE * best:
            break
    return tuple(done)


@dataclass(frozen=True, slots=True)
class Pace:
    """What the warm-up showed at full concurrency: its throughput is about the highest that any level reaches."""

    qps: float
    answer_s: float

    @classmethod
    def of(cls, warm: Samples) -> Pace:
        answers_s = [(r.last_ns - r.due_ns) / 1e9 for r in warm.requests if r.last_ns is not None]
        seconds = (warm.drained_ns - warm.started_ns) / 1e9
        return cls(len(answers_s) / max(seconds, 1e-3), float(np.mean(answers_s)) if answers_s else 0.0)

    def requests(self, seconds: float, concurrency: int) -> int:
        """How many to prepare for a closed loop, so that they do not run out."""
        return round(SUPPLY * self.qps * seconds) + 2 * concurrency


def warm_up(
    target: Target, prompts: Prompts, concurrency: int, seconds: float, should_stop: Callable[[], bool]
) -> Pace:
    """Throw-away prompts at full concurrency: the first load after a start is 8 to 20 % slower (vllm.md 9).

    Goes in rounds, since nobody knows yet how many requests `seconds` will use up; the last round tells the pace.
    Raises LadderLostError when the server goes away.
    """
    deadline = time.monotonic() + seconds
    for attempt in itertools.count():
        left_s = max(0.1, deadline - time.monotonic())
        requests = prompts.requests(f"warm-up-{concurrency}-{attempt}", WARM_UP_WAVES * concurrency)
        samples = drive_closed(
            target, requests, concurrency, left_s, watch=lambda _: INTERRUPTED if should_stop() else None
        )
        if samples.server_lost:
            raise LadderLostError(())
        if samples.aborted or time.monotonic() >= deadline:
            return Pace.of(samples)
    raise AssertionError("itertools.count ends")


def _level(
    target: Target,
    prompts: Prompts,
    level: int,
    level_s: float,
    slos: Sequence[Slo],
    sampler: Sampler,
    should_stop: Callable[[], bool],
    pace: Pace,
    seed: int,
) -> LevelRun:
    requests = prompts.requests(f"level-{level}", pace.requests(level_s, level))
    recording = sampler.start()
    watch = LevelWatch(slos, recording, should_stop, len(requests) / SUPPLY)
    ramp_s = min(pace.answer_s, level_s / 4)
    samples = drive_closed(target, requests, level, level_s, ramp_s=ramp_s, watch=watch)
    telemetry = recording.finish()
    measurement = measure(samples, telemetry, Load(LoadKind.CLOSED, level), seed=seed, slos=slos)
    return LevelRun(measurement, judge(measurement, slos), samples, telemetry)


class LevelWatch:
    """Ends a level whose verdict cannot change: a preemption, a failure, or more violations than it may have."""

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

    def __call__(self, progress: LevelProgress) -> str | None:
        if self._should_stop():
            return INTERRUPTED
        if progress.failed:
            return "a request failed"
        if self._recording.preemptions:
            return "a preemption was seen"
        for slo, most in self._limits:
            late = sum(ms > slo.limit_ms for ms in progress.ttft_ms) + sum(
                ms > slo.limit_ms for ms in progress.unanswered_ms
            )
            if late > most:
                return f"{late} requests exceeded the limit of {slo}"
        return None
