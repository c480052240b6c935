"""Open loop over one start: search or claim → outcome, the level that counts, and why no more was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tuner import formatting
from tuner.bench.capacity_search import (
    Capacity,
    Claim,
    ClosedProbe,
    Ended,
    Incumbent,
    Probe,
    ProbeResult,
    SearchSettings,
    Stop,
    claim,
    search_capacity,
)
from tuner.bench.open_probe import InvalidLoadError
from tuner.load.stream import Failure
from tuner.measurement import Load, LoadKind
from tuner.study.record import Level, TrialOutcome
from tuner.verdict import passes


@dataclass(slots=True)
class OpenLoopResult:
    """What search or claim found: both are None until the load has come to its end.

    `client_faults` are the rates that the client could not offer, in words.
    """

    incumbent: Incumbent | None = None
    capacity: Capacity | None = None
    claim: Claim | None = None
    client_faults: list[str] = field(default_factory=list)

    def find(
        self, probe: Probe, saturate: ClosedProbe, rules: SearchSettings, estimate: float | None, queue_s: float = 0.0
    ) -> None:
        """A claim from `estimate` downwards, or, where that is None, the search that races against the incumbent.

        `queue_s` as in capacity_search.
        """

        def offered(rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
            """A rate that the client cannot offer is no rate to promise."""
            try:
                return probe(rate, seconds, trace, stop)
            except InvalidLoadError as error:
                self.client_faults.append(f"{formatting.qps(rate)} could not be offered: {error}")
                return ProbeResult(rate, False, None, seconds)

        if estimate is None:
            self.capacity = search_capacity(offered, saturate, self.incumbent, rules, queue_s)
        else:
            self.claim = claim(offered, estimate, rules, queue_s)

    @property
    def held(self) -> float | None:
        """The highest rate that was loaded and passed, in requests per second."""
        if self.claim is not None:
            return self.claim.loaded
        return None if self.capacity is None else self.capacity.passed

    def best(self, levels: Sequence[Level]) -> int | None:
        """Index of the level at the rate that was held; of several the one with the longest tail, which is told."""
        passed = [
            (level.measurement.ttft_ms.p99 if level.measurement.ttft_ms else 0.0, i)
            for i, level in enumerate(levels)
            if self.held is not None and level.measurement.load == Load(LoadKind.OPEN, self.held) and _is_kept(level)
        ]
        return max(passed)[1] if passed else None

    def outcome(self, levels: Sequence[Level]) -> TrialOutcome:
        if self.best(levels) is not None:
            return TrialOutcome.FEASIBLE
        if self.client_faults:
            return TrialOutcome.INVALID
        if self.held is not None or (self.capacity is None and self.claim is None):
            return TrialOutcome.UNDECIDED
        if self.capacity is not None and self.capacity.ended is Ended.UNTRIED:
            # Answers that took longer than anybody waited decide nothing; requests that failed outright do.
            failed = any(kind != Failure.TIMEOUT for level in levels for kind, _ in level.measurement.failed)
            return TrialOutcome.INFEASIBLE if failed else TrialOutcome.UNDECIDED
        lost = self.capacity is not None and self.capacity.ended in (Ended.HOPELESS, Ended.RACE_LOST)
        return TrialOutcome.BEHIND if lost else TrialOutcome.INFEASIBLE

    def notes(self, outcome: TrialOutcome) -> list[str]:
        if self.capacity is not None and self.capacity.ended is Ended.UNTRIED:
            return [*self.client_faults, untried(self.capacity)]
        if outcome is not TrialOutcome.BEHIND or self.capacity is None or self.incumbent is None:
            return self.client_faults
        return [*self.client_faults, _behind(self.capacity, self.incumbent)]


def _is_kept(level: Level) -> bool:
    """A candidate is held to no preemption, so that nothing is promised where none could be seen."""
    return passes(level.measurement, level.verdict) and level.measurement.server.preemptions is not None


def untried(capacity: Capacity) -> str:
    return (
        f"no rate was tried: in {formatting.duration(capacity.seconds)} a closed loop gave "
        f"{formatting.qps(capacity.saturation)}, too little for a probe to tell anything"
    )


def _behind(capacity: Capacity, best: Incumbent) -> str:
    if capacity.failed is not None:
        likely = "" if capacity.likely is None else f"; its tail says about {formatting.qps(capacity.likely)}"
        return (
            f"it does not keep the limits at {formatting.qps(capacity.failed)}, "
            f"where the best so far sustains {formatting.qps(best.rate)}{likely}"
        )
    return (
        f"a closed loop gives {formatting.qps(capacity.saturation)} at most, where it gives "
        f"{formatting.qps(best.saturation)} of the best so far, which sustains {formatting.qps(best.rate)}"
    )
