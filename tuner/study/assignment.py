"""Assignments of candidates to GPUs and tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuner.bench.capacity_search import Incumbent
from tuner.bench.task import ClaimRate, MeasureBlock, RunLadder, Saturate, SearchCapacity, Task
from tuner.candidate import Candidate
from tuner.launch import Door
from tuner.measurement import Measurement
from tuner.placement import GpuGroup
from tuner.study.confirm import Confirmation
from tuner.study.plan import Ladder, LoadPolicy
from tuner.study.record import Role, TrialRecord

EXPERIMENT_S = 5.0
"""Seconds of load in an experiment."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One trial to be made. On disk as trials/NNNN/assignment.json before its server starts.

    `traffic` numbers the prompts and arrivals: 0 is the search's, no trial of the search has seen the others.
    `search_trial` is the Optuna trial that it answers, None if it answers none. `groups` are the places of its
    servers: one, or all of the candidate's layout behind `door`. `replicas` is the number of servers that each of
    them stands for in the whole machine's figures.
    """

    trial: int
    role: Role
    candidate: Candidate
    groups: tuple[GpuGroup, ...]
    task: Task
    warm_up_s: float
    search_trial: int | None
    attempt: int = 1
    traffic: int = 0
    door: Door = Door.SERVER
    replicas: int = 1
    schema: int = 2

    @property
    def place(self) -> str:
        """Name the places of its servers."""
        return "+".join(group.name for group in self.groups)

    @property
    def units(self) -> frozenset[int]:
        """Return the GPUs or workers that it occupies."""
        return frozenset(unit for group in self.groups for unit in group.units)

    @property
    def incumbent(self) -> Incumbent | None:
        """Return the best candidate to race against, None without a race."""
        return self.task.incumbent if isinstance(self.task, SearchCapacity) else None


def search_task(load: LoadPolicy, incumbent: Incumbent | None, replicas: int = 1) -> Task:
    """Return the task of a trial that searches. Its server stands for `replicas` of the machine, and races against
    their share of the machine's best."""
    if isinstance(load, Ladder):
        return RunLadder(load.levels, load.level_s)
    if incumbent is not None:
        rate, saturation = incumbent.rate / replicas, incumbent.saturation / replicas
        incumbent = replace(incumbent, rate=rate, saturation=saturation)
    return SearchCapacity(load.settings, replace(load.arrivals, share=replicas), incumbent)


def check_task(load: LoadPolicy, alone: Measurement) -> Task:
    """Return the task that all GPU groups share. It is the level that the default showed `alone`, or its closed
    loop."""
    if isinstance(load, Ladder):
        return RunLadder((int(alone.load.level),), load.level_s)
    return Saturate(load.settings.saturation_s)


def experiment_task(load: LoadPolicy) -> Task:
    """Return the task of a server whose start is all that matters: a short load, to see that it answers."""
    if isinstance(load, Ladder):
        return RunLadder(load.levels[:1], min(load.level_s, EXPERIMENT_S))
    return Saturate(min(load.settings.saturation_s, EXPERIMENT_S))


def confirm_task(load: LoadPolicy, due: Confirmation, confirmed: Sequence[TrialRecord]) -> Task:
    """Return the task of a confirmation run. `confirmed` are the earlier ones of its candidate.

    A closed loop repeats the winning levels of both candidates for twice the time. From one that breaks a limit it goes
    down the ladder. In an open loop a claim follows a block. Several servers are filled first: it shows what their door
    costs.
    """
    found, beside = due.found, due.beside
    if isinstance(load, Ladder):
        levels = {_clients(trial) for trial in (found, beside) if trial is not None and trial.qps is not None}
        lower = tuple(n for level in load.levels if (n := level * found.replicas) not in levels)
        return RunLadder(tuple(sorted(levels)), 2 * load.level_s, lower)
    rates = [r.block for r in confirmed if r.block is not None]
    start = rates[-1] if rates else found.qps or (beside.qps if beside else None)
    assert start is not None
    answer_s = found.capacity.answer_s if found.capacity else 0.0
    block = MeasureBlock(start, load.settings, load.arrivals, answer_s)
    if not due.claims:
        return block
    claim = ClaimRate(start, load.settings, load.arrivals, block=block)
    if found.replicas == 1 or found.capacity is None:
        return claim
    saturation = None if rates else found.saturation  # an earlier run has shown the loss
    return replace(claim, saturate_s=load.settings.saturate_seconds(answer_s), saturation=saturation)


def _clients(found: TrialRecord) -> int:
    """Return the clients of the whole machine at a trial's winning level."""
    assert found.best_level is not None
    return int(found.best_level.load.level) * found.replicas
