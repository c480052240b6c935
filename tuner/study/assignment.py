"""One start of a server that the study wants: which candidate, where, under which load."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.bench.capacity_search import Incumbent
from tuner.candidate import Candidate
from tuner.placement import GpuGroup
from tuner.study.plan import LoadPolicy
from tuner.study.record import Role


@dataclass(frozen=True, slots=True)
class Assignment:
    """One start of a server: which candidate, where, under which load.

    In an open loop a search races against `incumbent`, and a confirming start claims from `estimate` (requests/s)
    downwards. `fresh` numbers the traffic: 0 is the search's, others were seen by no start of the search.
    """

    trial: int
    role: Role
    candidate: Candidate
    group: GpuGroup
    load: LoadPolicy
    search_trial: int | None
    attempt: int
    incumbent: Incumbent | None = None
    estimate: float | None = None
    fresh: int = 0
