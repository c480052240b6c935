"""Confirmation runs: which is next, what they say together, and whether the winner beats the default. Pure.

The best of many noisy measurements reads high (winner's curse). Quoted figures therefore come only from starts that
had no part in choosing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from tuner.bench.capacity_search import Incumbent
from tuner.bench.level import lowest
from tuner.candidate import Candidate
from tuner.launch import Door
from tuner.layout import Layout
from tuner.measurement import Measurement
from tuner.study.disturbance import undisturbed_share
from tuner.study.doors import (
    compared_runs,
    confirming_runs,
    door_beside,
    has_held,
    is_refuted,
    next_door,
    quoted_door,
)
from tuner.study.gain import disturbed, gain, is_plausible, is_settled, odd_trials
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import Decision, Disturbance, Figures, Gain, Lack

MOST_RUNS = 3
"""Most confirmation runs for one that is planned: repeated, of further pairs, and of finalists that were refuted."""


LOADED = (TrialOutcome.FEASIBLE, TrialOutcome.INFEASIBLE, TrialOutcome.UNDECIDED, TrialOutcome.INVALID)
"""Outcomes of a default that started, and has to be compared."""


@dataclass(frozen=True, slots=True)
class Confirmation:
    """Next confirmation run.

    Attributes:
        found: Trial of the search that it confirms.
        beside: Trial of the candidate that it is compared with. None if there is none.
        claims: False for one more pair, which only compares.
    """

    found: TrialRecord
    door: Door
    beside: TrialRecord | None = None
    claims: bool = True


def finalists(plan: StudyPlan, records: Sequence[TrialRecord], broken: Collection[Layout] = ()) -> list[TrialRecord]:
    """List the feasible trials of the search, best first. Candidates that confirmation runs refuted are left out,
    and those of `broken` layouts, which cannot be confirmed. A recheck confirms its candidate whatever the search
    says of it."""
    confirmed = dict.fromkeys(r.candidate for r in records if r.role is Role.CONFIRM)
    refuted = {candidate.id for candidate in confirmed if is_refuted(plan, records, candidate)}
    feasible = [r for r in records if r.role.searches and r.qps is not None]
    rechecked = plan.rechecks.candidate if plan.rechecks else None
    ranked = sorted(feasible, key=lambda r: (r.candidate != rechecked, -worth(plan, records, r)))
    return [r for r in ranked if r.candidate.id not in refuted and plan.layout_of(r.candidate) not in broken]


def worth(plan: StudyPlan, records: Sequence[TrialRecord], record: TrialRecord) -> float:
    """Return what a trial of the search promises for the whole machine."""
    return (record.qps or 0.0) * undisturbed_share(plan, records, record)


def incumbent(plan: StudyPlan, records: Sequence[TrialRecord]) -> Incumbent | None:
    """Find the whole machine's best capacity of the search so far; None before anything was feasible."""
    known = [r for r in records if r.role.searches and r.capacity is not None and r.qps is not None]
    best = max(known, key=lambda r: worth(plan, records, r), default=None)
    if best is None or best.capacity is None or best.saturation is None:
        return None
    share = undisturbed_share(plan, records, best)
    return Incumbent(worth(plan, records, best), best.saturation * share, best.capacity.answer_s)


def fresh_runs(plan: StudyPlan, records: Sequence[TrialRecord], candidate: Candidate) -> list[TrialRecord]:
    """List the confirmation runs that a candidate's figures come from: those through its quoted door that decided, and
    whose pair is like the others."""
    ranked = finalists(plan, records)
    odd = odd_trials(plan, records, ranked[0].candidate) if ranked else ()
    door = quoted_door(plan, records, candidate)
    return [r for r in confirming_runs(records, candidate) if r.start.door is door and r.trial not in odd]


