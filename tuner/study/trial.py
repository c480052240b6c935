"""One candidate through the sentence; the only place that joins server and load."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tuner.bench.capacity_search import Saturation
from tuner.bench.ladder import INTERRUPTED, LadderLostError, LevelRun, run_ladder, warm_up
from tuner.bench.open_probe import InterruptedLoadError, OpenProbe
from tuner.bench.task import ClaimRate, RunLadder, Saturate, SearchCapacity
from tuner.clock import Clock
from tuner.errors import InterruptedSearchError
from tuner.launch import LaunchSpec, launch
from tuner.load.drive import drive_closed
from tuner.load.prompts import Prompts
from tuner.load.requests_log import RequestLog
from tuner.load.stream import Failure, Target
from tuner.server.diagnosis import Cause, Fault
from tuner.server.service import Deployment, ServerDidNotStart, Service, ServiceRequest, serving, start_limit
from tuner.server.shutdown import StopReport
from tuner.slo import longest_wait_s
from tuner.study.assignment import Assignment
from tuner.study.events import Event, LevelMeasured, PhaseChanged
from tuner.study.open_loop import OpenLoopResult
from tuner.study.plan import StudyPlan, saturating_clients
from tuner.study.record import Level, Role, TrialOutcome, TrialRecord, best_of
from tuner.study.start_record import Phases, StartRecord
from tuner.study.store import Store
from tuner.telemetry.gpu import GpuAdapter
from tuner.telemetry.sampler import Sampler, TelemetryLog
from tuner.verdict import Outcome
from tuner.vllm import variables
from tuner.vllm.facts import StartFacts

HUNG_S = 30.0
"""A server without load that gives no token in this time is hung: the slowest candidate answers one request sooner."""


@dataclass
class TrialRunner:
    """Turns assignments into records, one server each; may be called from several threads for several GPU groups."""

    plan: StudyPlan
    store: Store
    clock: Clock
    gpu: GpuAdapter
    emit: Callable[[Event], None]
    stop: threading.Event
    _first_start_s: float | None = field(default=None, init=False)

    def run(self, assignment: Assignment) -> TrialRecord:
        """Whatever becomes of the server is in the record; only a bug of ours raises."""
        return _Trial(self, assignment).run()

    def start_limit_s(self) -> float:
        return start_limit(self._first_start_s, self.plan.start_limit_s)

    def started_in(self, seconds: float) -> None:
        self._first_start_s = self._first_start_s or seconds


class _Trial:
    """The state of one trial while it runs; `record()` is what is left of it."""

    def __init__(self, runner: TrialRunner, assignment: Assignment) -> None:
        self._runner = runner
        self._assignment = assignment
        self._spec: LaunchSpec = launch(runner.plan.base, assignment.candidate, assignment.group)
        self._folder: Path = runner.store.trial_folder(assignment.trial)
        self._started_at = runner.clock.wall().isoformat(timespec="seconds")
        self._levels: list[Level] = []
        open_loop = isinstance(assignment.task, SearchCapacity | ClaimRate)
        self._answer = OpenLoopResult(assignment.incumbent) if open_loop else None
        self._measured_s = 0.0
        self._facts: StartFacts | None = None
        self._cause: Cause | None = None
        self._notes: list[str] = []
        self._start_s: float | None = None
        self._ready_ns: int | None = None
        self._loaded_ns: int | None = None
        self._stop_s: float | None = None
        self._dirty: str | None = None

    def run(self) -> TrialRecord:
        interrupted = False
        try:
            self._serve()
        except ServerDidNotStart as refused:
            self._cause, self._start_s = refused.cause, refused.start_s
            self._stopped(refused.stopped)
        except InterruptedSearchError:
            interrupted = True
        outcome = TrialOutcome.INTERRUPTED if interrupted or self._runner.stop.is_set() else self._outcome()
        return self._record(outcome)

    def _serve(self) -> None:
        runner = self._runner
        request = ServiceRequest(
            deployment=Deployment((self._spec,)),
            folder=self._folder,
            model=runner.plan.model,
            start_limit_s=runner.start_limit_s(),
            clock=runner.clock,
            gpu_memory=runner.gpu,
            on_phase=self._phase,
            should_stop=runner.stop.is_set,
        )
        service: Service | None = None
        try:
            with serving(request) as service:
                self._start_s, self._facts = service.start_s, service.facts[0]
                runner.started_in(service.start_s)
                self._ready_ns = runner.clock.now_ns()
                self._load(service)
                self._loaded_ns = runner.clock.now_ns()
                self._phase("stopping")
        finally:
            if service is not None and service.stopped is not None:
                self._stopped(service.stopped)

    def _stopped(self, report: StopReport) -> None:
        self._stop_s = report.seconds
        if not report.is_clean:
            self._dirty = ", ".join((*report.left, *(["GPU memory"] if report.memory_back is False else [])))

    def _load(self, service: Service) -> None:
        runner = self._runner
        self._phase("measuring")
        prompts = Prompts.for_model(runner.plan.workload, runner.plan.model, self._traffic_seed, service.base_url)
        target = Target(service.base_url, service.model_name, os.environ.get(variables.API_KEY))
        sampler = Sampler(
            f"{service.base_url}/metrics",
            gpu=runner.gpu,
            gpu_indices=self._assignment.group.gpus,
            server_pid=service.pids[0],
        )
        try:
            self._measure(target, prompts, sampler)
        except InterruptedLoadError:
            pass  # `stop` is set, and the outcome says so
        except LadderLostError:
            self._cause = service.died() or self._hung(target, prompts)
            if self._cause is None:
                self._notes.append("the server did not take requests for a moment, and lives")
        else:
            # An engine that died leaves broken answers behind, not a closed port.
            if not runner.stop.is_set():
                self._cause = service.died() or self._hung(target, prompts)

    def _measure(self, target: Target, prompts: Prompts, sampler: Sampler) -> None:
        runner, task, warm_up_s = self._runner, self._assignment.task, self._assignment.warm_up_s
        if isinstance(task, RunLadder):
            run_ladder(
                target,
                prompts,
                task.levels,
                task.level_s,
                warm_up_s,
                runner.plan.slos,
                sampler,
                runner.stop.is_set,
                self._level_log(),
                seed=runner.plan.seed,
            )
            return
        clients = saturating_clients(self._spec.max_num_seqs)
        pace = warm_up(target, prompts, clients, warm_up_s, runner.stop.is_set)
        probe = OpenProbe(
            target,
            prompts,
            runner.plan.slos,
            sampler,
            seed=self._traffic_seed,
            should_stop=runner.stop.is_set,
            on_level=self._level_log(),
            arrivals=task.arrivals if isinstance(task, SearchCapacity | ClaimRate) else None,
        )

        def saturate(seconds: float) -> Saturation:
            return probe.saturate(seconds, clients, pace.requests(seconds, clients))

        if isinstance(task, Saturate):
            saturate(task.seconds)
        elif self._answer is not None and isinstance(task, SearchCapacity | ClaimRate):
            estimate = task.estimate if isinstance(task, ClaimRate) else None
            self._answer.find(probe, saturate, task.settings, estimate, longest_wait_s(runner.plan.slos))

    def _hung(self, target: Target, prompts: Prompts) -> Cause | None:
        """An engine that stands still leaves /health at 200, and what was measured looks like a slow candidate."""
        if self._levels and not _unanswered(self._levels[-1]):
            return None
        request = replace(prompts.requests("hung", 1)[0], max_tokens=1)
        stop = self._runner.stop
        samples = drive_closed(
            target, [request], 1, 0.1, drain_s=HUNG_S, watch=lambda _: INTERRUPTED if stop.is_set() else None
        )
        if all(sample.failure is not Failure.TIMEOUT for sample in samples.requests):
            return None
        words = f"The server answers /health, and no token came within {HUNG_S:.0f} s."
        return Cause("hung", Fault.UNKNOWN, "", words, "see the end of the log")

    @property
    def _traffic_seed(self) -> int:
        """Confirmations get prompts and arrivals that no search trial saw; the same ones for winner and default."""
        return self._runner.plan.seed + 1000 * self._assignment.traffic

    def _level_log(self) -> Callable[[LevelRun], None]:
        requests = RequestLog(self._folder / "requests.parquet")
        telemetry = TelemetryLog(self._folder / "telemetry.parquet")

        def on_level(run: LevelRun) -> None:
            load = run.measurement.load
            requests.add(load.level, run.samples, load.kind)
            telemetry.add(load.level, run.telemetry)
            self._measured_s += (run.samples.drained_ns - run.samples.started_ns) / 1e9
            self._levels.append(Level(run.measurement, run.verdict))
            assignment = self._assignment
            verdict = run.verdict if load.kind is self._runner.plan.load.kind else None
            self._runner.emit(LevelMeasured(assignment.trial, assignment.group.name, run.measurement, verdict))

        return on_level

    def _phase(self, phase: str) -> None:
        self._runner.emit(PhaseChanged(self._assignment.trial, self._assignment.group.name, phase))

    def _outcome(self) -> TrialOutcome:
        if self._cause is not None:
            # A refusal on a machine that our own leftovers occupy says nothing of the candidate; nor does one of a
            # candidate that has started before: since then it is the machine that changed.
            refused = self._ready_ns is None
            changed = refused and self._assignment.role in (Role.CONFIRM, Role.CHECK)
            if self._cause.fault is not Fault.CANDIDATE or self._dirty or changed:
                return TrialOutcome.INFRASTRUCTURE
            return TrialOutcome.REFUSED if refused else TrialOutcome.DIED
        if not self._levels:
            return TrialOutcome.INFRASTRUCTURE
        if self._answer is not None:
            return self._answer.outcome(self._levels)
        if best_of(tuple(self._levels)) is not None:
            return TrialOutcome.FEASIBLE
        return TrialOutcome(self._levels[0].verdict.outcome)

    def _record(self, outcome: TrialOutcome) -> TrialRecord:
        assignment, answer = self._assignment, self._answer
        levels = tuple(self._levels)
        best = best_of(levels) if answer is None else answer.best(levels)
        measured = {TrialOutcome(o) for o in Outcome}
        return TrialRecord(
            trial=assignment.trial,
            role=assignment.role,
            candidate=assignment.candidate,
            start=StartRecord(
                launch=self._spec,
                group=assignment.group.name,
                started_at=self._started_at,
                phases=self._phases(),
                facts=self._facts,
                cause=self._cause,
                dirty=self._dirty,
            ),
            outcome=outcome,
            levels=levels,
            best=best if outcome in measured else None,
            notes=(*self._notes, *(answer.notes(outcome) if answer else ())),
            attempt=assignment.attempt,
            search_trial=assignment.search_trial,
            capacity=answer.capacity if answer else None,
            incumbent=assignment.incumbent,
            claim=answer.claim if answer else None,
        )

    def _phases(self) -> Phases:
        loaded_s = None
        if self._ready_ns is not None:
            loaded_s = ((self._loaded_ns or self._runner.clock.now_ns()) - self._ready_ns) / 1e9
        measured_s = None if loaded_s is None else min(self._measured_s, loaded_s)
        warm_up_s = None if loaded_s is None or measured_s is None else loaded_s - measured_s
        return Phases(self._start_s, warm_up_s, measured_s, self._stop_s)


def _unanswered(level: Level) -> bool:
    """Whether the level may have ended as it did because no answers came any more."""
    measurement = level.measurement
    timed_out = any(kind == Failure.TIMEOUT for kind, _ in measurement.failed)
    return measurement.aborted is not None or measurement.completed == 0 or timed_out
