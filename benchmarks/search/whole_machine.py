"""A whole machine in virtual time: servers of any layout on disjoint GPUs at once, alone or all behind a door."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from tests.fakes import ScriptedClock
from tuner.candidate import Candidate
from tuner.launch import Door
from tuner.layout import Layout
from tuner.placement import GpuGroup
from tuner.study.assignment import Assignment
from tuner.study.fleet import Fleet, FleetStoppedError
from tuner.study.loop import Loop
from tuner.study.record import TrialRecord
from tuner.study.store import Store

from .landscapes import Landscape
from .machine import Machine
from .machines import DOOR_SHARE, MachineLandscape
from .table import Table, is_tabulated


@dataclass
class WholeMachine(Machine):
    """Machine whose candidates name their layout. `beside` is the number of other servers while one is measured."""

    whole: MachineLandscape = field(kw_only=True)
    beside: int = field(default=0, kw_only=True)
    _tables: dict[str, Table] = field(default_factory=dict, kw_only=True)

    def landscape_of(self, candidate: Candidate) -> Landscape:
        return self.whole.server(self.plan.layout_of(candidate))

    def table_of(self, candidate: Candidate) -> Table:
        name = self.landscape_of(candidate).name
        if name not in self._tables:
            self._tables[name] = Table.read(name)
        return self._tables[name]

    def share_of(self, assignment: Assignment) -> float:
        servers = len(assignment.groups)
        if servers == 1:
            return self.whole.kept(self.beside)
        return servers * self.whole.kept(servers - 1) * DOOR_SHARE[assignment.door]

    def truth(self, candidate: Candidate) -> float:
        """Return the true requests/s of the whole machine."""
        return super().truth(candidate) * self.of_the_machine(self.plan.layout_of(candidate))

    def of_the_machine(self, layout: Layout) -> float:
        """Return what all servers of a layout do through their best door, as a multiple of one undisturbed server."""
        doors = self.plan.doors if layout.replicas > 1 else (Door.SERVER,)
        return layout.replicas * self.whole.kept(layout.replicas - 1) * max(DOOR_SHARE[door] for door in doors)

    def optimum(self, layout: Layout) -> float:
        """Return the most that a layout truly sustains. 0 if it never starts, and so has no table."""
        name = self.whole.server(layout).name
        return Table.read(name).optimum * self.of_the_machine(layout) if is_tabulated(name) else 0.0


@dataclass(frozen=True, slots=True)
class _Pending:
    """Trial that ends at `end_s`."""

    end_s: float
    assignment: Assignment
    record: TrialRecord
    future: Future[TrialRecord]


class VirtualFleet(Fleet):
    """Groups of a simulated machine. A trial is made at once; `advance` lets the one end that is due first."""

    def __init__(self, machine: WholeMachine, store: Store) -> None:
        self.clock = ScriptedClock()
        self.gpu_s = 0.0
        self._machine = machine
        self._store = store
        self._pending: list[_Pending] = []
        self._stopped = False

    @property
    def groups(self) -> tuple[GpuGroup, ...]:
        return self._machine.plan.groups

    def submit(self, assignment: Assignment) -> Future[TrialRecord]:
        if self._stopped:
            raise FleetStoppedError
        before = [p.end_s for p in self._pending if p.assignment.units & assignment.units]
        self._store.save_assignment(assignment)
        self._machine.clock = ScriptedClock()
        self._machine.beside = len(self._pending)
        record = self._machine.run_trial(assignment)
        took_s = self._machine.clock.now_ns() / 1e9
        self.gpu_s += took_s * len(assignment.units)
        future: Future[TrialRecord] = Future()
        end_s = max([self.clock.now_ns() / 1e9, *before]) + took_s
        self._pending.append(_Pending(end_s, assignment, record, future))
        return future

    def advance(self) -> None:
        """Let the next trial end."""
        if not self._pending:
            return
        first = min(self._pending, key=lambda pending: pending.end_s)
        self._pending.remove(first)
        self.clock.sleep(max(0.0, first.end_s - self.clock.now_ns() / 1e9))
        self._store.save_record(first.record)
        first.future.set_result(first.record)

    def stop(self) -> None:
        self._stopped = True

    @property
    def stopped(self) -> bool:
        return self._stopped

    def close(self) -> None:
        while self._pending:
            self.advance()


@dataclass(kw_only=True)
class VirtualLoop(Loop):
    """Coordinator that does not wait: the fleet's time advances instead."""

    fleet: VirtualFleet

    def _finish_next(self) -> None:
        self.fleet.advance()
        super()._finish_next()
