"""Optuna's samplers as the search uses them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import warnings
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from tuner.space.axis import ParameterAxis

STARTUP_TRIALS = 7
"""Trials before the model proposes, default and seeds included. With all seeds none is random. Ten found less in
twenty starts (docs/search.md)."""


class SamplerName(StrEnum):
    GP = "GP"
    TPE = "TPE"


def sampler_name() -> SamplerName:
    """Choose the GP sampler with torch, else TPE. The two are level after 10 starts."""
    return SamplerName.GP if importlib.util.find_spec("torch") else SamplerName.TPE


class NarrowedSampler(BaseSampler):
    """Sampler that proposes only a part of some axes, while its model learns from every trial.

    `ends` are the first and the last position of each narrowed axis, by its name. A model that was given the trials
    of the part alone would forget what the others said of all other axes.
    """

    def __init__(self, inner: BaseSampler) -> None:
        self._inner = inner
        self.ends: Mapping[str, tuple[int, int]] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        narrowed = {name: self._narrowed(name, axis) for name, axis in search_space.items()}
        return self._inner.sample_relative(study, trial, narrowed)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        axis = self._narrowed(param_name, param_distribution)
        return self._inner.sample_independent(study, trial, param_name, axis)

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._inner.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._inner.after_trial(study, trial, state, values)

    def _narrowed(self, name: str, axis: BaseDistribution) -> BaseDistribution:
        if name not in self.ends or not isinstance(axis, IntDistribution):
            return axis
        low, high = self.ends[name]
        return IntDistribution(low, high)


def sampler(seed: int) -> NarrowedSampler:
    """Return a new sampler that is not narrowed yet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if sampler_name() is SamplerName.TPE:
            return NarrowedSampler(TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS))
        _import_torch_on_one_thread()
        return NarrowedSampler(
            optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False)
        )


def _import_torch_on_one_thread() -> None:
    """Import torch for one thread, for small matrices. Servers must not inherit the setting."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        importlib.import_module("torch")
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def suggest(trial: Trial, axis: ParameterAxis) -> float:
    low, high = axis.ends
    if axis.is_discrete:
        return trial.suggest_int(axis.parameter.flag, int(low), int(high))
    # Integers as floats, rounded on decoding: Optuna's GP searches long integer axes point by point.
    return trial.suggest_float(axis.parameter.flag, low, high, log=axis.is_log)


def distribution(axis: ParameterAxis) -> BaseDistribution:
    """Return the distribution from which `suggest` draws."""
    low, high = axis.ends
    return IntDistribution(int(low), int(high)) if axis.is_discrete else FloatDistribution(low, high, log=axis.is_log)
