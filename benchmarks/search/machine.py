"""One start as the product makes it: its own search and claim over a simulated server whose capacity is in the
table.

The noise is as measured (docs/measuring.md). All candidates of a run see the same search trace. Its bias is common
to them, and only the rest differs from start to start. The difference between two starts of one configuration on a
real GPU is not measured; 1 % is assumed.
"""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tests.fakes import ScriptedClock
from tuner.bench.capacity_search import ProbeResult, Saturation, Stop
from tuner.bench.level import Level
from tuner.bench.measured import Measured, measure_task
from tuner.bench.task import SearchCapacity, Task
from tuner.candidate import Candidate
from tuner.launch import Deployment
from tuner.load.prompts import SEARCH_TRACE
from tuner.measurement import ClientLoad, Distribution, Load, LoadKind, Measurement, ServerLoad
from tuner.server.diagnosis import ServerPhase, diagnose
from tuner.server.service import ServerDidNotStart
from tuner.server.shutdown import StopReport
from tuner.sim import Refused, Started
from tuner.sim.hardware import GIB
from tuner.slo import longest_wait_s
from tuner.study.assignment import Assignment
from tuner.study.plan import StudyPlan
from tuner.study.record import TrialRecord
from tuner.study.trial import ReadyServer, TrialRunner
from tuner.verdict import Outcome, Reason, ReasonKind, Verdict
from tuner.vllm.facts import StartFacts

from .landscapes import WARM_UP_S, Landscape
from .table import Point, Table, longest_prompt, start

START_SD = 0.010
SEARCH_BIAS, SEARCH_BIAS_SD = 0.10, 0.05
"""Excess of a short search probe's reading. It was 7 to 18 %, by the trace, and the same for every candidate of a
study."""

REST_SD = 0.005
"""Spread of one start on one trace. The sd of B/A is 0.2 to 1.0 %, and both starts have their share in it."""

SATURATION_SD = 0.007
CLAIM_BIAS, CLAIM_SD = 0.017, 0.030
"""Bias and spread of a claim's trace. A trace of n requests reads a capacity with a spread of 1 to 2 / √n; it has
2,500. With this bias claims come out as measured before W / T was taken off. Measured was a mean of .974 to .981 of
the truth with sd .023 to .034; here it is .978 and .022."""

STEEPNESS = 10.0
"""Slope of ln(P99) over ln(load): 1 % of load is 10 % of P99."""

TAIL_SD = 0.2
"""Spread of x as read from a tail, as a share of x, by the trace (benchmarks/lost_race.py). With a load that is a
share x too high, P99 after T seconds is W + x T, where W is the limit."""

REJECTED_IN = 0.03
"""Excess load that is rejected at the end of a claim's trace. Twice as much is rejected in half of it."""

STOP_S = 5.0


@dataclass(frozen=True, slots=True)
class Seen:
    """Result of one start. `rate` is None if it was refused or nothing kept the limits; `kv_usage` is None if it was
    refused."""

    rate: float | None
    kv_usage: float | None
    saturation: float = 0.0

    @property
    def refused(self) -> bool:
        return self.kv_usage is None


@dataclass
class Machine:
    """Simulated machine. `clock` advances by the time of every start, compile cache included. `seed` fixes all noise
    but the optimizer's."""

    landscape: Landscape
    table: Table
    plan: StudyPlan
    seed: int
    clock: ScriptedClock = field(default_factory=ScriptedClock)
    refused_s: float = 0.0
    _compiled: set[str] = field(default_factory=set)
    _starts: int = 0

    def landscape_of(self, candidate: Candidate) -> Landscape:
        """Return the landscape of one of a candidate's servers."""
        return self.landscape

    def table_of(self, candidate: Candidate) -> Table:
        """Return the table of one of a candidate's servers, which starts."""
        return self.table

    def share_of(self, assignment: Assignment) -> float:
        """Return what an assignment's servers do together, as a multiple of one undisturbed server."""
        return 1.0

    def truth(self, candidate: Candidate) -> float:
        """Return the true requests/s of one server. 0 if nothing starts or nothing keeps the limits."""
        landscape = self.landscape_of(candidate)
        found = start(landscape, candidate.as_dict())
        if not isinstance(found, Started):
            return 0.0
        return self.table_of(candidate).at(found, longest_prompt(landscape)).rate

    def measure(self, candidate: Candidate) -> Seen:
        """Start a candidate for a method that knows no incumbent, and search it cold."""
        found = self._start(candidate)
        if isinstance(found, Refused):
            return Seen(None, None)
        self.clock.sleep(found.start_s)
        server = self._server(found, candidate, traffic=0)
        capacity = server.run(SearchCapacity()).capacity
        self.clock.sleep(STOP_S)
        rate = capacity.rate if capacity else None
        usage = min(1.0, server.point.kv_usage)
        # Their figure without the bias that is our short probe's own.
        return Seen(None if rate is None else rate / math.exp(server.bias), usage, server.point.saturation)

    def run_trial(self, assignment: Assignment) -> TrialRecord:
        return TrialRunner(self.plan.base, self._serve, self.clock, lambda event: None, threading.Event()).run(
            assignment
        )

    @contextmanager
    def _serve(self, assignment: Assignment, servers: Deployment) -> Iterator[ReadyServer]:
        found = self._start(assignment.candidate)
        if isinstance(found, Refused):
            log = f"{found.error}: {found.message}"
            cause = diagnose(log, exit_code=1, phase=ServerPhase.STARTING, held_by_others_gib=None)
            raise ServerDidNotStart(cause, found.after_s, StopReport(STOP_S))
        self.clock.sleep(found.start_s)
        server = self._server(found, assignment.candidate, assignment.traffic, self.share_of(assignment))
        ready = ReadyServer(server, found.start_s, _facts(found))
        yield ready
        self.clock.sleep(STOP_S)
        ready.stopped = StopReport(STOP_S)

    def _start(self, candidate: Candidate) -> Started | Refused:
        self._starts += 1
        found = start(self.landscape_of(candidate), candidate.as_dict(), self._compiled)
        if isinstance(found, Refused):
            self.clock.sleep(found.after_s + STOP_S)
            self.refused_s += found.after_s + STOP_S
        return found

    def _server(self, found: Started, candidate: Candidate, traffic: int, share: float = 1.0) -> _Server:
        landscape = self.landscape_of(candidate)
        one = self.table_of(candidate).at(found, longest_prompt(landscape))
        point = replace(one, rate=share * one.rate, saturation=share * one.saturation)
        wait_s = longest_wait_s(self.plan.slos)
        return _Server(point, wait_s, f"{landscape.name}/{self.seed}", self._starts, traffic, self.clock)


