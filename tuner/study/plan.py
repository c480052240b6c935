"""StudyPlan: everything that was decided before the first start (frozen, saved first)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from tuner.bench.capacity_search import SearchSettings
from tuner.candidate import Candidate, Value
from tuner.flagwords import flag_values
from tuner.launch import Door, LaunchBase
from tuner.layout import Layout, PlacedLayout, RuledOut
from tuner.load.arrivals import Arrivals
from tuner.load.workload import Workload
from tuner.measurement import LoadKind
from tuner.placement import GpuGroup
from tuner.slo import Slo
from tuner.space.parameter import Parameter
from tuner.space.space import Dropped, Space
from tuner.study.earlier import BeginsWith, Rechecked
from tuner.study.request_length import RequestLength
from tuner.vllm import knobs

MOST_CLIENTS = 320
"""Clients of the saturating closed loop: 1.25 times vLLM's usual 256. With 1024 sequences, 1,280 clients would add
minutes of waiting to every start and hardly any throughput."""

CLIENTS_A_SEQUENCE = 1.25
"""Clients per sequence, so that each is followed at once."""


REJECTED_TRACES = 3
"""Traces that a claim spends on rejected rates. An estimate reads high (docs/measuring.md)."""


@dataclass(frozen=True, slots=True)
class Ladder:
    """Closed loop of `levels` concurrent requests, `level_s` seconds each."""

    levels: tuple[int, ...]
    level_s: float
    warm_up_s: float

    @property
    def kind(self) -> LoadKind:
        return LoadKind.CLOSED

    @property
    def most_concurrent(self) -> int:
        return max(self.levels)

    @property
    def longest_s(self) -> float:
        """Most seconds of load in one trial of the search."""
        return self.warm_up_s + self.level_s * len(self.levels)

    @property
    def confirm_s(self) -> float:
        """Seconds of load in one confirmation run whose levels keep the limits: the best of winner and default."""
        return self.warm_up_s + 4 * self.level_s


@dataclass(frozen=True, slots=True)
class OpenSearch:
    """Open loop: a search over rates after a warm-up."""

    warm_up_s: float
    settings: SearchSettings = field(default_factory=SearchSettings)
    arrivals: Arrivals = field(default_factory=Arrivals)

    @property
    def kind(self) -> LoadKind:
        return LoadKind.OPEN

    @property
    def most_concurrent(self) -> int:
        return MOST_CLIENTS

    @property
    def longest_s(self) -> float:
        """Return the most seconds of load in a search trial. Most candidates end far sooner."""
        settings = self.settings
        return self.warm_up_s + settings.saturation_s + settings.most_probes * settings.probe_s

    @property
    def confirm_s(self) -> float:
        """Return the seconds of load in the shortest claim."""
        return self.warm_up_s + self.claim_s(math.inf)

    def claim_s(self, rate: float) -> float:
        """Return the seconds of a claim near `rate`. Rejected attempts before it end early."""
        return self.settings.claim_seconds_at(rate) * (self.settings.claim_traces + REJECTED_TRACES)


LoadPolicy = Ladder | OpenSearch
"""Load on the server of every trial."""


def saturating_clients(max_num_seqs: int | None) -> int:
    """Return the clients of the closed loop that saturates a server; None: vLLM's own default, some hundreds."""
    if max_num_seqs is None:
        return MOST_CLIENTS
    return min(math.ceil(CLIENTS_A_SEQUENCE * max_num_seqs), MOST_CLIENTS)


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """Everything that was decided before the first start.

    `starts` counts every start of a server that searches, `confirm_starts` those that confirm at the end.
    `start_limit_s` is the time that a server may take to be ready. `time_budget_s` None is no limit. The search ends
    early after `patience` of its own starts without a gain (stopping.py); None, as in older plans, is never. `length`
    is the longest request that servers accept, None in older plans.

    `layouts` are those that are searched; `ruled_out` are not started. `asked_layouts` are those that the user named,
    none if the choice was tuner's. `units` are the given GPUs, or workers of a CPU. `own_layout` is the default's:
    what a user would type without tuner. `doors` can stand in front of several servers, the preferred one first. The
    others are measured too where that one costs more than the accuracy, or always with `compares_doors`. The version of
    vLLM is empty in older plans. `rechecks` is the winner of an earlier study that is only compared with the default;
    None in a search. `begins_with` is what the search takes over from an earlier study, None if from none.
    """

    study: str
    model: str
    slos: tuple[Slo, ...]
    workload: Workload
    space: Space
    dropped: tuple[Dropped, ...]
    base: LaunchBase
    layouts: tuple[PlacedLayout, ...]
    load: LoadPolicy
    starts: int
    confirm_starts: int
    time_budget_s: float | None
    start_limit_s: float
    seed: int
    storage: str
    created_at: str
    patience: int | None = None
    length: RequestLength | None = None
    own_layout: Layout = field(default_factory=Layout)
    ruled_out: tuple[RuledOut, ...] = ()
    asked_layouts: tuple[Layout, ...] = ()
    units: tuple[int, ...] = ()
    doors: tuple[Door, ...] = ()
    compares_doors: bool = False
    vllm_version: str = ""
    rechecks: Rechecked | None = None
    begins_with: BeginsWith | None = None
    schema: int = 3

    @property
    def given(self) -> dict[str, Value]:
        """The values that the user's own words set."""
        return flag_values(self.base.extra, short=knobs.SHORT_OPTIONS)

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        return self.space.parameters

    @property
    def groups(self) -> tuple[GpuGroup, ...]:
        """Return every place where a server of some layout can run."""
        return tuple(dict.fromkeys(group for placed in self.layouts for group in placed.groups))

    @property
    def searches_layouts(self) -> bool:
        """Return True if candidates differ in their layout."""
        return len(self.layouts) > 1

    @property
    def baseline(self) -> Candidate:
        """Return the default configuration: the study's first trial."""
        return self.default_of(self.own_layout)

    def default_of(self, layout: Layout) -> Candidate:
        """Return vLLM's default configuration with a layout."""
        own = self.space.default
        return Candidate.of({**own.as_dict(), **layout.flags}) if self.searches_layouts else own

    def layout_of(self, candidate: Candidate) -> Layout:
        """Return a candidate's layout."""
        return Layout.of({**dict(self.base.fixed), **candidate.as_dict()})

    def placed(self, layout: Layout) -> PlacedLayout:
        """Return the places of a layout's servers. The default's may be fewer servers of a layout that is searched."""
        found = next(placed for placed in self.layouts if placed.layout.server == layout.server)
        return replace(found, layout=layout)
