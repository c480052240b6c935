"""Fleets: the places that servers run on. The coordinator submits assignments and gets finished records."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from tuner.placement import GpuGroup
from tuner.study.assignment import Assignment
from tuner.study.record import TrialRecord
from tuner.study.store import Store


class FleetStoppedError(Exception):
    """Assignment to a fleet that was stopped."""


class Fleet(ABC):
    """GPU groups that run trials side by side. tests/study/test_fleet.py holds what every fleet must do.

    - One trial at a time uses a GPU; an assignment for a busy one waits for its turn.
    - An assignment is on disk before its server starts.
    - A record is on disk before its future resolves, and before its GPUs are given another server.
    - An exception in one assignment goes to its future; the fleet goes on.
    - After `stop`, running trials end early and `submit` raises FleetStoppedError.

    As a context manager a fleet waits for its trials at the end, and stops them first if the block raised.
    """

    @property
    @abstractmethod
    def groups(self) -> tuple[GpuGroup, ...]:
        """Return all groups, quarantined ones included. Those of different layouts may share GPUs."""

    @abstractmethod
    def submit(self, assignment: Assignment) -> Future[TrialRecord]:
        """Run an assignment on its groups. Raises FleetStoppedError after `stop`."""

    @abstractmethod
    def stop(self) -> None:
        """End what runs and refuse what comes. Returns at once, may be called twice and from a signal handler."""

    @property
    @abstractmethod
    def stopped(self) -> bool:
        """Return True if `stop` was called."""

    @abstractmethod
    def close(self) -> None:
        """Wait for all trials and release the groups."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is not None:
            self.stop()
        self.close()


_MOST_WAITING = 64
"""Most assignments that run or wait for their GPUs."""


class LocalFleet(Fleet):
    """GPU groups of this machine, with one thread a trial. `run` turns an assignment into a record and ends early once
    `stop` is set. It must not raise for a failed trial."""

    def __init__(
        self,
        groups: Sequence[GpuGroup],
        run: Callable[[Assignment], TrialRecord],
        store: Store,
        stop: threading.Event | None = None,
    ) -> None:
        self._groups = tuple(groups)
        self._run = run
        self._store = store
        self._stop = stop or threading.Event()
        self._threads = ThreadPoolExecutor(_MOST_WAITING, thread_name_prefix="trial")
        self._submitted: list[Assignment] = []
        self._turn = threading.Condition()

    @property
    def groups(self) -> tuple[GpuGroup, ...]:
        return self._groups

    def submit(self, assignment: Assignment) -> Future[TrialRecord]:
        if self.stopped:
            raise FleetStoppedError
        with self._turn:
            self._submitted.append(assignment)
        return self._threads.submit(self._run_and_save, assignment)

    def _run_and_save(self, assignment: Assignment) -> TrialRecord:
        with self._turn:
            self._turn.wait_for(lambda: self._is_next(assignment))
        try:
            self._store.save_assignment(assignment)
            record = self._run(assignment)
            self._store.save_record(record)
            return record
        finally:
            with self._turn:
                self._submitted.remove(assignment)
                self._turn.notify_all()

    def _is_next(self, assignment: Assignment) -> bool:
        """Return True if no assignment before this one uses one of its GPUs."""
        before = self._submitted[: self._submitted.index(assignment)]
        return not any(other.units & assignment.units for other in before)

    def stop(self) -> None:
        self._stop.set()

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def close(self) -> None:
        self._threads.shutdown(wait=True)