def next_to_confirm(
    plan: StudyPlan, records: Sequence[TrialRecord], broken: Collection[Layout] = ()
) -> Confirmation | None:
    """Choose what is confirmed next; None if nothing is left to confirm.

    Winner and default come in turn, W D D W, so that a drift of the machine falls on both. A run that decides nothing,
    or is far from the others, is repeated. Then come further pairs until the gain is known. A default that nothing
    beat is confirmed alone: its figure is quoted too. A second door of the winner follows the first at once.
    """
    ranked = finalists(plan, records, broken)
    if not ranked or sum(r.role is Role.CONFIRM and r.counts for r in records) >= MOST_RUNS * plan.confirm_starts:
        return None
    winner = ranked[0]
    door, quoted = (choose(plan, records, winner.candidate) for choose in (next_door, quoted_door))
    if door is not quoted:
        return Confirmation(winner, door)
    wanted = max(1, plan.confirm_starts // 2)
    winner_runs = len(fresh_runs(plan, records, winner.candidate))
    default = None if plan.layout_of(plan.baseline) in broken else _measured_default(records, plan)
    if winner.candidate == plan.baseline or default is None:
        return Confirmation(winner, door) if winner_runs < wanted else None
    of_default = Confirmation(default, door_beside(plan, records, plan.baseline, door), winner)
    of_winner = Confirmation(winner, door, default if default.qps is not None else None)
    default_runs = len(fresh_runs(plan, records, plan.baseline))
    default_wanted = wanted if _may_keep_limits(records, plan) else 1
    if winner_runs < wanted and (winner_runs <= default_runs // 2 or default_runs >= default_wanted):
        return of_winner
    if default_runs < default_wanted:
        return of_default
    if figures(plan, records, plan.baseline) is None:
        return of_winner if _breaks_alone(plan, records) is False else None
    if is_settled(plan, records, winner.candidate):
        return None
    ours, theirs = (len(_compared(plan, records, c)) for c in (winner.candidate, plan.baseline))
    last = max((r for r in records if r.role is Role.CONFIRM), key=lambda r: r.trial)
    again = last.candidate == winner.candidate if ours == theirs else ours < theirs
    return replace(of_winner if again else of_default, claims=False)


def _compared(plan: StudyPlan, records: Sequence[TrialRecord], candidate: Candidate) -> list[TrialRecord]:
    return compared_runs(records, candidate, quoted_door(plan, records, candidate))


def _measured_default(records: Sequence[TrialRecord], plan: StudyPlan) -> TrialRecord | None:
    """Find the search's trial of the default, if it was loaded: also one that decided nothing, which a fresh start may.
    None if it did not start."""
    found = [r for r in records if r.role.searches and r.candidate == plan.baseline and r.outcome in LOADED]
    return max(found, key=lambda r: r.qps or 0.0, default=None)


def _may_keep_limits(records: Sequence[TrialRecord], plan: StudyPlan) -> bool:
    """Return True if the default kept the limits once. If not, one fresh start has the last word."""
    return any(r.candidate == plan.baseline and r.qps is not None and r.role is not Role.CHECK for r in records)


def _breaks_alone(plan: StudyPlan, records: Sequence[TrialRecord]) -> bool | None:
    """Return True if another candidate kept the limits after a fresh start of the default broke them. None if none
    did, or if the default broke them in the search too. Without a later run the machine may have changed."""
    kept_before = any(r.candidate == plan.baseline and r.role.searches and r.qps is not None for r in records)
    fresh = [r for r in records if r.role is Role.CONFIRM]
    broke = [r.trial for r in fresh if r.candidate == plan.baseline and r.outcome is TrialOutcome.INFEASIBLE]
    if not broke or not kept_before:
        return None
    return any(r.trial > broke[0] and r.candidate != plan.baseline and r.qps is not None for r in fresh)


def figures(plan: StudyPlan, records: Sequence[TrialRecord], candidate: Candidate) -> Figures | None:
    """Return a candidate's figures from its confirmation runs, or without any from the trial that found it. None if
    one of them failed, or if nothing counts."""
    fresh = fresh_runs(plan, records, candidate)
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
    confirmed = confirming_runs(records, candidate)
    if has_held(confirmed):
        return None
    runs = confirmed or ([] if any(r.qps is not None for r in found) else found)
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
    plan: StudyPlan, records: Sequence[TrialRecord], broken: Collection[Layout] = ()
) -> tuple[Figures | None, Figures | None]:
    """Return the figures of the best finalist and of the default, both of one kind. None if no start counts. An
    estimate reads higher than fresh runs: until both have those, the two estimates are compared."""
    ranked = finalists(plan, records, broken)
    default = figures(plan, records, plan.baseline)
    winner = figures(plan, records, ranked[0].candidate) if ranked else None
    if winner and default and winner.fresh is not default.fresh:
        return searched(records, winner.candidate), searched(records, plan.baseline)
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


@dataclass(frozen=True, slots=True)
class Answer:
    """What a study has come to. `winner` is the best finalist, `gain` and `disturbed` are as in StudyResult."""

    decision: Decision
    winner: Figures | None
    default: Figures | None
    gain: Gain | None = None
    disturbed: Disturbance | None = None


def answer(
    plan: StudyPlan, records: Sequence[TrialRecord], broken: Collection[Layout] = (), *, complete: bool
) -> Answer:
    """Decide between winner and default. Until both have fresh runs it is a provisional answer by their estimates, and
    the last word only where no confirmation was wanted."""
    winner, default = compared(plan, records, broken)
    by_search = decide(winner, default)
    if complete and _breaks_alone(plan, records) is False:
        seen_before, span = searched(records, plan.baseline), disturbed(plan, records, plan.baseline)
        return Answer(Decision.NOT_CONFIRMED, winner, seen_before, disturbed=span)
    if winner is None or winner.candidate == plan.baseline:
        return Answer(by_search, winner, default)
    found = gain(plan, records, winner.candidate)
    needs_proof = complete and plan.confirm_starts > 0
    is_fresh = winner.fresh and (default is None or default.fresh)
    if not is_fresh or (default is not None and found is None):
        return Answer(Decision.NOT_CONFIRMED if needs_proof else by_search, winner, default)
    if default is None or found is None:
        return Answer(by_search, winner, default)
    if needs_proof and not is_plausible(plan, records, winner.candidate):
        span = disturbed(plan, records, winner.candidate)
        return Answer(Decision.NOT_CONFIRMED, winner, default, found, span)
    return Answer(Decision.WINNER if found.low > 0 else Decision.KEEP_DEFAULT, winner, default, found)


def decide(winner: Figures | None, default: Figures | None) -> Decision:
    """Decide between estimates. The winner's slowest start must beat the default's fastest."""
    if winner is None:
        return Decision.NOTHING_FEASIBLE if default is None else Decision.KEEP_DEFAULT
    if default is None:
        return Decision.WINNER
    if winner.candidate == default.candidate:
        return Decision.KEEP_DEFAULT
    return Decision.WINNER if winner.qps_low > default.qps_high else Decision.KEEP_DEFAULT
