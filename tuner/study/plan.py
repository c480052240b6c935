"""StudyPlan: everything that was decided before the first start (frozen, saved first)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tuner.bench.capacity_search import SearchSettings
from tuner.candidate import Candidate, Value
from tuner.launch import LaunchBase
from tuner.load.arrivals import Arrivals
from tuner.load.workload import Workload
from tuner.measurement import LoadKind
from tuner.placement import GpuGroup
from tuner.slo import Slo
from tuner.space.parameter import Parameter
from tuner.space.space import Dropped, Space

MOST_CLIENTS = 320
"""Of the closed loop that saturates a server in an open-loop study: 1.25 times 256, vLLM's default on most GPUs. With
1024 sequences, 1,280 clients would add minutes of waiting to every start and hardly any throughput."""

CLIENTS_A_SEQUENCE = 1.25
"""A few more clients than sequences, so that a finished one is followed at once."""


REJECTED_TRACES = 3
"""Whole traces' time that a claim spends on rates that do not hold: an estimate reads high (docs/measuring.md)."""


@dataclass(frozen=True, slots=True)
class OpenSearch:
    """The search over open-loop rates: its seconds and factors, and how requests arrive."""

    rules: SearchSettings = field(default_factory=SearchSettings)
    arrivals: Arrivals = field(default_factory=Arrivals)

    def claim_s(self, rate: float) -> float:
        """Seconds that a claim near `rate` takes: its traces, and rejected attempts before them, which end early."""
        return self.rules.claim_seconds_at(rate) * (self.rules.claim_traces + REJECTED_TRACES)


@dataclass(frozen=True, slots=True)
class LoadPolicy:
    """How each server is loaded after `warm_up_s`.

    A ladder: closed-loop concurrencies `levels` in order, `level_s` seconds each. With `open` it is that search
    instead, and there are no levels.
    """

    levels: tuple[int, ...]
    level_s: float
    warm_up_s: float
    open: OpenSearch | None = None

    @property
    def kind(self) -> LoadKind:
        return LoadKind.CLOSED if self.open is None else LoadKind.OPEN

    @property
    def most_concurrent(self) -> int:
        return MOST_CLIENTS if self.open is not None else max(self.levels)

    @property
    def longest_s(self) -> float:
        """Seconds of load on one server of the search: most candidates of an open-loop study end far sooner."""
        if self.open is None:
            return self.warm_up_s + self.level_s * len(self.levels)
        rules = self.open.rules
        return self.warm_up_s + rules.saturation_s + rules.most_probes * rules.probe_s

    @property
    def confirm_s(self) -> float:
        """Seconds of load on one confirming server, at a rate that fills the shortest claim; see claim_s."""
        return self.warm_up_s + (2 * self.level_s if self.open is None else self.open.claim_s(math.inf))

    def clients(self, max_num_seqs: int | None) -> int:
        """Of the closed loop that saturates a server. None: vLLM's own default, some hundreds."""
        if max_num_seqs is None:
            return MOST_CLIENTS
        return min(math.ceil(CLIENTS_A_SEQUENCE * max_num_seqs), MOST_CLIENTS)


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """`starts` counts every start of a server that searches, `confirm_starts` those that confirm at the end.

    `given` holds the values of the flags that the person's own words set, as far as the argument rules need them.
    `start_limit_s` is how long a server may take to be ready; `time_budget_s` None is no limit. The search ends early
    after `patience` of its own starts without a gain (plateau.py); None, and in plans that do not tell: never.
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
    patience: int | None = None
    schema: int = 1

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.space.parameters

    @property
    def baseline(self) -> Candidate:
        """The default configuration: the study's first trial."""
        return self.space.default
