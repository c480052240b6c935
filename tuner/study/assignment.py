"""Assignments of candidates to GPUs and tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuner.bench.capacity_search import Incumbent
from tuner.bench.task import ClaimRate, RunLadder, Saturate, SearchCapacity, Task
from tuner.candidate import Candidate
from tuner.measurement import Measurement
from tuner.placement import GpuGroup
from tuner.study.plan import Ladder, LoadPolicy
from tuner.study.record import Role, TrialRecord


@dataclass(frozen=True, slots=True)
class Assignment:
    """One trial to be made. On disk as trials/NNNN/assignment.json before its server starts.

    `traffic` numbers the prompts and arrivals: 0 is the search's, no trial of the search has seen the others.
    `search_trial` is the Optuna trial that it answers, None if it answers none.
    """

    trial: int
    role: Role
    candidate: Candidate
    group: GpuGroup
    task: Task
    warm_up_s: float
    search_trial: int | None
    attempt: int = 1
    traffic: int = 0
    schema: int = 1

    @property
    def incumbent(self) -> Incumbent | None:
        """Return the best candidate to race against, None without a race."""
        return self.task.incumbent if isinstance(self.task, SearchCapacity) else None


def search_task(load: LoadPolicy, incumbent: Incumbent | None) -> Task:
    """Return the task of a trial that searches."""
    if isinstance(load, Ladder):
        return RunLadder(load.levels, load.level_s)
    return SearchCapacity(load.settings, load.arrivals, incumbent)


def check_task(load: LoadPolicy, alone: Measurement) -> Task:
    """Return the task that all GPU groups share. It is the level that the default showed `alone`, or its closed
    loop."""
    if isinstance(load, Ladder):
        return RunLadder((int(alone.load.level),), load.level_s)
    return Saturate(load.settings.saturation_s)


def confirm_task(load: LoadPolicy, found: TrialRecord, confirmed: Sequence[TrialRecord]) -> Task:
    """Return the task of a confirmation run. A ladder repeats the winning level for twice the time; an open loop
    claims. `found` is the trial of the search. No claim starts above what an earlier one of `confirmed` held."""
    assert found.best_level is not None and found.qps is not None
    if isinstance(load, Ladder):
        return RunLadder((int(found.best_level.load.level),), 2 * load.level_s)
    held = [r.qps for r in confirmed if r.qps is not None]
    return ClaimRate(min([found.qps, *held]), load.settings, load.arrivals)
