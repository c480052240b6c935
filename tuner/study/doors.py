"""Doors of confirmation runs: which is loaded next, which is quoted, and what each costs. Pure.

A candidate of several servers is confirmed through its preferred door. If that costs too much, the next door is
measured too, and the better one is kept. A failed run rules out its door. It refutes the candidate only if no door
is left.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tuner.candidate import Candidate
from tuner.launch import Door
from tuner.study.accuracy import accuracy
from tuner.study.disturbance import undisturbed_share
from tuner.study.plan import OpenSearch, StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import DoorFigures

REFUTED = (TrialOutcome.INFEASIBLE, TrialOutcome.REFUSED, TrialOutcome.DIED)
"""Outcomes of a confirmation run that count against it. Invalid and undecided runs say nothing and are retried."""


def doors_of(plan: StudyPlan, candidate: Candidate) -> tuple[Door, ...]:
    """List the doors of a candidate, the preferred one first."""
    return (plan.doors or (Door.NGINX,)) if plan.layout_of(candidate).replicas > 1 else (Door.SERVER,)


def confirming_runs(records: Iterable[TrialRecord], candidate: Candidate) -> list[TrialRecord]:
    """List a candidate's confirmation runs that decided about its figures, one way or the other."""
    mine = (r for r in records if _confirms(r, candidate))
    return [r for r in mine if r.outcome in REFUTED or (r.outcome is TrialOutcome.FEASIBLE and not r.is_only_block)]


def compared_runs(records: Iterable[TrialRecord], candidate: Candidate, door: Door) -> list[TrialRecord]:
    """List a candidate's runs through a door that decided, with those that are only blocks. The k-th of winner and
    default have the same traffic."""
    decided = (TrialOutcome.FEASIBLE, *REFUTED)
    return [r for r in records if _confirms(r, candidate) and r.start.door is door and r.outcome in decided]


def door_cost(plan: StudyPlan, records: Sequence[TrialRecord], candidate: Candidate) -> float | None:
    """Return the share of the throughput that the quoted door takes. None for one server, or if it is unknown."""
    if plan.layout_of(candidate).replicas == 1:
        return None
    return _cost(plan, records, candidate, quoted_door(plan, records, candidate))


def has_held(runs: Sequence[TrialRecord]) -> bool:
    """Return True if all runs through one of the doors kept the limits."""
    return bool({r.start.door for r in runs} - {r.start.door for r in runs if r.qps is None})


def quoted_door(plan: StudyPlan, records: Sequence[TrialRecord], candidate: Candidate) -> Door:
    """Choose the door whose runs are quoted. Of several it is the fastest. The preferred one wins a tie."""
    doors = doors_of(plan, candidate)
    left = _left(plan, records, candidate)
    if not left:
        return doors[-1]
    rates = {door: rate for door in left if (rate := _first_rate(records, candidate, door)) is not None}
    if not rates:
        # A door at which the machine was at fault is tried last.
        return min(left, key=lambda door: len(_faults(records, candidate, door)))
    preferred, best = next(iter(rates)), max(rates, key=lambda door: rates[door])
    within = rates[best] <= rates[preferred] * (1 + accuracy(rates[preferred], plan.load))
    return preferred if within else best


def next_door(plan: StudyPlan, records: Sequence[TrialRecord], candidate: Candidate) -> Door:
    """Choose the door of a candidate's next run. It is the quoted one, unless another is to be compared with it."""
    door = quoted_door(plan, records, candidate)
    if _first_rate(records, candidate, door) is None:
        return door
    untried = [d for d in _left(plan, records, candidate) if not _runs(records, candidate, d)]
    return untried[0] if untried and (plan.compares_doors or _is_dear(plan, records, candidate, door)) else door


def door_beside(plan: StudyPlan, records: Sequence[TrialRecord], candidate: Candidate, other: Door) -> Door:
    """Choose the door of a candidate that is compared with one behind the door `other`. It is the same if it can be."""
    is_new = not any(_first_rate(records, candidate, door) for door in doors_of(plan, candidate))
    is_open = other in _left(plan, records, candidate) and not _faults(records, candidate, other)
    return other if is_new and is_open else quoted_door(plan, records, candidate)


