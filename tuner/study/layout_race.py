"""Race of the layouts: what each has shown, and which can still win. Pure functions of plan and records.

A layout is dropped if the machine's best is out of its reach: its own best, raised by the headroom that tuning may
still find, stays below. It comes back if the leader falls, because everything is derived from the records anew.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from tuner.layout import Layout
from tuner.study.confirm import finalists, worth
from tuner.study.disturbance import kept
from tuner.study.feedback import feedback_for
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import LayoutStanding, WhyDropped
from tuner.vllm.cause import Bound

FIRST_TRIALS = 2
"""Trials before a layout may be dropped: vLLM's default, and the seed that fills its KV cache."""

FIRST_HEADROOM = 1.0
"""Share by which a layout's optimum may exceed the better of its first two trials. It shrinks as 1/trials.

On the stand-in, over 35 layouts of twelve machines (docs/search.md), the optimum is at most 1.02 times the better of
the two in half of them, 1.12 in three quarters and 1.9 in nine tenths. With 0.35 the best layout would be dropped on
one machine after two trials, with 1.0 on none.
"""

INFEASIBLE_TRIALS = 3
"""Trials that broke the limits, with nothing feasible among them, after which a layout is dropped."""

MOST_REFUSED = 5
"""Refused starts after which a layout is dropped, whatever bounds the messages gave."""


def headroom(trials: int) -> float:
    """Return the factor by which a layout may still rise after so many measured trials."""
    return 1 + FIRST_HEADROOM * FIRST_TRIALS / max(1, trials)


def standing(plan: StudyPlan, records: Sequence[TrialRecord]) -> tuple[LayoutStanding, ...]:
    """Return the standing of each planned layout, in the plan's order. The default's comes first if it is none of
    them; it is never dropped."""
    planned = [placed.layout for placed in plan.layouts]
    own = [] if plan.own_layout in planned else [plan.own_layout]
    searched = [r for r in records if r.role.searches and r.counts]
    mine = {layout: [r for r in searched if plan.layout_of(r.candidate) == layout] for layout in (*own, *planned)}
    finalist_ids = {r.trial for r in finalists(plan, records)}
    figures = {
        layout: {r.trial: qps for r in trials if (qps := _qps(plan, records, r, finalist_ids)) is not None}
        for layout, trials in mine.items()
    }
    shown = {layout: _Shown.of(trials, layout, kept(plan, records, layout), figures[layout])
             for layout, trials in mine.items()}  # fmt: skip
    return tuple(found.standing if layout in own else _judged(plan, found, shown.values())
                 for layout, found in shown.items())  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Shown:
    """Standing without a decision, and the trials that it comes from."""

    standing: LayoutStanding
    trials: tuple[TrialRecord, ...]
    measured: int

    @classmethod
    def of(
        cls, trials: Sequence[TrialRecord], layout: Layout, share: float | None, figures: Mapping[int, float]
    ) -> _Shown:
        """Sum up a layout's trials. `figures` are the QPS of those that have one, by trial."""
        best = max(figures, key=lambda trial: figures[trial], default=None)
        found = LayoutStanding(
            layout,
            trials=tuple(r.trial for r in trials),
            default_qps=next((figures[r.trial] for r in trials if r.role is Role.DEFAULT and r.trial in figures), None),
            best_qps=None if best is None else figures[best],
            best_trial=best,
            kept=share,
        )
        return cls(found, tuple(trials), len(figures))

    @property
    def started(self) -> bool:
        return any(r.start.got_ready for r in self.trials)


def _qps(plan: StudyPlan, records: Sequence[TrialRecord], record: TrialRecord, finalist_ids: set[int]) -> float | None:
    """Return a trial's figure of the whole machine. None if it has none, or a confirmation run refuted it."""
    if record.outcome is TrialOutcome.BEHIND:
        estimate = feedback_for(record, None)
        return None if estimate is None else estimate.value
    if record.qps is None or record.trial not in finalist_ids:
        return None
    return worth(plan, records, record)


def _judged(plan: StudyPlan, mine: _Shown, everyone: Iterable[_Shown]) -> LayoutStanding:
    """Return a layout's standing with the decision on it."""
    others = [other for other in everyone if other.standing.layout != mine.standing.layout]
    feasible = [other for other in others if other.standing.best_qps is not None]
    leader = max(feasible, key=lambda other: other.standing.best_qps or 0.0, default=None)
    own = mine.standing
    if len(mine.trials) >= FIRST_TRIALS and not mine.started:
        starting = leader or next((other for other in others if other.started), None)
        return own if starting is None or _may_start(plan, mine.trials) else _lost(
            own, WhyDropped.DOES_NOT_START, own.trials, starting
        )  # fmt: skip
    if leader is None or len(mine.trials) < FIRST_TRIALS:
        return own
    best = leader.standing
    assert best.best_qps is not None and best.best_trial is not None
    if own.best_qps is None or own.best_trial is None:
        broke = tuple(r.trial for r in mine.trials if r.outcome is TrialOutcome.INFEASIBLE)
        return own if len(broke) < INFEASIBLE_TRIALS else _lost(own, WhyDropped.BREAKS_LIMITS, broke, leader)
    if own.best_qps * headroom(mine.measured) >= best.best_qps:
        return own
    return _lost(own, WhyDropped.BEHIND, (own.best_trial, best.best_trial), leader)


def _lost(own: LayoutStanding, why: WhyDropped, trials: Iterable[int], leader: _Shown) -> LayoutStanding:
    won = leader.standing
    return replace(own, why=why, dropped_by=tuple(sorted(trials)), leader=won.layout, leader_qps=won.best_qps)


def _may_start(plan: StudyPlan, refused: Sequence[TrialRecord]) -> bool:
    """Return True if the latest refusal names a bound within which a part of the space is left."""
    cause = refused[-1].start.cause
    if cause is None or len(refused) >= MOST_REFUSED:
        return False
    return any(_leaves_something(plan, bound) for bound in cause.bounds)


def _leaves_something(plan: StudyPlan, bound: Bound) -> bool:
    parameter = next((p for p in plan.parameters if p.flag == bound.flag), None)
    if parameter is None:
        return False
    numbers = [c for c in parameter.choices if isinstance(c, (int, float))] or [parameter.low, parameter.high]
    return min(numbers) <= bound.limit if bound.relation == "<=" else max(numbers) >= bound.limit
