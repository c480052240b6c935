"""The search's own proposals as a sampler of Optuna, whose study, storage and dashboard stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, Trial

from tuner.space.axis import ParameterAxis


class RecordsSampler(BaseSampler):
    """Sampler that asks `propose` for a point, given a trial's number. What it knows comes from a study's records.

    `propose` returns None if no point is left. A random one is drawn then, and `found_nothing` is True.
    """

    def __init__(self, axes: Mapping[str, BaseDistribution], propose: Callable[[int], dict[str, float] | None]) -> None:
        self._axes = dict(axes)
        self._propose = propose
        self._random = RandomSampler(seed=0)
        self.found_nothing = False

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._axes

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        self.found_nothing = False
        if "fixed_params" in trial.system_attrs:  # it was queued
            return {}
        numbers = self._propose(trial.number)
        self.found_nothing = numbers is None
        return numbers or {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)


def suggest(trial: Trial, axis: ParameterAxis) -> float:
    low, high = axis.ends
    if axis.is_discrete:
        return trial.suggest_int(axis.parameter.flag, int(low), int(high))
    # Integers as floats, rounded on decoding: the dashboard shows a continuous, logarithmic axis.
    return trial.suggest_float(axis.parameter.flag, low, high, log=axis.is_log)


def distribution(axis: ParameterAxis) -> BaseDistribution:
    """Return the distribution from which `suggest` draws."""
    low, high = axis.ends
    return IntDistribution(int(low), int(high)) if axis.is_discrete else FloatDistribution(low, high, log=axis.is_log)
