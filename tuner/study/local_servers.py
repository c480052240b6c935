"""Servers of this machine for trials."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from tuner.bench.level import Level, LevelRun
from tuner.bench.measured import Measured
from tuner.bench.session import LiveSession
from tuner.clock import Clock
from tuner.launch import Deployment, Door, LaunchSpec
from tuner.load.drive import LevelProgress, drive_closed
from tuner.load.early_end import INTERRUPTED, EarlyEnd
from tuner.load.endpoint import first_failure
from tuner.load.prompts import Prompts
from tuner.load.requests_log import RequestLog
from tuner.load.stream import Failure, Target
from tuner.server.service import Service, ServiceRequest, serving, start_limit
from tuner.study.assignment import Assignment
from tuner.study.events import Event, LevelMeasured, MemoryAwaited, PhaseChanged, QuietAwaited
from tuner.study.own_files import CACHE
from tuner.study.plan import StudyPlan, saturating_clients
from tuner.study.store import Store
from tuner.study.trial import ReadyServer, TrialRunner
from tuner.telemetry.gpu import GpuAdapter
from tuner.telemetry.sampler import Sampler, TelemetryLog, Watched
from tuner.vllm import knobs, variables
from tuner.vllm.cause import REQUEST_REFUSED, Cause, Fault

_NO_REFUSAL = (Failure.CONNECT, Failure.TIMEOUT, Failure.CUT)
"""Failures of a server that is lost or hangs, or of a user who does not wait. The load tells them apart."""

FIRST_TRIES = 3
"""Failures in a row of a request alone, from which no answer is expected any more."""

HUNG_S = 30.0
"""Seconds without a token after which an idle server is hung. The slowest candidate answers one request sooner."""


def local_trials(
    plan: StudyPlan,
    store: Store,
    clock: Clock,
    gpu: GpuAdapter,
    emit: Callable[[Event], None],
    stop: threading.Event,
) -> TrialRunner:
    """Return the runner of trials on this machine."""
    servers = LocalServers(plan, store, clock, gpu, emit, stop)
    return TrialRunner(plan.base, servers, clock, emit, stop, plan.vllm_version)


@dataclass
class LocalServers:
    """`Serve` on this machine. The first start's time limits the later ones."""

    plan: StudyPlan
    store: Store
    clock: Clock
    gpu: GpuAdapter
    emit: Callable[[Event], None]
    stop: threading.Event
    _first_start_s: float | None = field(default=None, init=False)
    _answers: bool = field(default=False, init=False)

    @contextmanager
    def __call__(self, assignment: Assignment, servers: Deployment) -> Iterator[ReadyServer]:
        request = ServiceRequest(
            deployment=servers,
            folder=self.store.trial_folder(assignment.trial),
            env=((variables.CACHE_ROOT, str(self.store.folder.absolute() / CACHE)),),
            model=self.plan.model,
            start_limit_s=start_limit(self._first_start_s, self.plan.start_limit_s, len(assignment.groups)),
            clock=self.clock,
            gpu_memory=self.gpu,
            on_phase=lambda phase: self.emit(PhaseChanged(assignment.trial, assignment.place, phase)),
            on_memory_wait=lambda holders: self.emit(MemoryAwaited(assignment.trial, assignment.place, holders)),
            should_stop=self.stop.is_set,
        )
        ready: ReadyServer | None = None
        try:
            with serving(request) as service:
                self._first_start_s = self._first_start_s or service.start_s
                session = self._session(assignment, servers, service)
                fault = partial(self._fault, service, _parts(servers, service, session.target), session)
                refused = self._refused(service, session)
                ready = ReadyServer(session, service.start_s, service.facts[0], refused, fault)
                yield ready
        finally:
            if ready is not None:
                ready.stopped = service.stopped

    def _session(self, assignment: Assignment, servers: Deployment, service: Service) -> LiveSession:
        plan = self.plan
        # Confirmations get prompts and arrivals that no search trial saw; the same ones for winner and default.
        seed = plan.seed + 1000 * assignment.traffic
        return LiveSession(
            target=Target(service.base_url, service.model_name, os.environ.get(variables.API_KEY)),
            prompts=Prompts.for_model(plan.workload, plan.model, seed, service.base_url),
            slos=plan.slos,
            sampler=Sampler(*_watched(servers, service), gpu=self.gpu, leaders=service.pids),
            should_stop=self.stop.is_set,
            alive=service.alive,
            on_level=self._level_log(assignment),
            on_wait=lambda reasons: self.emit(QuietAwaited(assignment.trial, assignment.place, reasons)),
            warm_up_s=assignment.warm_up_s,
            seed=seed,
            clients=len(assignment.groups) * saturating_clients(servers.specs[0].max_num_seqs),
        )

    def _level_log(self, assignment: Assignment) -> Callable[[LevelRun], None]:
        folder = self.store.trial_folder(assignment.trial)
        requests, telemetry = RequestLog(folder / "requests.parquet"), TelemetryLog(folder / "telemetry.parquet")

        def on_level(run: LevelRun) -> None:
            load = run.measurement.load
            requests.add(load.level, run.samples, load.kind)
            telemetry.add(load.level, run.telemetry)
            verdict = run.verdict if load.kind is self.plan.load.kind else None
            self.emit(LevelMeasured(assignment.trial, assignment.place, run.measurement, verdict))

        return on_level

    def _refused(self, service: Service, session: LiveSession) -> Cause | None:
        """Send requests alone until one server of the study has answered. What fails then fails on every server."""
        if not self._answers:
            levels = (level for record in self.store.records() for level in record.levels)
            self._answers = any(level.measurement.completed for level in levels)
        if self._answers:
            return None
        failed = None
        for _ in range(FIRST_TRIES):
            failed = first_failure(session.target, session.prompts, self._interrupted)
            self._answers = failed is None
            if failed is None or failed.failure in _NO_REFUSAL:
                return None
            self.clock.sleep(1.0)
        assert failed is not None
        words = f"A request alone on the server failed: {failed.words}"
        return service.died() or Cause(REQUEST_REFUSED, Fault.STUDY, "", words, failed.hint)

    def _interrupted(self, progress: LevelProgress) -> EarlyEnd | None:
        return INTERRUPTED if self.stop.is_set() else None

    def _fault(
        self, service: Service, parts: Sequence[_Part], session: LiveSession, measured: Measured
    ) -> Cause | None:
        """Explain why load went wrong. An engine that died may leave broken answers behind, not a closed port."""
        died = service.died()
        if died is not None or (measured.levels and not _unanswered(measured.levels[-1])):
            return died
        hung = (part for part in parts if self._hangs(part.target, session.prompts))
        return next((part.cause() for part in hung), None)

    def _hangs(self, target: Target, prompts: Prompts) -> bool:
        """Test for a hung engine. It leaves /health at 200, and its measurements look like a slow candidate's."""
        samples = drive_closed(
            target,
            [replace(prompts.requests("hung", 1)[0], max_tokens=1)],
            1,
            0.1,
            drain_s=HUNG_S,
            watch=self._interrupted,
        )
        return any(sample.failure is Failure.TIMEOUT for sample in samples.requests)


