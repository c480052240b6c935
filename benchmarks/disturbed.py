"""Whole nights on a machine that is not quiet: is the gain that they state true?

    PYTHONPATH=. python benchmarks/disturbed.py --nights 200 [--load open|closed] [--kinds quiet neighbour slower]
    PYTHONPATH=. python benchmarks/disturbed.py --trace neighbour:17

The second tells one night record by record.

The product's own loop, search, confirmation, capacity search and verdict run on the stand-in in virtual time
(virtual_load.py). The machine is an L40S with an 8B model, prompts of 500 to 1,500 tokens and P99 TTFT of at most
400 ms. Twelve starts search three parameters. Four confirm. A start's own speed has a standard deviation of 1 %.

- quiet: nothing happens.
- neighbour: a job takes half of the cores for ten minutes. The moments lie evenly over the night of the same seed
  without it. By turns a step takes 1.1, 1.3 or 2 times as long, and the client is late by 5 or 40 ms at P99 in the
  median level, log-normal from level to level. Telemetry shows one foreign core of two.
- slower: from some moment on every step takes 1.25 times as long. Nothing shows it.

Measured here, on two cores with one busy process beside the stand-in's server and client: the ticker was late by 3
to 170 ms at P99, requests by 1 to 600 ms, and a closed loop lost 0 to 9 %, since the stand-in sleeps through its
steps. An engine that computes on all cores takes up to twice as long.

In a third of the nights vLLM's default is near the best. In the others a baseline with few sequences is a tenth or
a third short. The truth is the rate at which one request in a hundred is late on a quiet machine, in forty runs of
ten minutes, with the same arrivals for all candidates. In a closed loop it is the QPS of the best level of the
ladder, in four such runs. Where a level just keeps the limit or just breaks it, either counts.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

if __name__ == "__main__":  # before numpy
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from search.landscapes import VLLM, WARM_UP_S
from still_machine import CLOSED, LANDSCAPE, started, truths
from virtual_load import CORES, Disturbance, VirtualServer, driving, session

from tests.fakes import ScriptedClock, ScriptedServers, scripted_trial
from tuner.candidate import Candidate
from tuner.environment import describe
from tuner.space.parameter import Kind, Parameter
from tuner.study.accuracy import accuracy
from tuner.study.assignment import Assignment
from tuner.study.confirm import finalists
from tuner.study.fleet import LocalFleet
from tuner.study.loop import Loop
from tuner.study.plan import LoadPolicy, OpenSearch, StudyPlan, saturating_clients
from tuner.study.record import TrialRecord
from tuner.study.result import Decision, StudyResult
from tuner.study.search import Search
from tuner.study.seeds import seeds
from tuner.study.setting import StudySetting
from tuner.study.store import Store
from tuner.vllm.defaults import vllm_defaults
from tuner.vllm.facts import StartFacts

STARTS, CONFIRM_STARTS = 12, 4
START_SD = 0.010
HOG_S = 600.0
SLOWS, LATE_MS = (1.1, 1.3, 2.0), (40.0, 5.0)
SLOWER = 1.25
CASES: tuple[dict[str, int], ...] = ({}, {"max-num-seqs": 56}, {"max-num-seqs": 40})
"""Baselines: vLLM's default, and a user's with too few sequences."""

SEEDS = 40
GOLDEN = 0.6180339887
"""Step between the moments of two nights: any number of them lies evenly over the night."""

KINDS = ("quiet", "neighbour", "slower")
SHARES = {"quiet": 0.2, "neighbour": 0.5, "slower": 0.3}
LOADS: dict[str, LoadPolicy] = {"open": OpenSearch(WARM_UP_S), "closed": CLOSED}
SPACE = (
    Parameter("max-num-seqs", Kind.LOG_INT, 64, 512, 64),
    Parameter("max-num-batched-tokens", Kind.LOG_INT, 1024, 8192, 1024),
    Parameter("long-prefill-token-threshold", Kind.CHOICE, choices=(256, 512, 0)),
)


@dataclass(frozen=True, slots=True)
class Night:
    """One night. `moment` is the middle of a neighbour's stay, or when the machine slows, as a share of the night of
    the same seed without it."""

    kind: str
    number: int
    load: str
    moment: float

    @classmethod
    def of(cls, kind: str, number: int, load: str) -> Night:
        return cls(kind, number, load, 0.0 if kind == "quiet" else number * GOLDEN % 1.0)

    @property
    def seed(self) -> int:
        """The seed of all chance: of search, traffic and machine."""
        return self.number % SEEDS

    @property
    def case(self) -> int:
        return self.seed % len(CASES)

    @property
    def speeds(self) -> tuple[float, ...]:
        """Return how much longer a step takes at each speed that the machine has for good."""
        return (1.0, SLOWER) if self.kind == "slower" else (1.0,)

    def disturbance(self) -> tuple[Disturbance, ...]:
        if self.kind == "quiet":
            return ()
        at_s = self.moment * quiet_seconds(self.seed, self.load)
        if self.kind == "slower":
            return (Disturbance(at_s, float("inf"), SLOWER),)
        slows, late_ms = SLOWS[self.number // len(CASES) % len(SLOWS)], LATE_MS[self.number % len(LATE_MS)]
        return (Disturbance(at_s - HOG_S / 2, at_s + HOG_S / 2, slows, late_ms, CORES / 2),)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a night stated, and what is true. Gains are shares over the default.

    `stated` is low, middle and high; None if no gain is stated. `true` are the gains of the pick at each speed that
    the machine had for good, several of a closed loop. `pick` is its true QPS on the quiet machine.
    """

    night: Night
    decision: str
    stated: tuple[float, float, float] | None
    true: tuple[float, ...]
    pick: float
    hours: float
    sentence: str

    @property
    def off(self) -> float:
        """Return how far the truth lies outside the interval. Of two truths, what lies between them is true too."""
        if self.stated is None:
            return 0.0
        low, _, high = self.stated
        return max(low - max(self.true), min(self.true) - high, 0.0) if self.true else low

    @property
    def error(self) -> float:
        """Return how far the truth is from the middle of the interval."""
        return min((abs(self.stated[1] - true) for true in self.true), default=0.0) if self.stated else 0.0


