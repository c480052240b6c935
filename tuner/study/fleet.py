"""Fleets: the slots that servers run on. The coordinator submits assignments and gets finished records."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

from tuner.placement import GpuGroup
from tuner.study.assignment import Assignment
from tuner.study.record import TrialRecord
from tuner.study.store import Store


class FleetStoppedError(Exception):
    """Assignment to a fleet that was stopped."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Place for one server at a time, with its GPUs."""

    name: str
    group: GpuGroup


class Fleet(ABC):
    """Slots that run trials side by side. tests/study/fleet_contract.py holds what every fleet must do.

    - One trial at a time runs in a slot; an assignment for a busy slot waits for its turn.
    - An assignment is on disk before its server starts.
    - A record is on disk before its future resolves, and before the slot is given another server.
    - A trial's events are delivered in their order, and before its future resolves.
    - An exception in one assignment goes to its future; the fleet goes on.
    - After `stop`, running trials end early and `submit` raises FleetStoppedError.

    As a context manager a fleet waits for its trials at the end, and stops them first if the block raised.
    """

    @property
    @abstractmethod
    def slots(self) -> tuple[Slot, ...]:
        """All slots, those of quarantined groups included."""

    @abstractmethod
    def submit(self, assignment: Assignment) -> Future[TrialRecord]:
        """Run an assignment on its group's slot. Raises FleetStoppedError after `stop`."""

    @abstractmethod
    def stop(self) -> None:
        """End what runs and refuse what comes. Returns at once, may be called twice and from a signal handler."""

    @property
    @abstractmethod
    def stopped(self) -> bool:
        """Return True if `stop` was called."""

    @abstractmethod
    def close(self) -> None:
        """Wait for all trials and release the slots."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self.stop()
        self.close()


class LocalFleet(Fleet):
    """GPU groups of this machine, with one thread each. `run` turns an assignment into a record and ends early once
    `stop` is set. It must not raise for a failed trial."""

    def __init__(
        self,
        groups: Sequence[GpuGroup],
        run: Callable[[Assignment], TrialRecord],
        store: Store,
        stop: threading.Event | None = None,
    ) -> None:
        self._slots = tuple(Slot(group.name, group) for group in groups)
        self._run = run
        self._store = store
        self._stop = stop or threading.Event()
        self._threads = {slot.name: ThreadPoolExecutor(1, thread_name_prefix=slot.name) for slot in self._slots}

    @property
    def slots(self) -> tuple[Slot, ...]:
        return self._slots

    def submit(self, assignment: Assignment) -> Future[TrialRecord]:
        if self.stopped:
            raise FleetStoppedError
        return self._threads[assignment.group.name].submit(self._run_and_save, assignment)

    def _run_and_save(self, assignment: Assignment) -> TrialRecord:
        self._store.save_assignment(assignment)
        record = self._run(assignment)
        self._store.save_record(record)
        return record

    def stop(self) -> None:
        self._stop.set()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def close(self) -> None:
        for thread in self._threads.values():
            thread.shutdown(wait=True, cancel_futures=self.stopped)
