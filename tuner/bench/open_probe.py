"""Open-loop probes of one running server, for the capacity search: schedule → load → measurement → verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from tuner.bench.capacity_search import ProbeResult, Saturation, Stop
from tuner.bench.ladder import IDLE_LIMIT_S, INTERRUPTED, LadderLostError, LevelRun, LevelWatch
from tuner.load.arrivals import Arrivals, arriving
from tuner.load.backlog import GROWS, Backlog
from tuner.load.drive import LevelProgress, Samples, drive_closed, drive_open
from tuner.load.prompts import Prompts, Request
from tuner.load.stream import Target
from tuner.measurement import Load, LoadKind, measure
from tuner.slo import Slo, longest_wait_s
from tuner.telemetry.sampler import Recording, Sampler
from tuner.verdict import Outcome, Verdict, judge, passes

TOLERATED = 0.5
"""Of what the tightest limit lets a request wait: a queue is not called growing before its mean wait is beyond it."""


class InvalidLoadError(Exception):
    """The client could not offer the load twice in a row: nothing can be said about the server."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__("; ".join(map(str, verdict.reasons)))
        self.verdict = verdict


class InterruptedLoadError(Exception):
    """`should_stop` said so in the middle of a probe."""


class OpenProbe:
    """`Probe` and `ClosedProbe` of capacity_search on a real server. `on_level` gets every level that was run."""

    def __init__(
        self,
        target: Target,
        prompts: Prompts,
        slos: Sequence[Slo],
        sampler: Sampler,
        *,
        seed: int,
        should_stop: Callable[[], bool],
        on_level: Callable[[LevelRun], None],
        arrivals: Arrivals | None = None,
    ) -> None:
        self._target = target
        self._prompts = prompts
        self._slos = tuple(slos)
        self._sampler = sampler
        self._seed = seed
        self._should_stop = should_stop
        self._on_level = on_level
        self._arrivals = arrivals or Arrivals()
        self._repeats: Counter[str] = Counter()

    def __call__(self, rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        """Raises InvalidLoadError, InterruptedLoadError, LadderLostError."""
        spent_s = 0.0
        for _ in range(2):
            run = self._level(rate, seconds, trace, stop)
            spent_s += (run.samples.drained_ns - run.samples.started_ns) / 1e9
            if run.verdict.outcome is not Outcome.INVALID:
                cut = run.measurement.aborted is not None
                return ProbeResult(
                    rate=rate,
                    passed=passes(run.measurement, run.verdict),
                    log_ratio=None if cut else run.verdict.slo_margin,
                    seconds=spent_s,
                )
        raise InvalidLoadError(run.verdict)

    def saturate(self, seconds: float, concurrency: int, requests: int) -> Saturation:
        """A closed loop of `concurrency`; at most the first third of `seconds` is left out. `requests` are prepared.

        It is no candidate for the promise, so no limit ends it. Raises InterruptedLoadError, LadderLostError.
        """
        self._wait_until_idle()
        prepared = self._requests("saturation", requests)
        recording = self._sampler.start()
        samples = drive_closed(self._target, prepared, concurrency, seconds, watch=self._interrupted)
        seen = self._finished(samples, recording, Load(LoadKind.CLOSED, concurrency)).measurement
        waited_s = (samples.drained_ns - samples.started_ns) / 1e9
        if seen.e2e_ms is None:
            return Saturation(0.0, waited_s)
        # Where answers take longer than `seconds`, none ends in its time; those that come later tell the pace too.
        return Saturation(seen.qps or seen.completed / waited_s, seen.e2e_ms.mean / 1000)

    def _requests(self, key: str, count: int) -> list[Request]:
        """The same lengths whenever a key is asked for, and never the same words: the prefix cache knows those."""
        self._repeats[key] += 1
        return self._prompts.requests(key, count, self._repeats[key] - 1)

    def _level(self, rate: float, seconds: float, trace: str, stop: Stop) -> LevelRun:
        self._wait_until_idle()
        requests, due = arriving(
            lambda count: self._requests(trace, count),
            rate, seconds, seed=self._seed, trace=trace, arrivals=self._arrivals,
        )  # fmt: skip
        recording = self._sampler.start()
        slos = self._slos if stop is Stop.AT_REJECTION else ()
        level_watch = LevelWatch(slos, recording, self._should_stop, len(due))
        backlog = Backlog(seconds, TOLERATED * longest_wait_s(self._slos) * 1000)

        def watch(progress: LevelProgress) -> str | None:
            grows = stop is Stop.AT_REJECTION and backlog.grows(progress)
            return level_watch(progress) or (GROWS if grows else None)

        samples = drive_open(self._target, requests, due, seconds, watch=watch)
        return self._finished(samples, recording, Load(LoadKind.OPEN, rate))

    def _wait_until_idle(self) -> None:
        if not self._sampler.wait_until_idle(IDLE_LIMIT_S):
            raise LadderLostError(())

    def _finished(self, samples: Samples, recording: Recording, load: Load) -> LevelRun:
        telemetry = recording.finish()
        if samples.server_lost:
            raise LadderLostError(())
        if samples.aborted == INTERRUPTED:
            raise InterruptedLoadError
        measurement = measure(samples, telemetry, load, seed=self._seed, slos=self._slos)
        run = LevelRun(measurement, judge(measurement, self._slos), samples, telemetry)
        self._on_level(run)
        return run

    def _interrupted(self, progress: LevelProgress) -> str | None:
        return INTERRUPTED if self._should_stop() else None