class _Server:
    """Session of one started server, where a request may wait `wait_s`; `seconds` are seconds of load."""

    def __init__(self, point: Point, wait_s: float, key: str, number: int, traffic: int, clock: ScriptedClock) -> None:
        self.point = point
        self._clock = clock
        self.wait_s = wait_s
        self.levels: list[Level] = []
        self.seconds = self.waited_s = 0.0
        self.bias = random.Random(f"{key}/search").gauss(SEARCH_BIAS, SEARCH_BIAS_SD)
        self._own = own = random.Random(f"{key}/start {number}")
        self._start = own.gauss(0.0, START_SD)
        self._rest = own.gauss(0.0, REST_SD)
        self._closed = own.gauss(0.0, SATURATION_SD)
        self._traffic = f"{key}/{traffic}"

    def run(self, task: Task) -> Measured:
        measured = measure_task(task, self, self.wait_s)
        self._clock.sleep(WARM_UP_S + measured.seconds)
        return measured

    def warm_up(self, task: Task) -> None:
        """Take no time of its own: run() counts it."""

    def closed(self, concurrency: int, seconds: float) -> Level:
        raise AssertionError("no ladder is asked of these servers")

    def probe(self, rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        noise = self.bias if trace == SEARCH_TRACE else self._traffic_noise(trace)
        capacity = max(self.point.rate, 1e-6) * math.exp(self._start + self._rest + noise)
        excess = math.log(rate / capacity)
        passed = excess <= 0
        cut = not passed and stop is Stop.AT_REJECTION
        spent = seconds * min(1.0, max(0.05, REJECTED_IN / excess)) if cut else seconds
        margin = STEEPNESS * excess if passed else self._tail(1 - capacity / rate, seconds)
        self.seconds += spent
        usage = min(1.0, self.point.kv_usage * rate / max(self.point.rate, 1e-6))
        self.levels.append(_level(Load(LoadKind.OPEN, rate), rate, margin, usage, seconds))
        return ProbeResult(rate, passed, None if cut else margin, spent)

    def _tail(self, too_high: float, seconds: float) -> float:
        """Draw ln(P99 / limit) of a load that is a share too high."""
        grown_s = too_high * math.exp(self._own.gauss(0.0, TAIL_SD)) * seconds
        return math.log1p(grown_s / self.wait_s)

    def _traffic_noise(self, trace: str) -> float:
        return random.Random(self._traffic + trace).gauss(CLAIM_BIAS, CLAIM_SD)

    def saturate(self, seconds: float) -> Saturation:
        self.seconds += seconds
        rate = self.point.saturation * math.exp(self._start + self._closed)
        self.levels.append(_level(Load(LoadKind.CLOSED, 320), rate, 2.0, 1.0, seconds))
        return Saturation(rate, self.point.answer_s)


def _level(load: Load, qps: float, margin: float, kv_usage: float, seconds: float) -> Level:
    """Build a level. `margin` is ln(P99 / limit)."""
    p99 = math.exp(min(margin, 5.0))
    outcome = Outcome.FEASIBLE if margin <= 0 else Outcome.INFEASIBLE
    count = max(1, round(qps * seconds))
    measurement = Measurement(
        load=load, seed=0, planned_s=seconds, window_s=seconds, sent=count, completed=count, failed=(), qps=qps,
        output_tokens_per_s=None, prompt_tokens=0, output_tokens=0,
        ttft_ms=Distribution(count, p99, p99, p99, p99, p99, p99, None, None), tpot_ms=None, itl_ms=None, e2e_ms=None,
        server=ServerLoad(preemptions=0, kv_usage_peak=kv_usage), client=ClientLoad(0.0, 0.0, 0.0),
    )  # fmt: skip
    return Level(
        measurement,
        Verdict(outcome, () if margin <= 0 else (Reason(ReasonKind.UNANSWERED, subject="the limit"),), margin),
    )


def _facts(found: Started) -> StartFacts:
    memory = found.memory
    return StartFacts(
        kv_tokens=found.kv_tokens,
        kv_memory_gib=round(memory.kv_cache / GIB, 2),
        max_concurrency=found.max_concurrency,
        weights_gib=round(memory.weights / GIB, 2),
        max_model_len=found.config.max_model_len,
    )
