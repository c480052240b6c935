"""StudyPlan: everything that was decided before the first start (frozen, saved first)."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.candidate import Candidate
from tuner.launch import LaunchBase
from tuner.load.workload import Workload
from tuner.placement import GpuGroup
from tuner.slo import Slo
from tuner.space.parameter import Parameter


@dataclass(frozen=True, slots=True)
class LoadPolicy:
    """How each server is loaded: closed-loop concurrencies in order, `level_s` seconds each, after `warm_up_s`."""

    levels: tuple[int, ...]
    level_s: float
    warm_up_s: float


@dataclass(frozen=True, slots=True)
class Dropped:
    """A flag of the space that this vLLM does not have, or that the person fixed, with the word to say so."""

    flag: str
    why: str


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """`starts` counts every start of a server, confirmation included; `time_budget_s` None is no limit."""

    study: str
    model: str
    slos: tuple[Slo, ...]
    workload: Workload
    space: str
    parameters: tuple[Parameter, ...]
    baseline: Candidate
    dropped: tuple[Dropped, ...]
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
