"""StudyPlan: everything that was decided before the first start (frozen, saved first)."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.candidate import Candidate, Value
from tuner.launch import LaunchBase
from tuner.load.workload import Workload
from tuner.placement import GpuGroup
from tuner.slo import Slo
from tuner.space.parameter import Parameter
from tuner.space.space import Dropped, Space


@dataclass(frozen=True, slots=True)
class LoadPolicy:
    """How each server is loaded: closed-loop concurrencies in order, `level_s` seconds each, after `warm_up_s`."""

    levels: tuple[int, ...]
    level_s: float
    warm_up_s: float

    @property
    def longest_s(self) -> float:
        return self.warm_up_s + self.level_s * len(self.levels)


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """`starts` counts every start of a server that searches, `confirm_starts` those that confirm at the end.

    `given` holds the values of the flags that the person's own words set, as far as the argument rules need them.
    `start_limit_s` is how long a server may take to be ready; `time_budget_s` None is no limit.
    """

    study: str
    model: str
    slos: tuple[Slo, ...]
    workload: Workload
    space: Space
    dropped: tuple[Dropped, ...]
    given: tuple[tuple[str, Value], ...]
    base: LaunchBase
    groups: tuple[GpuGroup, ...]
    load: LoadPolicy
    starts: int
    confirm_starts: int
    time_budget_s: float | None
    start_limit_s: float
    seed: int
    storage: str
    created_at: str
    schema: int = 1

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.space.parameters

    @property
    def baseline(self) -> Candidate:
        """The default configuration: the study's first trial."""
        return self.space.default
