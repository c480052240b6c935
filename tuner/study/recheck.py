"""Proposals of a recheck, from its plan and records alone: nothing is searched, so that Optuna has no part in it."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tuner.layout import Layout
from tuner.study.learnt import LearntRule
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialRecord
from tuner.study.result import LayoutStanding
from tuner.study.search import Proposal, SpaceExhaustedError


class WinnerAndDefault:
    """The default and the winner of an earlier study, in the place of a search."""

    layouts: tuple[LayoutStanding, ...] = ()
    learnt: tuple[LearntRule, ...] = ()

    def __init__(self, plan: StudyPlan) -> None:
        assert plan.rechecks is not None
        self._plan = plan
        self._proposals = (
            Proposal(0, Role.DEFAULT, plan.baseline),
            Proposal(1, Role.EARLIER, plan.rechecks.candidate),
        )
        self._waiting = list(self._proposals)

    def restore(self, records: Iterable[TrialRecord], undecided: Collection[int] = ()) -> None:
        """Resume from finished and interrupted trials. The answers of `undecided` proposals are to come."""
        answered = {r.search_trial for r in records if r.counts}
        self._waiting = [p for p in self._proposals if p.number not in answered and p.number not in undecided]

    def ask(self, broken: frozenset[Layout] = frozenset()) -> Proposal:
        """Return what is to start next. Raises SpaceExhaustedError if nothing is left, or its layout is `broken`."""
        for proposal in self._waiting:
            if self._plan.layout_of(proposal.candidate) not in broken:
                self._waiting.remove(proposal)
                return proposal
        raise SpaceExhaustedError

    def requeue(self, number: int) -> None:
        """Queue an unanswered proposal for another start."""
        self._waiting.append(self._proposals[number])

    def tell(self, record: TrialRecord) -> None:
        """Take in the finished trial of a proposal, from which nothing follows."""

    def observe(self, record: TrialRecord) -> None:
        """Take in another finished trial, from which nothing follows."""
