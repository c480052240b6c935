"""TrialRecord with a schema number; JSON both ways. A finished record is never changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from tuner.bench.capacity_search import Capacity, Claim, Incumbent
from tuner.bench.level import Level, asked
from tuner.bench.measured import Note
from tuner.candidate import Candidate
from tuner.measurement import Measurement
from tuner.study.start_record import StartRecord
from tuner.vllm import knobs

SCHEMA = 2


class Role(StrEnum):
    """Purpose of a start. `CHECK` runs the default on all GPU groups at once, to see how they disturb each other."""

    DEFAULT = "default"
    SEED = "seed"
    SEARCH = "search"
    CHECK = "check"
    CONFIRM = "confirm"

    @property
    def searches(self) -> bool:
        """Whether the start looks for the best candidate; the others measure anew what was found."""
        return self in (Role.DEFAULT, Role.SEED, Role.SEARCH)


class TrialOutcome(StrEnum):
    """`FEASIBLE`, `INFEASIBLE`, `UNDECIDED` and `INVALID` were measured; `BEHIND` was measured until it could not
    become the best any more, and has no figure of its own; `REFUSED` and `DIED` are the candidate's fault (at start,
    under load); `INFRASTRUCTURE` is not its fault and teaches the search nothing."""

    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNDECIDED = "undecided"
    INVALID = "invalid"
    BEHIND = "behind"
    REFUSED = "refused"
    DIED = "died"
    INFRASTRUCTURE = "infrastructure"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial of one candidate: what was asked, what was measured, and its start.

    Attributes:
        trial: Number in the study, from 0; its folder is trials/NNNN.
        best: Index in `levels` of the level that counts. None if none is feasible.
        search_trial: Number of the Optuna trial that it answers. None if it answers none.
        capacity: Answer of the capacity search. None in a closed loop, and if the load did not come to its end.
        incumbent: The best candidate that it raced against. None without a race.
        claim: Answer of a confirmation run in an open loop. None for all others.
    """

    trial: int
    role: Role
    candidate: Candidate
    start: StartRecord
    outcome: TrialOutcome
    levels: tuple[Level, ...] = ()
    best: int | None = None
    notes: tuple[Note, ...] = ()
    attempt: int = 1
    search_trial: int | None = None
    capacity: Capacity | None = None
    incumbent: Incumbent | None = None
    claim: Claim | None = None
    schema: int = SCHEMA

    @property
    def counts(self) -> bool:
        """Whether it counts against the plan: what the machine or a person spoilt is done again."""
        return self.outcome not in (TrialOutcome.INTERRUPTED, TrialOutcome.INFRASTRUCTURE)

    @property
    def best_level(self) -> Measurement | None:
        return None if self.best is None else self.levels[self.best].measurement

    @property
    def qps(self) -> float | None:
        """The trial's answer: the highest feasible QPS. None when no level was feasible.

        In an open loop the rate that a search estimates and that a claim held, rather than the QPS of one level.
        """
        if self.best_level is None:
            return None
        if self.claim is not None:
            return self.claim.rate
        return self.best_level.qps if self.capacity is None else self.capacity.rate

    @property
    def saturation(self) -> float | None:
        """QPS of the closed loop that kept the server full; None where there was none."""
        return None if self.capacity is None else self.capacity.saturation

    @property
    def preemptions_seen(self) -> int | None:
        seen = [n for level in asked(self.levels) if (n := level.measurement.server.preemptions) is not None]
        return sum(seen) if seen else None


def accepted_tokens(candidate: Candidate, records: Iterable[TrialRecord]) -> int | None:
    """Return the longest request that the candidate's servers reported, else were given. None if neither is known."""
    starts = [r for r in records if r.candidate == candidate]
    told = [r.start.facts.max_model_len for r in starts if r.start.facts is not None]
    told += [v for r in starts if isinstance(v := r.start.launch.value(knobs.MAX_MODEL_LEN), int) and v > 0]
    return next((tokens for tokens in told if tokens is not None), None)
