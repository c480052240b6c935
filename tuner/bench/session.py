"""The load, measurement and verdicts of a search, on a server that somebody else runs. Starts and stops nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tuner.bench.capacity_search import (
    Capacity,
    Claim,
    Saturation,
    SearchSettings,
    Stop,
    claim,
    search_capacity,
)
from tuner.bench.ladder import INTERRUPTED, LadderLostError, LevelRun, Pace, run_ladder, warm_up
from tuner.bench.open_probe import InterruptedLoadError, InvalidLoadError, OpenProbe
from tuner.load.arrivals import Arrivals, arriving
from tuner.load.drive import LevelProgress, drive_open
from tuner.load.prompts import SEARCH_TRACE, Prompts
from tuner.load.stream import Target
from tuner.measurement import Measurement
from tuner.slo import Slo, longest_wait_s
from tuner.telemetry.sampler import Sampler
from tuner.verdict import Verdict, passes

CONCURRENCIES = (16, 64, 256)
"""Tried in turn by the warm-up of a search, until more of it brings no more throughput: the closed probe's load."""

RISE = 1.1


def kept(measurement: Measurement, verdict: Verdict) -> bool:
    """Every limit kept on enough requests, none failed. Preemptions may not have been observed: not every engine tells.

    A level of too few requests has kept nothing, however good they were.
    """
    return passes(measurement, verdict) and verdict.missing_requests == 0


@dataclass(frozen=True, slots=True)
class Bench:
    """One running server and what is put on it. Every method is one kind of load.

    `on_level` gets every level that was measured. Methods raise LadderLostError when the server stops listening, and
    InterruptedLoadError in the middle of what `should_stop` ended.
    """

    target: Target
    prompts: Prompts
    slos: tuple[Slo, ...]
    sampler: Sampler
    should_stop: Callable[[], bool]
    on_level: Callable[[LevelRun], None]
    warm_up_s: float
    seed: int = 0
    arrivals: Arrivals = field(default_factory=Arrivals)

    def at_rate(self, rate: float, seconds: float) -> None:
        """One open-loop level of `rate` requests/s. Measured once more where the client was the bottleneck."""
        requests, due = arriving(
            lambda count: self.prompts.requests("warm-up", count),
            rate, self.warm_up_s, seed=self.seed, trace="warm-up", arrivals=self.arrivals,
        )  # fmt: skip
        samples = drive_open(self.target, requests, due, self.warm_up_s, watch=self._watch)
        if samples.server_lost:
            raise LadderLostError(())
        if samples.aborted == INTERRUPTED:
            raise InterruptedLoadError
        try:
            self._probe()(rate, seconds, SEARCH_TRACE, Stop.AT_END)
        except InvalidLoadError:
            return  # `on_level` got both; the last one's verdict says it

    def ladder(self, levels: Sequence[int], seconds: float) -> None:
        """Closed loops of `levels` concurrent requests, up to the first that breaks a limit or brings no more."""
        run_ladder(
            self.target, self.prompts, levels, seconds, self.warm_up_s, self.slos, self.sampler, self.should_stop,
            self.on_level, seed=self.seed,
        )  # fmt: skip
        if self.should_stop():
            raise InterruptedLoadError

    def capacity(self, rules: SearchSettings) -> Capacity:
        """The highest rate that keeps the limits. Raises InvalidLoadError when the client could not offer the load."""
        concurrency, pace = self._warm_up()
        probe = self._probe()

        def saturate(seconds: float) -> Saturation:
            return probe.saturate(seconds, concurrency, pace.requests(seconds, concurrency))

        return search_capacity(probe, saturate, rules=rules)

    def claim(self, estimate: float, rules: SearchSettings) -> Claim:
        """Three fresh traces below the estimate. Raises InvalidLoadError."""
        return claim(self._probe(), estimate, rules, longest_wait_s(self.slos))

    def _warm_up(self) -> tuple[int, Pace]:
        """Concurrency that fills the server without a queue many times its answers' length, and its pace there."""
        best: tuple[int, Pace] | None = None
        seconds = self.warm_up_s / len(CONCURRENCIES)
        for concurrency in CONCURRENCIES:
            pace = warm_up(self.target, self.prompts, concurrency, seconds, self.should_stop)
            if self.should_stop():
                raise InterruptedLoadError
            if best is not None and pace.qps < RISE * best[1].qps:
                break
            best = (concurrency, pace)
        assert best is not None
        return best

    def _probe(self) -> OpenProbe:
        return OpenProbe(
            self.target, self.prompts, self.slos, self.sampler, seed=self.seed, should_stop=self.should_stop,
            on_level=self.on_level, arrivals=self.arrivals,
        )  # fmt: skip

    def _watch(self, progress: LevelProgress) -> str | None:
        return INTERRUPTED if self.should_stop() else None