def planned(folder: Path, night: Night) -> StudyPlan:
    plan = LANDSCAPE.plan(folder, STARTS, CONFIRM_STARTS, night.seed)
    space = replace(plan.space, parameters=SPACE, baseline=tuple(CASES[night.case].items()))
    return replace(plan, space=space, load=LOADS[night.load])


class DisturbedMachine:
    """One GPU whose clock runs through the night."""

    def __init__(self, plan: StudyPlan, seed: int, disturbances: Sequence[Disturbance]) -> None:
        self.plan = plan
        self.clock = ScriptedClock()
        self._seed = seed
        self._disturbances = disturbances
        self._compiled: set[str] = set()
        self._starts = 0

    def run_trial(self, assignment: Assignment) -> TrialRecord:
        self._starts += 1
        found = started(assignment.candidate, self._compiled)
        rng = np.random.default_rng([self._seed, self._starts])
        server = VirtualServer(
            found, LANDSCAPE.hardware, LANDSCAPE.shape, self.clock, 100 * self._seed + self._starts,
            self._disturbances, float(np.exp(rng.normal(0.0, START_SD))),
        )  # fmt: skip
        facts = StartFacts(kv_tokens=found.kv_tokens, max_concurrency=found.max_concurrency)
        plan, traffic = self.plan, self.plan.seed + 1000 * assignment.traffic
        clients = saturating_clients(found.config.max_num_seqs)
        live = session(server, plan.workload, plan.slos, assignment.warm_up_s, traffic, clients)
        servers = ScriptedServers(lambda _: live, self.clock, found.start_s, 5.0, facts)
        with driving(server):
            return scripted_trial(assignment, plan.base, servers)


def ended(night: Night) -> Ended:
    """Run a night to its end."""
    folder = Path(tempfile.mkdtemp(prefix="night-"))
    try:
        plan = planned(folder, night)
        store = Store(folder)
        store.create()
        store.save_plan(plan, describe(VLLM, plan.model, LANDSCAPE.gpus, None))
        machine = DisturbedMachine(plan, night.seed, night.disturbance())
        setting = StudySetting.of(plan, vllm_defaults(VLLM, LANDSCAPE.gpus), LANDSCAPE.gpus)
        search = Search(setting, seeds(setting))
        fleet = LocalFleet(plan.groups, machine.run_trial, store)
        result = Loop(plan=plan, store=store, search=search, fleet=fleet, clock=machine.clock).run()
        return Ended(plan, result, list(store.records()), machine.clock.now_ns() / 1e9)
    finally:
        shutil.rmtree(folder)


@dataclass(frozen=True, slots=True)
class Ended:
    """A night that is over. It took `seconds`."""

    plan: StudyPlan
    result: StudyResult
    records: list[TrialRecord]
    seconds: float


@cache
def quiet_seconds(seed: int, load: str) -> float:
    """Return how long the quiet night of a seed takes."""
    return ended(Night.of("quiet", seed, load)).seconds


def seen(night: Night) -> Seen:
    """Run a night, and compare what it states with the truth."""
    end = ended(night)
    shown, best = end.result.winner, compared(end)
    gains = [gain for slows in night.speeds for gain in true_gains(night.load, best, end.plan.baseline, slows)]
    pick = max(truths(night.load, shown.candidate), default=0.0) if shown else 0.0
    return Seen(
        night, str(end.result.decision), stated(end), tuple(gains), pick, end.seconds / 3600, end.result.sentence
    )


def true_gains(load: str, best: Candidate | None, default: Candidate, slows: float) -> list[float]:
    rates = truths(load, best, slows) if best is not None else []
    return [rate / other - 1 for rate in rates for other in truths(load, default, slows)]


def compared(end: Ended) -> Candidate | None:
    """Return the candidate whose gain is stated: the winner, or the best that was not better than the default."""
    if end.result.winner is not None and end.result.decision is Decision.WINNER:
        return end.result.winner.candidate
    ranked = finalists(end.plan, end.records)
    return ranked[0].candidate if ranked else None