def is_refuted(plan: StudyPlan, records: Sequence[TrialRecord], candidate: Candidate) -> bool:
    """Return True if confirmation runs ruled out every door of a candidate."""
    return not _left(plan, records, candidate)


def is_extra(plan: StudyPlan, records: Sequence[TrialRecord], run: TrialRecord) -> bool:
    """Return True for a confirmation run through a door that is not quoted. It uses up none of the planned ones."""
    return run.start.door is not quoted_door(plan, records, run.candidate)


def doors(plan: StudyPlan, records: Sequence[TrialRecord], candidate: Candidate) -> tuple[DoorFigures, ...]:
    """Return what each door of a candidate of several servers showed, the preferred one first. Empty for one server."""
    if plan.layout_of(candidate).replicas == 1:
        return ()
    figures = (_figures(plan, records, candidate, door) for door in doors_of(plan, candidate))
    return tuple(found for found in figures if found.trials)


def _figures(plan: StudyPlan, records: Sequence[TrialRecord], candidate: Candidate, door: Door) -> DoorFigures:
    runs = _decided(records, candidate, door)
    rates = [r.qps for r in runs]
    held = [rate for rate in rates if rate is not None]
    is_open = isinstance(plan.load, OpenSearch)
    full = [qps for r in runs if (qps := r.saturation) is not None]
    return DoorFigures(
        door=door,
        trials=tuple(r.trial for r in runs),
        rate=None if None in rates or not held else min(held) if is_open else sum(held) / len(held),
        saturation=sum(full) / len(full) if full else None,
        cost=_cost(plan, records, candidate, door),
        is_quoted=door is quoted_door(plan, records, candidate),
    )


def _cost(plan: StudyPlan, records: Sequence[TrialRecord], candidate: Candidate, door: Door) -> float | None:
    """Return the share of the servers' throughput that a door takes. In a closed loop the winning level tells it."""
    alone = next((r for r in records if r.candidate == candidate and r.role.searches and r.qps is not None), None)
    is_open = isinstance(plan.load, OpenSearch)
    runs = _decided(records, candidate, door)
    seen = [qps for r in runs if (qps := r.saturation if is_open else r.qps) is not None]
    servers = None if alone is None else alone.saturation if is_open else alone.qps
    if alone is None or not servers or not seen:
        return None
    return 1 - sum(seen) / len(seen) / (servers * undisturbed_share(plan, records, alone))


def _is_dear(plan: StudyPlan, records: Sequence[TrialRecord], candidate: Candidate, door: Door) -> bool:
    cost, rate = _cost(plan, records, candidate, door), _first_rate(records, candidate, door)
    return cost is not None and rate is not None and cost > accuracy(rate, plan.load)


def _left(plan: StudyPlan, records: Sequence[TrialRecord], candidate: Candidate) -> list[Door]:
    """List the doors that no run ruled out."""
    failed = {r.start.door for r in records if _confirms(r, candidate) and r.outcome in REFUTED}
    return [door for door in doors_of(plan, candidate) if door not in failed]


def _first_rate(records: Iterable[TrialRecord], candidate: Candidate, door: Door) -> float | None:
    """Return the rate of the first run through a door. All doors had the same traffic in it."""
    return next((r.qps for r in _decided(records, candidate, door)), None)


def _decided(records: Iterable[TrialRecord], candidate: Candidate, door: Door) -> list[TrialRecord]:
    return [r for r in confirming_runs(records, candidate) if r.start.door is door]


def _faults(records: Iterable[TrialRecord], candidate: Candidate, door: Door) -> list[TrialRecord]:
    return [r for r in _runs(records, candidate, door) if r.outcome is TrialOutcome.INFRASTRUCTURE]


def _runs(records: Iterable[TrialRecord], candidate: Candidate, door: Door) -> list[TrialRecord]:
    """List a candidate's confirmation runs through a door, without those that were interrupted."""
    mine = (r for r in records if _confirms(r, candidate) and r.start.door is door)
    return [r for r in mine if r.outcome is not TrialOutcome.INTERRUPTED]


def _confirms(record: TrialRecord, candidate: Candidate) -> bool:
    return record.role is Role.CONFIRM and record.candidate == candidate
