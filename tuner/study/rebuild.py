"""An Optuna study made anew from the records, which are the truth, after its storage was lost or is behind them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuner.study.feedback import CONSTRAINTS, Feedback
from tuner.study.optuna_storage import TrialAttributes
from tuner.study.record import TrialOutcome, TrialRecord


@dataclass(frozen=True, slots=True)
class Rebuilder:
    """Maker of Optuna trials from records.

    Args:
        distributions: Those of the search, by flag.
        numbers: Returns a record's point on the axes.
        feedback: Returns the answer that a record's proposal got.
    """

    distributions: Mapping[str, BaseDistribution]
    numbers: Callable[[TrialRecord], dict[str, float]]
    feedback: Callable[[TrialRecord], Feedback | None]

    def add_missing(self, study: optuna.Study, records: Mapping[int, TrialRecord], open_: Collection[int]) -> bool:
        """Add the trials that the records have and the study lacks, with their numbers. Trials without a record become
        failed ones. Those in `open_` are still to be answered. Returns False if nothing was missing."""
        known = len(study.get_trials(deepcopy=False))
        for number in range(known, max(records, default=-1) + 1):
            study.add_trial(self._made(records.get(number), is_open=number in open_))
        return known <= max(records, default=-1)

    def _made(self, record: TrialRecord | None, *, is_open: bool) -> FrozenTrial:
        if record is None:
            return create_trial(state=TrialState.FAIL)
        attributes = TrialAttributes(
            role=record.role, flags=dict(record.candidate.values), outcome=record.outcome, trial=record.trial
        )
        given: dict[str, Any] = {"params": self.numbers(record), "distributions": dict(self.distributions)}
        answer = None if is_open else self.feedback(record)
        if answer is None:
            state = TrialState.RUNNING if is_open else TrialState.FAIL
            return create_trial(state=state, user_attrs=attributes.written, **given)
        return create_trial(
            value=answer.value,
            user_attrs=replace(attributes, imputed=answer.imputed).written,
            constraints=dict(zip(CONSTRAINTS, answer.constraints, strict=True)),
            **given,
        )


def contradicts(study: optuna.Study, records: Mapping[int, TrialRecord]) -> bool:
    """Return True if the study has never asked for what the records answer: it was made after the storage was lost."""
    return any(t.number in records and t.state is TrialState.WAITING for t in study.get_trials(deepcopy=False))


def unanswered(records: Sequence[TrialRecord], open_: Collection[int]) -> list[TrialRecord]:
    """List the last trial of each candidate that must be started again: it was interrupted, or the machine failed."""
    last = {r.candidate.id: r for r in records if r.search_trial is not None}
    return [r for r in last.values() if not r.counts and r.search_trial not in open_]


def lost(study: optuna.Study, records: Sequence[TrialRecord]) -> list[FrozenTrial]:
    """List the answered trials whose record is gone or torn, unless their candidate was started or queued again."""
    kept, started = {r.trial for r in records}, {tuple(r.candidate.values) for r in records}
    trials = study.get_trials(deepcopy=False)
    queued = [t.system_attrs.get("fixed_params") for t in trials if not t.state.is_finished()]
    found = []
    for trial in trials:
        told = TrialAttributes.read(trial.user_attrs)
        is_gone = told.trial is not None and told.trial not in kept and told.outcome != TrialOutcome.INFRASTRUCTURE
        again = tuple((told.flags or {}).items()) in started or trial.params in queued
        if is_gone and not again and trial.state is TrialState.COMPLETE:
            found.append(trial)
    return found
