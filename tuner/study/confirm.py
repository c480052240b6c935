"""Confirmation runs: which is next, what they say together, and whether the winner beats the default. Pure.

The best of many noisy measurements reads high (winner's curse). Quoted figures therefore come only from starts that
had no part in choosing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tuner.bench.capacity_search import Incumbent
from tuner.bench.level import lowest
from tuner.candidate import Candidate
from tuner.measurement import LoadKind, Measurement
from tuner.study.plan import OpenSearch, StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import Decision, Figures, Lack

CLAIM_SPREAD = 1.5
"""Standard deviation of a claimed rate, as a share of it, times √n for a trace of n requests (docs/measuring.md)."""

BEST_ACCURACY = 0.03
"""Smallest error of a claim, as a share of its rate: the spread at the usual 2,500 requests and more."""

_REFUTED = (TrialOutcome.INFEASIBLE, TrialOutcome.REFUSED, TrialOutcome.DIED)
"""Outcomes of a confirmation run that refute a candidate. Invalid and undecided runs say nothing and are retried."""


def accuracy(rate: float, search: OpenSearch) -> float:
    """Return how far a claim of `rate` requests/s may be off, as a share of it. Short traces say less."""
    return max(BEST_ACCURACY, CLAIM_SPREAD / math.sqrt(rate * search.settings.claim_seconds_at(rate)))


def finalists(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """List the feasible trials of the search, best first, without candidates that a confirmation run refuted."""
    refuted = {r.candidate.id for r in records if r.role is Role.CONFIRM and r.outcome in _REFUTED}
    feasible = [r for r in records if r.role.searches and r.qps is not None]
    return sorted((r for r in feasible if r.candidate.id not in refuted), key=lambda r: -(r.qps or 0.0))


def incumbent(records: Sequence[TrialRecord]) -> Incumbent | None:
    """Find the whole machine's best capacity of the search so far; None before anything was feasible."""
    found = [r for r in records if r.role.searches]
    known = [Incumbent(r.qps, r.saturation, r.capacity.answer_s) for r in found
             if r.capacity is not None and r.qps is not None and r.saturation is not None]  # fmt: skip
    return max(known, key=lambda best: best.rate, default=None)


def fresh_runs(records: Sequence[TrialRecord], candidate: Candidate) -> list[TrialRecord]:
    """List a candidate's confirmation runs that decided, one way or the other."""
    decided = (TrialOutcome.FEASIBLE, *_REFUTED)
    return [r for r in records if r.role is Role.CONFIRM and r.candidate == candidate and r.outcome in decided]


