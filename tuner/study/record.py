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

SCHEMA = 3


class Role(StrEnum):
    """Purpose of a start.

    `EARLIER` measures what an earlier study found. `CHECK` runs the default on all GPU groups at once, to see how they
    disturb each other. `EXPERIMENT` starts what ran before, to see whose fault an unexplained failure was.
    """

    DEFAULT = "default"
    SEED = "seed"
    EARLIER = "earlier"
    SEARCH = "search"
    CHECK = "check"
    CONFIRM = "confirm"
    EXPERIMENT = "experiment"

    @property
    def searches(self) -> bool:
        """Return True if the trial looks for the best candidate."""
        return self in (Role.DEFAULT, Role.SEED, Role.EARLIER, Role.SEARCH)

    @property
    def measures(self) -> bool:
        """Return True if the trial's figures are the candidate's."""
        return self not in (Role.CHECK, Role.EXPERIMENT)


class TrialOutcome(StrEnum):
    """Outcome of a trial. `FEASIBLE`, `INFEASIBLE`, `UNDECIDED` and `INVALID` were measured.

    `BEHIND` was measured until it could not become the best any more, and has no figure of its own. `REFUSED` and
    `DIED` are the candidate's fault (at start, under load). `INFRASTRUCTURE` is not, and gives the search no
    feedback.
    """

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
        capacity: Answer of the capacity search, or of a confirmation run's block. None in a closed loop, and if the
            load did not come to its end.
        incumbent: The best candidate that it raced against. None without a race.
        claim: Answer of a confirmation run in an open loop. None for all others.
        replicas: Servers of the whole machine that the measured one stands for. 1 if all of them were measured.
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
    replicas: int = 1
    schema: int = SCHEMA

    @property
    def counts(self) -> bool:
        """Return True if it counts against the plan. Interrupted trials and faults of the machine are retried."""
        return self.outcome not in (TrialOutcome.INTERRUPTED, TrialOutcome.INFRASTRUCTURE)

    @property
    def best_level(self) -> Measurement | None:
        return None if self.best is None else self.levels[self.best].measurement

    @property
    def qps(self) -> float | None:
        """Return the whole machine's highest feasible QPS, None if no level was feasible. In an open loop it is the
        rate that a search estimates or that a claim held."""
        if self.best_level is None:
            return None
        if self.claim is not None:
            return self._of_the_machine(self.claim.rate)
        return self._of_the_machine(self.best_level.qps if self.capacity is None else self.capacity.rate)

    @property
    def block(self) -> float | None:
        """Return what pairs of confirmation runs compare: the whole machine's rate by its block, or its QPS in a closed
        loop. None for other trials, and if nothing was feasible. An older run has no block but its claim."""
        if self.role is not Role.CONFIRM:
            return None
        return self.qps if self.capacity is None else self._of_the_machine(self.capacity.rate)

    @property
    def is_only_block(self) -> bool:
        """Return True for a confirmation run that claimed nothing: it compares, and is not quoted."""
        return self.role is Role.CONFIRM and self.capacity is not None and self.claim is None

    @property
    def saturation(self) -> float | None:
        """Return the whole machine's QPS in the saturating closed loop, None without one."""
        found = self.claim or self.capacity
        return None if found is None else self._of_the_machine(found.saturation or None)

    def said_load(self, level: Measurement) -> str:
        """Name a level's load: `8 concurrent`, or `4 × 8 concurrent` where its server stands for four."""
        return str(level.load) if self.replicas == 1 else f"{self.replicas} × {level.load}"

    def _of_the_machine(self, qps: float | None) -> float | None:
        return None if qps is None else self.replicas * qps

    @property
    def preemptions_seen(self) -> int | None:
        seen = [n for level in asked(self.levels) if (n := level.measurement.server.preemptions) is not None]
        return sum(seen) if seen else None


def accepted_tokens(candidate: Candidate, records: Iterable[TrialRecord]) -> int | None:
    """Return the longest request that the candidate's servers reported, else were given. None if neither is known."""
    starts = [r for r in records if r.candidate == candidate]
    reported = [r.start.facts.max_model_len for r in starts if r.start.facts is not None]
    reported += [v for r in starts if isinstance(v := r.start.launch.value(knobs.MAX_MODEL_LEN), int) and v > 0]
    return next((tokens for tokens in reported if tokens is not None), None)
