"""Open-loop probes of one running server, for the capacity search: schedule → load → measurement → verdict."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tuner.load.arrivals import Arrivals, schedule
from tuner.load.backlog import Backlog
from tuner.load.capacity_search import ProbeResult, Saturation, Stop
from tuner.load.drive import Progress, drive_closed, drive_open
from tuner.load.prompts import Prompts
from tuner.load.stream import Target
from tuner.measurement import Load, LoadKind, measure
from tuner.slo import Slo
from tuner.study.ladder import IDLE_LIMIT_S, INTERRUPTED, LadderLostError, LevelRun, LevelWatch
from tuner.telemetry.sampler import Sampler
from tuner.verdict import Outcome, Verdict, judge


class InvalidLoadError(Exception):
    """The client could not offer the load twice in a row: nothing can be said about the server."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__("; ".join(verdict.reasons))
        self.verdict = verdict


class InterruptedLoadError(Exception):
    """`should_stop` said so in the middle of a probe."""


class OpenProbe:
    """`Probe` and `Saturate` of load/capacity_search on a real server. `on_level` gets every level that was run."""

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
                    # Undecided is a level without a violation that had too few requests, or no preemption counter.
                    passed=run.verdict.outcome is not Outcome.INFEASIBLE,
                    log_ratio=None if cut else run.verdict.slo_margin,
                    seconds=spent_s,
                )
        raise InvalidLoadError(run.verdict)

    def saturate(self, seconds: float, concurrency: int, requests: int) -> Saturation:
        """A closed loop of `concurrency`; at most the first third of `seconds` is left out. `requests` are prepared."""
        samples = drive_closed(
            self._target, self._prompts.requests("saturation", requests), concurrency, seconds, watch=self._interrupted
        )
        self._raise_if_gone(samples.server_lost, samples.aborted)
        seen = measure(samples, None, Load(LoadKind.CLOSED, concurrency), seed=self._seed)
        return Saturation(seen.qps or 0.0, seen.e2e_ms.mean / 1000 if seen.e2e_ms else seconds)

    def _level(self, rate: float, seconds: float, trace: str, stop: Stop) -> LevelRun:
        self._sampler.wait_until_idle(IDLE_LIMIT_S)
        due = schedule(rate, seconds, seed=self._seed, trace=trace, arrivals=self._arrivals)
        requests = self._prompts.requests(trace, len(due))
        recording = self._sampler.start()
        slos = self._slos if stop is Stop.AT_REJECTION else ()
        level_watch, backlog = LevelWatch(slos, recording, self._should_stop, len(due)), Backlog()

        def watch(progress: Progress) -> str | None:
            return level_watch(progress) or ("the backlog grows without end" if backlog.grows(progress) else None)

        samples = drive_open(self._target, requests, due, seconds, watch=watch)
        telemetry = recording.finish()
        self._raise_if_gone(samples.server_lost, samples.aborted)
        measurement = measure(samples, telemetry, Load(LoadKind.OPEN, rate), seed=self._seed, slos=self._slos)
        run = LevelRun(measurement, judge(measurement, self._slos), samples, telemetry)
        self._on_level(run)
        return run

    def _interrupted(self, progress: Progress) -> str | None:
        return INTERRUPTED if self._should_stop() else None

    def _raise_if_gone(self, lost: bool, aborted: str | None) -> None:
        if lost:
            raise LadderLostError(())
        if aborted == INTERRUPTED:
            raise InterruptedLoadError
