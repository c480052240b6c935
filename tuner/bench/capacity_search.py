"""Search for the highest open-loop rate of one server. Pure: a callback gives the load.

A closed loop reads 7 to 40 % above a Poisson stream, so the promise is searched in open loop. All probes of a study
share one trace, scaled to their rates (common random numbers), which cuts the spread of a difference several times.
A short probe reads high, much the same for every candidate. `claim` takes that back on longer, fresh traces
(docs/measuring.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from tuner.load.prompts import SEARCH_TRACE

FEWEST_REQUESTS = 100
FEWEST_TO_TELL = 5.0
"""Fewest expected requests of a probe. At lower rates next to nothing would be promised."""

CLEAR = 0.25
"""ln(measured / limit) of one trace that no two others make up for."""

_MOST_TOLD = 0.5
"""Largest overload that a tail can show. Beyond it the load is just far too high."""


class Stop(StrEnum):
    """Earliest end of a probe. It is the first certain rejection, or only a preemption or a failed request. The
    second leaves a P99 over the whole time."""

    AT_REJECTION = "at-rejection"
    AT_END = "at-end"


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One open-loop level. `log_ratio` is ln(measured / limit) of the tightest objective, None if it was cut short.
    `seconds` of load were spent on it."""

    rate: float
    passed: bool
    log_ratio: float | None
    seconds: float


