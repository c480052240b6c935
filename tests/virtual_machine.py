"""Trials of the real study on the stand-in in virtual time: same records and verdicts, known truth, no processes."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tests.fakes import ScriptedClock, ScriptedServers, scripted_trial
from tuner.bench.level import Level, best_of
from tuner.bench.measured import LoadOutcome, Measured
from tuner.bench.task import RunLadder, Task
from tuner.candidate import Candidate
from tuner.load.workload import Workload
from tuner.measurement import ClientLoad, Load, LoadKind, Measurement, ServerLoad, distribution
from tuner.server.diagnosis import Cause, ServerPhase, diagnose
from tuner.sim import (
    ClosedLoop,
    EngineArguments,
    Hardware,
    ModelShape,
    Noise,
    Refused,
    Shape,
    SimulatedLevel,
    Started,
    hardware_profile,
    load_model,
    simulate,
    startup,
)
from tuner.study.assignment import Assignment
from tuner.study.plan import Ladder, StudyPlan
from tuner.study.record import TrialRecord
from tuner.verdict import Outcome, judge
from tuner.vllm.facts import StartFacts

START_NOISE = 0.025
"""Relative spread of QPS between starts of one configuration: the lower end of what real vLLM showed."""


@dataclass(frozen=True)
class VirtualMachine:
    """A GPU and a model; `run_trial` for a Loop, `true_qps` for a judgement afterwards."""

    plan: StudyPlan
    gpu: str
    model: str
    seed: int = 0

    @cached_property
    def hardware(self) -> Hardware:
        return hardware_profile(self.gpu)

    @cached_property
    def shape(self) -> ModelShape:
        return load_model(self.model)

    def run_trial(self, assignment: Assignment) -> TrialRecord:
        started, clock = self._start(assignment.candidate), ScriptedClock()
        found = _cause(started) if isinstance(started, Refused) else _VirtualSession(self, started, assignment, clock)
        facts = _facts(started) if isinstance(started, Started) else None
        return scripted_trial(assignment, self.plan.base, ScriptedServers(lambda _: found, clock, 60.0, 1.0, facts))

    def would_start(self, candidate: Candidate) -> bool:
        return isinstance(self._start(candidate), Started)

    def true_qps(self, candidate: Candidate) -> float:
        """The highest feasible QPS without noise; 0 where nothing starts or keeps the limits."""
        started = self._start(candidate)
        best = 0.0
        for concurrency in self._ladder.levels if isinstance(started, Started) else ():
            assert isinstance(started, Started)
            level = self.judged(self.level(started, concurrency, self._ladder.level_s, 0, None), concurrency, 1.0)
            if level.verdict.outcome is Outcome.INFEASIBLE:
                break
            best = max(best, level.measurement.qps or 0.0)
        return best

    @property
    def _ladder(self) -> Ladder:
        assert isinstance(self.plan.load, Ladder)
        return self.plan.load

    def _start(self, candidate: Candidate) -> Started | Refused:
        values = {flag.replace("-", "_"): value for flag, value in candidate.values}
        values.setdefault("max_model_len", self.plan.workload.longest + 128)
        return startup(replace(EngineArguments(), **values), self.hardware, self.shape)  # type: ignore[arg-type]

    def level(
        self, started: Started, concurrency: int, seconds: float, trial: int, noise: Noise | None
    ) -> SimulatedLevel:
        load = ClosedLoop(_shapes(self.plan.workload, concurrency), concurrency, seconds, warmup_s=seconds / 4)
        return simulate(started, self.hardware, self.shape, load, seed=self.seed * 10_000 + trial, noise=noise)

    def judged(self, seen: SimulatedLevel, concurrency: int, seconds: float) -> Level:
        measurement = Measurement(
            load=Load(LoadKind.CLOSED, concurrency),
            seed=self.seed,
            planned_s=seconds,
            window_s=seconds,
            sent=seen.sent_s.size,
            completed=seen.done_s.size,
            failed=(),
            qps=seen.qps,
            output_tokens_per_s=None,
            prompt_tokens=0,
            output_tokens=int(seen.output_tokens.sum()),
            ttft_ms=distribution(np.sort(seen.ttft_s * 1000)),
            tpot_ms=None,
            itl_ms=None,
            e2e_ms=None,
            server=ServerLoad(preemptions=seen.preemptions, kv_usage_peak=seen.peak_kv_usage),
            client=ClientLoad(0.0, 0.0, 0.0),
        )
        return Level(measurement, judge(measurement, self.plan.slos))


@dataclass
class _VirtualSession:
    """Session of one started server in virtual time. Its ladder ends at the first level that breaks a limit."""

    machine: VirtualMachine
    started: Started
    assignment: Assignment
    clock: ScriptedClock

    def run(self, task: Task) -> Measured:
        assert isinstance(task, RunLadder)
        noise = Noise(run=START_NOISE, step=0.05)
        levels: list[Level] = []
        for concurrency in task.levels:
            seen = self.machine.level(self.started, concurrency, task.level_s, self.assignment.trial, noise)
            levels.append(self.machine.judged(seen, concurrency, task.level_s))
            if levels[-1].verdict.outcome is Outcome.INFEASIBLE:
                break
        best, seconds = best_of(tuple(levels)), task.level_s * len(levels)
        self.clock.sleep(5.0 + seconds)
        outcome = LoadOutcome.INFEASIBLE if best is None else LoadOutcome.FEASIBLE
        return Measured(tuple(levels), outcome, best, seconds)


def _shapes(workload: Workload, seed: int) -> list[Shape]:
    rng = random.Random(seed)
    (share,) = workload.shares
    return [
        Shape(rng.randint(share.prompt.low, share.prompt.high), rng.randint(share.output.low, share.output.high))
        for _ in range(2000)
    ]


def _cause(refused: Refused) -> Cause:
    return diagnose(f"{refused.error}: {refused.message}", exit_code=1, phase=ServerPhase.STARTING)


def _facts(started: Started) -> StartFacts:
    """Return the memory facts of a start as vLLM logs them, rounded."""
    memory = started.memory
    return StartFacts(
        kv_tokens=started.kv_tokens,
        kv_memory_gib=round(memory.kv_cache / 2**30, 2),
        weights_gib=round(memory.weights / 2**30, 2),
        max_model_len=started.config.max_model_len,
    )