def next_to_confirm(plan: StudyPlan, records: Sequence[TrialRecord]) -> TrialRecord | None:
    """Choose the trial of the search that is confirmed next; None if nothing is left to confirm.

    Winner and default come in turn, W D D W, so that a drift of the machine falls on both. A default that kept no
    limit is not confirmed. A default that nothing beat is, alone: its figure is quoted too.
    """
    confirmed = sum(r.role is Role.CONFIRM and r.counts for r in records)
    ranked = finalists(records)
    if confirmed >= plan.confirm_starts or not ranked:
        return None
    wanted = max(1, plan.confirm_starts // 2)
    winner = ranked[0]
    winner_runs = len(fresh_runs(records, winner.candidate))
    if winner.candidate == plan.baseline:
        return winner if winner_runs < wanted else None
    searched = (r for r in records if r.role.searches and r.candidate == plan.baseline)
    default = next((r for r in searched if r.qps is not None), None)
    default_runs = len(fresh_runs(records, plan.baseline))
    default_wanted = 0 if default is None else wanted
    if winner_runs < wanted and (winner_runs <= default_runs // 2 or default_runs >= default_wanted):
        return winner
    return default if default_runs < default_wanted else None


def figures(records: Sequence[TrialRecord], candidate: Candidate) -> Figures | None:
    """Return a candidate's figures from its confirmation runs, or without any from the trial that found it. None if
    one of them failed, or if nothing counts."""
    fresh = fresh_runs(records, candidate)
    if fresh and any(r.qps is None for r in fresh):
        return None
    return _counted(fresh, candidate, fresh=True) if fresh else searched(records, candidate)


def searched(records: Sequence[TrialRecord], candidate: Candidate) -> Figures | None:
    """Return a candidate's figures from the trial that found it, without its confirmation runs."""
    found = [r for r in records if r.candidate == candidate and r.role.searches]
    return _counted(found, candidate, fresh=False)


def lack(records: Sequence[TrialRecord], candidate: Candidate) -> Lack | None:
    """Return why `figures` has none of a candidate. None if it has, or if no start of it is over yet."""
    found = [r for r in records if r.candidate == candidate and r.role.searches]
    runs = fresh_runs(records, candidate) or ([] if any(r.qps is not None for r in found) else found)
    match next((r.outcome for r in reversed(runs) if r.qps is None), None):
        case None:
            return None
        case TrialOutcome.INFEASIBLE:
            return Lack.BREAKS_LIMITS
        case TrialOutcome.REFUSED:
            return Lack.DOES_NOT_START
        case TrialOutcome.DIED:
            return Lack.DIES_UNDER_LOAD
        case _:
            return Lack.NOT_MEASURED


def compared(
    records: Sequence[TrialRecord], baseline: Candidate, load: LoadKind
) -> tuple[Figures | None, Figures | None]:
    """Return the figures of the best finalist and of the default, both of one kind. None if no start counts. An
    estimate reads higher than a claim: until both are claimed, the two estimates are compared."""
    ranked = finalists(records)
    default = figures(records, baseline)
    winner = figures(records, ranked[0].candidate) if ranked else None
    if load is LoadKind.OPEN and winner and default and winner.fresh is not default.fresh:
        return searched(records, winner.candidate), searched(records, baseline)
    return winner, default


def _counted(runs: Sequence[TrialRecord], candidate: Candidate, *, fresh: bool) -> Figures | None:
    levels = [(r, m) for r in runs if (m := r.best_level) is not None and r.qps is not None]
    return _figures(levels, candidate, fresh=fresh) if levels else None


def seen(records: Sequence[TrialRecord], candidate: Candidate) -> Figures | None:
    """Return what a candidate showed at its lowest level, whatever the limits said."""
    levels = [
        (r, level.measurement)
        for r in records
        if r.candidate == candidate and (level := lowest(r.levels)) is not None and level.measurement.qps is not None
    ]
    return _figures(levels[:1], candidate, fresh=False) if levels else None


def _figures(runs: Sequence[tuple[TrialRecord, Measurement]], candidate: Candidate, *, fresh: bool) -> Figures:
    qps = [q for r, m in runs if (q := _machine_qps(r, m)) is not None]
    promised = any(r.claim is not None for r, _ in runs)
    tails = [m.ttft_ms.p99 for _, m in runs if m.ttft_ms is not None]
    preemptions = [m.server.preemptions for _, m in runs]
    return Figures(
        candidate=candidate,
        trials=tuple(r.trial for r, _ in runs),
        level=runs[0][0].said_load(runs[0][1]),
        # What a claim held is a promise: of several, the one that every start kept.
        qps=min(qps) if promised else sum(qps) / len(qps),
        qps_low=min(qps),
        qps_high=max(qps),
        # The worst start, not a mean of percentiles: a mean of P99s is not a P99 of anything.
        p99_ttft_ms=max(tails) if tails else None,
        preemptions=None if None in preemptions else sum(n for n in preemptions if n is not None),
        fresh=fresh,
    )


def _machine_qps(record: TrialRecord, level: Measurement) -> float | None:
    """Return a trial's QPS, else what a level of it showed."""
    if record.qps is not None or level.qps is None:
        return record.qps
    return record.replicas * level.qps


def decide(winner: Figures | None, default: Figures | None) -> Decision:
    """Decide between winner and default. The winner's slowest start must beat the default's fastest."""
    if winner is None:
        return Decision.NOTHING_FEASIBLE if default is None else Decision.KEEP_DEFAULT
    if default is None:
        return Decision.WINNER
    if winner.candidate == default.candidate:
        return Decision.KEEP_DEFAULT
    return Decision.WINNER if winner.qps_low > default.qps_high else Decision.KEEP_DEFAULT