def stated(end: Ended) -> tuple[float, float, float] | None:
    """Return the stated gain with its interval. Without an interval of its own it has the printed accuracy."""
    result = end.result
    gain = result.gain
    if gain is not None and result.decision in (Decision.WINNER, Decision.KEEP_DEFAULT):
        return gain.low, gain.middle, gain.high
    winner, default = result.winner, result.default
    if gain is not None or result.decision is not Decision.WINNER or winner is None or default is None:
        return None
    middle, sure = winner.qps / default.qps - 1, accuracy(winner.qps, end.plan.load)
    return middle - sure, middle, middle + sure


def nights(count: int, kinds: Sequence[str], load: str) -> Iterator[Night]:
    """Yield the kinds in turn by their shares, so that any first nights are a fair sample."""
    made = dict.fromkeys(kinds, 0)
    for _ in range(count):
        kind = min(kinds, key=lambda kind: (made[kind] + 0.5) / SHARES[kind])
        yield Night.of(kind, made[kind], load)
        made[kind] += 1


def table(every: Sequence[Seen]) -> Iterator[str]:
    yield (
        "| night | nights | gain stated | false | worst, points beyond its interval | interval, median ± points "
        "| median error, points | default kept or none stated | regret of the pick, mean (worst) | hours |"
    )
    yield "|---" * 10 + "|"
    for kind in dict.fromkeys(s.night.kind for s in every):
        yield _row(kind, [s for s in every if s.night.kind == kind])
    yield _row("all", every)


def _row(name: str, group: Sequence[Seen]) -> str:
    gains = [s for s in group if s.stated is not None]
    false = sum(s.off > 0 for s in gains)
    widths = [(s.stated[2] - s.stated[0]) / 2 for s in gains if s.stated]
    errors = [s.error for s in gains]
    best = {case: max(s.pick for s in group if s.night.case == case)
            for case in {s.night.case for s in group}}  # fmt: skip
    regret = [1 - s.pick / best[s.night.case] for s in group]
    return (
        f"| {name} | {len(group)} | {len(gains)} | {false} ({false / len(group):.1%}) "
        f"| {100 * max((s.off for s in gains), default=0.0):.1f} | {100 * _median(widths):.1f} "
        f"| {100 * _median(errors):.1f} | {len(group) - len(gains)} "
        f"| {np.mean(regret):.1%} ({max(regret):.1%}) | {np.mean([s.hours for s in group]):.1f} |"
    )


def _gains(true: Sequence[float]) -> str:
    return " to ".join(f"{gain:+.1%}" for gain in dict.fromkeys((min(true), max(true)))) if true else "unknown"


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else 0.0


def worst(every: Sequence[Seen], count: int = 8) -> Iterator[str]:
    for s in sorted(every, key=lambda s: -s.off)[:count]:
        if s.stated is not None and s.off > 0:
            low, middle, high = s.stated
            yield (
                f"{s.night.kind}:{s.night.number} at {s.night.moment:.2f}: stated {middle:+.1%} ({low:+.1%} to "
                f"{high:+.1%}), true {_gains(s.true)} | {s.decision} | {s.sentence}"
            )


def traced(night: Night) -> Iterator[str]:
    """Tell a night record by record."""
    end = ended(night)
    result = end.result
    yield f"{night}, {night.disturbance()}, {end.seconds:.0f} s"
    for r in end.records:
        p = r.start.phases
        yield (
            f"{r.trial:3} {r.role:8} {r.outcome:11} {r.start.started_at[11:19]} +{p.spent_s:5.0f} s "
            f"qps {r.qps or 0:6.2f} {r.candidate.as_dict()} {list(r.notes)}"
        )
        for level in r.levels if r.role.name == "CONFIRM" else ():
            m = level.measurement
            yield (
                f"        {m.load} {m.planned_s:.0f} s {level.verdict.outcome} margin {level.verdict.slo_margin} "
                f"{'; '.join(map(str, level.verdict.reasons))} {[c.kind.value for c in m.cautions]}"
            )
    yield result.sentence
    yield f"gain {result.gain}, stated {stated(end)}"
    for name, figures in (("winner", result.winner), ("default", result.default)):
        if figures is not None:
            yield f"{name}: {figures.qps:.2f}, true {truths(night.load, figures.candidate)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=200)
    parser.add_argument("--load", choices=list(LOADS), default="open")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--trace", metavar="KIND:NUMBER")
    given = parser.parse_args()
    if given.trace:
        kind, _, number = given.trace.partition(":")
        _print(traced(Night.of(kind, int(number), given.load)))
        return
    every = []
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        for s in pool.imap_unordered(seen, nights(given.nights, given.kinds, given.load)):
            every.append(s)
            print(s.night.kind, s.night.number, f"{s.night.moment:.2f}", s.decision, s.stated, "true", _gains(s.true),
                  f"off {s.off:.3f}", file=sys.stderr, flush=True)  # fmt: skip
    _print(table(every))
    _print(worst(every))


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


if __name__ == "__main__":
    main()