@dataclass(frozen=True, slots=True)
class _Part:
    """Server, engine or door that must answer, with its name for the user."""

    name: str
    target: Target
    fault: Fault = Fault.UNKNOWN

    def cause(self) -> Cause:
        words = f"{self.name} answers /health, and no token came within {HUNG_S:.0f} s."
        return Cause("hung", self.fault, "", words, "see the end of the log")


def _parts(servers: Deployment, service: Service, door: Target) -> list[_Part]:
    """List what must answer: each server, of a server with several engines each engine, and last the door."""
    parts = []
    for number, (spec, server) in enumerate(zip(servers.specs, service.servers, strict=True)):
        name = "The server" if len(servers.specs) == 1 else f"Server {number + 1} of {len(servers.specs)}"
        own = replace(door, base_url=server.base_url)
        count = _engines(spec)
        for engine in range(count):
            chosen = ((variables.ENGINE_HEADER, str(engine)),) if count > 1 else ()
            of_it = f"{name} (engine {engine + 1} of {count})" if count > 1 else name
            parts.append(_Part(of_it, replace(own, headers=chosen)))
    if servers.door is Door.NGINX:
        parts.append(_Part("The door (nginx)", door, Fault.ENVIRONMENT))
    return parts


def _watched(servers: Deployment, service: Service) -> list[Watched]:
    pairs = zip(servers.specs, service.servers, strict=True)
    return [Watched(f"{server.base_url}/metrics", spec.gpus, _engines(spec)) for spec, server in pairs]


def _engines(spec: LaunchSpec) -> int:
    """Return the engines of one server. vLLM's data parallelism runs several."""
    value = spec.value(knobs.DATA_PARALLEL)
    return value if isinstance(value, int) and value > 1 else 1


def _unanswered(level: Level) -> bool:
    """Return True if a level may have ended for want of answers."""
    measurement = level.measurement
    timed_out = any(kind == Failure.TIMEOUT for kind, _ in measurement.failed)
    return measurement.aborted is not None or measurement.completed == 0 or timed_out
