"""One assignment from server and load to its record. Nothing else makes a TrialRecord."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from tuner.bench.measured import Cut, LostForAMoment, Measured, Session
from tuner.clock import Clock
from tuner.errors import InterruptedSearchError
from tuner.launch import Deployment, Door, LaunchBase, deployment
from tuner.server.service import ServerDidNotStart
from tuner.server.shutdown import StopReport
from tuner.study.assignment import Assignment
from tuner.study.events import MEASURING, Event, PhaseChanged
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.start_record import Phases, StartRecord
from tuner.verdict import Outcome
from tuner.vllm.cause import Cause, Fault
from tuner.vllm.facts import StartFacts

NOTHING = Measured((), None, None, 0.0)
"""Result of a server that got no load."""

_MEASURED = tuple(TrialOutcome(outcome) for outcome in Outcome)


@dataclass
class ReadyServer:
    """A server that can be loaded.

    Attributes:
        refused: Why no load makes sense: a request alone failed. None if it was answered.
        fault: Why a task went wrong: the server died or hangs. It returns None if the server lives.
        stopped: How the server ended. None until its `with` block has been left.
    """

    session: Session
    start_s: float
    facts: StartFacts | None = None
    refused: Cause | None = None
    fault: Callable[[Measured], Cause | None] = lambda measured: None
    stopped: StopReport | None = None


Serve = Callable[[Assignment, Deployment], AbstractContextManager[ReadyServer]]
"""Starts a deployment and ends it. Raises ServerDidNotStart, or InterruptedSearchError if the user did not wait."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A server that did not get ready."""

    cause: Cause
    start_s: float
    stopped: StopReport


@dataclass(frozen=True, slots=True)
class Served:
    """A server that was loaded for `loaded_s` seconds, warm-up included."""

    start_s: float
    facts: StartFacts | None
    measured: Measured
    cause: Cause | None
    loaded_s: float
    stopped: StopReport | None


@dataclass
class TrialRunner:
    """Turns assignments into records, one deployment each. Several threads may call it for several GPU groups."""

    base: LaunchBase
    serve: Serve
    clock: Clock
    emit: Callable[[Event], None]
    stop: threading.Event
    vllm_version: str = ""

    def run(self, assignment: Assignment) -> TrialRecord:
        """Make a trial. Whatever becomes of the server is in the record; only a bug of ours raises."""
        servers = deployment(self.base, assignment.candidate, assignment.groups, assignment.door)
        started_at = self.clock.wall().isoformat(timespec="seconds")
        try:
            found: Refused | Served | None = self._served(assignment, servers)
        except ServerDidNotStart as refused:
            found = Refused(refused.cause, refused.start_s, refused.stopped)
        except InterruptedSearchError:
            found = None
        start = replace(_start_record(servers, assignment.place, started_at, found), vllm_version=self.vllm_version)
        return _record(assignment, start, found, interrupted=found is None or self.stop.is_set())

    def _served(self, assignment: Assignment, servers: Deployment) -> Served:
        with self.serve(assignment, servers) as server:
            ready_ns = self.clock.now_ns()
            self._tell(assignment, MEASURING)
            measured = NOTHING if server.refused else server.session.run(assignment.task)
            interrupted = measured.cut is Cut.INTERRUPTED or self.stop.is_set()
            cause = None if interrupted else server.refused or server.fault(measured)
            loaded_s = (self.clock.now_ns() - ready_ns) / 1e9
            self._tell(assignment, "stopping")
        return Served(server.start_s, server.facts, measured, cause, loaded_s, server.stopped)

    def _tell(self, assignment: Assignment, phase: str) -> None:
        self.emit(PhaseChanged(assignment.trial, assignment.place, phase))


def _start_record(servers: Deployment, place: str, started_at: str, found: Refused | Served | None) -> StartRecord:
    launch, *others = servers.specs
    start = StartRecord(launch, place, started_at, Phases(), others=tuple(others), door=servers.door)
    if found is None:
        return start
    stop_s = found.stopped.seconds if found.stopped else None
    dirty = _left(found.stopped)
    if isinstance(found, Refused):
        phases = Phases(start_s=found.start_s, stop_s=stop_s)
        return replace(start, phases=phases, cause=found.cause, dirty=dirty)
    measure_s = min(found.measured.seconds, found.loaded_s)
    wait_s = min(found.measured.waited_s, found.loaded_s - measure_s)
    warm_up_s = found.loaded_s - measure_s - wait_s
    phases = Phases(found.start_s, warm_up_s, measure_s, stop_s, wait_s or None)
    return replace(start, phases=phases, facts=found.facts, cause=found.cause, dirty=dirty)


def _left(stopped: StopReport | None) -> str | None:
    """Name what a server left on the machine; None if nothing."""
    if stopped is None or stopped.is_clean:
        return None
    return ", ".join(stopped.remains)


def _record(
    assignment: Assignment, start: StartRecord, found: Refused | Served | None, *, interrupted: bool
) -> TrialRecord:
    measured = found.measured if isinstance(found, Served) else None
    outcome = TrialOutcome.INTERRUPTED if interrupted else _outcome(assignment, start, measured)
    notes = measured.notes if measured else ()
    if measured and measured.cut in (Cut.SERVER_LOST, Cut.NOT_IDLE) and start.cause is None:
        notes = (LostForAMoment(), *notes)
    return TrialRecord(
        trial=assignment.trial,
        role=assignment.role,
        candidate=assignment.candidate,
        start=start,
        outcome=outcome,
        levels=measured.levels if measured else (),
        best=measured.best if measured and outcome in _MEASURED else None,
        notes=notes,
        attempt=assignment.attempt,
        search_trial=assignment.search_trial,
        capacity=measured.capacity if measured else None,
        incumbent=assignment.incumbent,
        claim=measured.claim if measured else None,
        replicas=assignment.replicas,
    )


def _outcome(assignment: Assignment, start: StartRecord, measured: Measured | None) -> TrialOutcome:
    if start.cause is not None:
        refused = measured is None
        several = refused and assignment.role is Role.CONFIRM and assignment.door is not Door.SERVER
        # A refusal on a machine that our own leftovers occupy says nothing of the candidate. Nor does one of a server
        # that has started before: since then it is the machine that changed. Several behind a door have not.
        changed = refused and not assignment.role.searches and not several
        own = start.cause.fault is Fault.CANDIDATE or (several and start.cause.fault is Fault.UNKNOWN)
        if not own or start.dirty or changed:
            return TrialOutcome.INFRASTRUCTURE
        return TrialOutcome.REFUSED if measured is None else TrialOutcome.DIED
    if measured is None or not measured.levels or measured.outcome is None:
        return TrialOutcome.INFRASTRUCTURE
    return TrialOutcome(measured.outcome)