class Probe(Protocol):
    def __call__(self, rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        """Load the server at `rate` requests/s on a `trace`."""
        ...


@dataclass(frozen=True, slots=True)
class Saturation:
    """Throughput of a full server, and its mean answer time. Without an answer the rate is 0 and `answer_s` the time
    that was waited."""

    rate: float
    answer_s: float


class ClosedProbe(Protocol):
    def __call__(self, seconds: float) -> Saturation: ...


@dataclass(frozen=True, slots=True)
class SearchSettings:
    """Seconds and factors of a capacity search, chosen by benchmarks/capacity.py (docs/measuring.md).

    - Saturation: the closed loop lasts `saturation_s` or `answers_to_saturate` answers. A candidate is hopeless below
      `hopeless` of the incumbent, at its share of the saturation or at `highest_share`, the higher one.
    - Race: a probe at `race` times the incumbent's rate.
    - Steps: a cold search begins at `cold_share` of the saturation. A step is `step`, far below the limit up to
      `longest_step`, assuming d ln(P99) / d ln(rate) = `steepest`. There are at most `most_probes`.
    - Probe: it lasts `probe_s`, 100 requests or `answers_to_probe` answers, at most `longest_probe_s`.
    - Claim and block: `claim_traces` traces of `claim_s` or `claim_requests`, at most `longest_claim_s`. A failed claim
      lowers the rate by `claim_back_off`, up to `claim_steps_at_once` times. There are at most `claim_attempts`, enough
      for a machine that became a quarter slower. At most `most_hidden` more is loaded than promised.
    """

    saturation_s: float = 15.0
    probe_s: float = 20.0
    longest_probe_s: float = 120.0
    cold_share: float = 0.85
    step: float = 0.035
    steepest: float = 20.0
    longest_step: float = 0.14
    most_probes: int = 12
    answers_to_saturate: float = 3.0
    answers_to_probe: float = 2.0
    race: float = 1.005
    hopeless: float = 0.95
    highest_share: float = 0.97
    claim_s: float = 120.0
    claim_requests: float = 2500.0
    longest_claim_s: float = 400.0
    claim_traces: int = 3
    claim_back_off: float = 0.985
    claim_steps_at_once: float = 3.0
    claim_attempts: int = 20
    most_hidden: float = 0.05

    def saturate_seconds(self, answer_s: float) -> float:
        """Return a time beyond the first wave of answers."""
        return min(max(self.saturation_s, self.answers_to_saturate * answer_s), self.longest_probe_s)

    def seconds_at(self, rate: float, answer_s: float = 0.0) -> float:
        """Return a time for a P99 and a filled queue."""
        return min(max(self.probe_s, FEWEST_REQUESTS / rate, self.answers_to_probe * answer_s), self.longest_probe_s)

    def stride(self, log_ratio: float | None) -> float:
        """Return the rise of the rate after a pass. It is `step`, or more far below the limit. The tail would then
        reach the limit with d ln(P99) / d ln(rate) = `steepest`; at most `longest_step`."""
        return max(self.step, min(-(log_ratio or 0.0) / self.steepest, self.longest_step))

    def claim_seconds_at(self, rate: float) -> float:
        """Return a time with enough requests. A trace of n reads a capacity with a spread of 1 to 2 / √n."""
        return min(max(self.claim_s, self.claim_requests / rate), self.longest_claim_s)


@dataclass(frozen=True, slots=True)
class Incumbent:
    """Best candidate so far, with capacity and saturation in requests/s. `answer_s` is the mean answer time at
    saturation. It saves the closed loop a second, longer run."""

    rate: float
    saturation: float
    answer_s: float = 0.0


class Ended(StrEnum):
    FOUND = "found"
    HOPELESS = "hopeless"
    RACE_LOST = "race-lost"
    NEVER_PASSED = "never-passed"
    NEVER_FAILED = "never-failed"
    UNTRIED = "untried"


@dataclass(frozen=True, slots=True)
class Capacity:
    """Result of a search. `rate` is the estimate; `passed` and `failed` are the highest and lowest rate with that
    outcome.

    A candidate that ended early has no estimate. After a race `failed` bounds it from above, and `likely` is what
    the tail says, at most the incumbent's rate. It is good to 4 % for candidates up to a fifth slower
    (docs/measuring.md). An untried one completed too little in its closed loop for any rate to be tried.
    `saturation` is 0 if the server was not filled, as in a block.
    """

    ended: Ended
    rate: float | None
    passed: float | None
    failed: float | None
    saturation: float
    seconds: float
    probes: tuple[ProbeResult, ...] = ()
    answer_s: float = 0.0
    likely: float | None = None


def search_capacity(
    probe: Probe,
    saturate: ClosedProbe,
    incumbent: Incumbent | None = None,
    rules: SearchSettings | None = None,
    queue_s: float = 0.0,
) -> Capacity:
    """Search the highest rate. With an incumbent most candidates end after the closed probe or the race. `queue_s`
    is what the tightest limit lets a request wait, in seconds; 0 if no limit is about waiting."""
    rules = rules or SearchSettings()
    steps = Steps.of_full_server(probe, saturate, rules, incumbent)
    saturation = steps.saturation.rate
    if saturation <= 0:
        return steps.ended(Ended.UNTRIED)
    if incumbent is None:
        return steps.search(rules.cold_share * saturation, widen=2.0)
    share = incumbent.rate / incumbent.saturation
    expected = saturation * share
    # An incumbent that preempts long before it is full has a small share; what has more memory may have the usual one.
    if saturation * max(share, rules.highest_share) < rules.hopeless * incumbent.rate:
        return steps.ended(Ended.HOPELESS)
    raced = steps.race(rules.race * incumbent.rate)
    if not raced.passed:
        return replace(steps.ended(Ended.RACE_LOST), likely=_likely(raced, incumbent.rate, queue_s))
    # Where the incumbent's share foresaw no win it is no guide, and the way up may be long.
    foreseen = expected >= incumbent.rate
    beyond = raced.rate * (1 + rules.stride(raced.log_ratio))
    return steps.search(max(expected, beyond), widen=1.0 if foreseen else 2.0)


def search_near(probe: Probe, start: float, rules: SearchSettings | None = None, answer_s: float = 0.0) -> Capacity:
    """Find the highest rate by steps from `start` on traces as long as a claim's, without a closed loop. `answer_s` is
    the mean answer time.

    Two servers are compared by such a block. What a short probe reads high is not the same for a server that lacks
    sequences and for one that lacks speed (docs/measuring.md).
    """
    rules = rules or SearchSettings()
    rules_of_block = replace(rules, probe_s=rules.claim_seconds_at(start), longest_probe_s=rules.longest_claim_s)
    return Steps(_on_several(probe, rules.claim_traces), rules_of_block, Saturation(0.0, answer_s)).search(start, 2.0)


def _on_several(probe: Probe, traces: int) -> Probe:
    """Return a probe that loads several traces and passes by the mean of their ln(measured / limit). That is the least
    biased of the estimators (docs/measuring.md). Far beyond the limit one trace is enough."""

    def pooled(rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        told: list[float] = []
        spent_s = 0.0
        for number in range(traces):
            found = probe(rate, seconds, f"{trace}-{number}", stop)
            spent_s += found.seconds
            if found.log_ratio is None or (found.log_ratio <= 0 and not found.passed):
                return replace(found, seconds=spent_s)
            told.append(found.log_ratio)
            if found.log_ratio > CLEAR:
                break
        mean = sum(told) / len(told)
        return ProbeResult(rate, mean <= 0, mean, spent_s)

    return pooled


def _likely(raced: ProbeResult, best: float, queue_s: float) -> float | None:
    """Estimate the capacity of a race's loser, at most `best`.

    If the rate exceeds capacity by a fraction x, the queueing delay grows by x seconds per second. After T seconds
    P99 is about W + x·T, with W the wait that the limit allows. A race that a preemption cut short counts as twice
    the limit. In benchmarks/lost_race.py this reads 0 to 4 % high.
    """
    if queue_s <= 0:
        return None
    ratio = 2.0 if raced.log_ratio is None else math.exp(raced.log_ratio)
    return best * (1 - min(max(ratio - 1, 0.0) * queue_s / raced.seconds, _MOST_TOLD))


class Steps:
    """Probes of one server, with their cost. `closed_s` seconds went into its closed loops before."""

    def __init__(self, probe: Probe, rules: SearchSettings, saturation: Saturation, closed_s: float = 0.0) -> None:
        self._probe = probe
        self._rules = rules
        self._probes: list[ProbeResult] = []
        self._closed_s = closed_s
        self.saturation = saturation

    @classmethod
    def of_full_server(
        cls, probe: Probe, saturate: ClosedProbe, rules: SearchSettings, incumbent: Incumbent | None
    ) -> Steps:
        """Fill the server first."""
        seconds = spent_s = rules.saturate_seconds(incumbent.answer_s if incumbent else 0.0)
        saturation = saturate(seconds)
        longer_s = rules.saturate_seconds(saturation.answer_s)
        if longer_s > 1.2 * seconds:  # the closed loop had hardly left its first wave
            spent_s += longer_s
            saturation = saturate(longer_s)
        return cls(probe, rules, saturation, spent_s)

    def race(self, rate: float) -> ProbeResult:
        return self._run(rate, Stop.AT_END)

    def search(self, start: float, widen: float) -> Capacity:
        """Step until pass and fail enclose the answer. Steps are `rules.step`, each `widen` times the last. Then
        close in. Steps up from far below the limit are longer. At most `rules.most_probes`."""
        rate, step = start, self._rules.step
        while len(self._probes) < self._rules.most_probes and rate * self._seconds_at(rate) >= FEWEST_TO_TELL:
            last = self._run(rate, Stop.AT_END)
            low, high = self._passed(), self._failed()
            if low is None or high is None:
                rate = rate * (1 + max(step, self._rules.stride(last.log_ratio))) if high is None else rate / (1 + step)
                step *= widen
            elif high / low > 1 + 1.5 * self._rules.step:
                rate = self._inside(low, high)
            else:
                return self.ended(Ended.FOUND)
        if self._passed() is None:
            return self.ended(Ended.NEVER_PASSED if self._probes else Ended.UNTRIED)
        return self.ended(Ended.NEVER_FAILED if self._failed() is None else Ended.FOUND)

    def ended(self, ended: Ended) -> Capacity:
        low, high = self._passed(), self._failed()
        return Capacity(
            ended=ended,
            rate=self._estimate() if ended is Ended.FOUND else low if ended is Ended.NEVER_FAILED else None,
            passed=low,
            failed=high,
            saturation=self.saturation.rate,
            seconds=self._closed_s + sum(p.seconds for p in self._probes),
            probes=tuple(self._probes),
            answer_s=self.saturation.answer_s,
        )

    def _run(self, rate: float, stop: Stop) -> ProbeResult:
        self._probes.append(self._probe(rate, self._seconds_at(rate), SEARCH_TRACE, stop))
        return self._probes[-1]

    def _seconds_at(self, rate: float) -> float:
        return self._rules.seconds_at(rate, self.saturation.answer_s)

    def _failed(self) -> float | None:
        return min((p.rate for p in self._probes if not p.passed), default=None)

    def _passed(self) -> float | None:
        """Return the highest pass below every failure. Passes above one are luck."""
        failed = self._failed()
        return max((p.rate for p in self._probes if p.passed and (failed is None or p.rate < failed)), default=None)

    def _inside(self, low: float, high: float) -> float:
        """Follow the line, but keep off the ends."""
        share = math.log(self._line(low, high) / low) / math.log(high / low)
        return float(low * (high / low) ** min(max(share, 0.25), 0.75))

    def _estimate(self) -> float | None:
        low, high = self._passed(), self._failed()
        return None if low is None or high is None else self._line(low, high)

    def _line(self, low: float, high: float) -> float:
        """Return the zero of ln(measured / limit) between two rates."""
        below, above = self._log_ratio(low), self._log_ratio(high)
        if below is None or above is None or not below <= 0 < above:
            return math.sqrt(low * high)
        return float(low * (high / low) ** (-below / (above - below)))

    def _log_ratio(self, rate: float) -> float | None:
        return next((p.log_ratio for p in self._probes if p.rate == rate and p.log_ratio is not None), None)


@dataclass(frozen=True, slots=True)
class Claim:
    """Result of a claim. `rate` is promised, None if no attempt held; `loaded` requests/s held on every fresh trace.
    `seconds` of load were spent. `saturation` is the QPS of the full servers, None if they were not filled."""

    rate: float | None
    probes: tuple[ProbeResult, ...]
    seconds: float
    loaded: float | None = None
    saturation: float | None = None


def claim(probe: Probe, estimate: float, rules: SearchSettings | None = None, queue_s: float = 0.0) -> Claim:
    """Walk down by 1.5 % until three fresh traces pass. Each attempt has its own traces.

    The estimate reads high, and a load that is far too high is rejected early, so the walk costs little. The earlier
    a load was rejected, the more steps at once, up to `rules.claim_steps_at_once`.

    `queue_s` is the wait that the tightest limit allows. A load that is too high by queue_s / T grows, in a trace of
    T seconds, a queue of just that wait, and passes. So that much more is loaded than promised.
    """
    rules = rules or SearchSettings()
    rate = estimate
    probes: list[ProbeResult] = []
    for attempt in range(rules.claim_attempts):
        seconds = rules.claim_seconds_at(rate)
        loaded = rate / (1 - min(queue_s / seconds, rules.most_hidden))
        for number in range(rules.claim_traces):
            probes.append(probe(loaded, seconds, f"claim-{attempt}-{number}", Stop.AT_REJECTION))
            if not probes[-1].passed:
                break
        else:
            return Claim(rate, tuple(probes), sum(p.seconds for p in probes), loaded)
        rate *= rules.claim_back_off ** min(max(seconds / probes[-1].seconds, 1.0), rules.claim_steps_at_once)
    return Claim(None, tuple(probes), sum(p.seconds for p in probes))
