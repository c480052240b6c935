"""Probability that a candidate's servers start, learnt from those that did and those that were refused.

Two things refuse a start that no rule of vLLM's own messages foresees. The KV cache is too small for the longest
request: its forecast has a spread, and the probability falls over that. Or the memory does not suffice: a logistic
function of what wants memory, none of whose weights is negative, falls from the starts to the refusals. What neither
explains, as a server that dies under load, is kept away from by its distance alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from tuner.candidate import Candidate, Value
from tuner.layout import Layout
from tuner.space.axis import ParameterAxis
from tuner.study.mechanics import Mechanics, View
from tuner.study.record import TrialOutcome, TrialRecord
from tuner.study.setting import StudySetting
from tuner.study.surrogate import Array, Ends, chance_to_keep
from tuner.vllm import knobs
from tuner.vllm.refusals import CONTEXTS, TOO_LITTLE_KV, OtherFlags

_SURE, _SPREAD = 6.0, 60.0
"""Mean of the logit where least memory is wanted, and the standard deviation of the logit's parts, before any start."""

_LEAST = 1e-3
"""Least probability. Arithmetic alone rules nothing out."""

_OF_KV = frozenset(kind for kind, context in CONTEXTS.items() if context is TOO_LITTLE_KV)
_OF_MEMORY = frozenset(kind for kind, context in CONTEXTS.items() if context.others is OtherFlags.EQUAL) - _OF_KV


class MayStart:
    """Probabilities as far as `records` tell."""

    def __init__(
        self,
        setting: StudySetting,
        axes: Iterable[ParameterAxis],
        records: Sequence[TrialRecord],
        mechanics: Mechanics,
    ) -> None:
        self._setting = setting
        self._mechanics = mechanics
        wants = set().union(*(CONTEXTS[kind].axes for kind in _OF_MEMORY))
        self._axes = [axis for axis in axes if axis.parameter.flag in wants and not axis.parameter.choices]
        failed = [r for r in records if r.outcome in (TrialOutcome.REFUSED, TrialOutcome.DIED)]
        self._refused = [r for r in failed if r.outcome is TrialOutcome.REFUSED and _kind(r) in _OF_MEMORY]
        self._started = [r for r in records if r.start.facts is not None or r.levels]
        unexplained = [r for r in failed if r not in self._refused and not self._is_kv_forecast(r)]
        self._failures: list[tuple[View, float]] = []
        if unexplained:
            passed = [r for r in self._started if r.outcome is not TrialOutcome.DIED]
            self._failures = [(mechanics.view(r.candidate), 1.0) for r in unexplained]
            self._failures += [(mechanics.view(r.candidate), -1.0) for r in passed]
        self._logits: dict[Layout, NDArray[np.float64] | None] = {}

    def probabilities(self, candidates: Sequence[Candidate], seed: int) -> Array:
        """Return the probability that a server of each candidate starts."""
        explained = np.array([self._explained(candidate) for candidate in candidates])
        return np.maximum(_LEAST, explained * self._beside_failures(candidates, seed))

    def _explained(self, candidate: Candidate) -> float:
        values, layout = self._setting.values(candidate), self._setting.plan.layout_of(candidate)
        return self._has_kv(values, layout) * self._has_memory(values, layout)

    def _is_kv_forecast(self, record: TrialRecord) -> bool:
        layout = self._setting.plan.layout_of(record.candidate)
        return _kind(record) in _OF_KV and self._mechanics.forecast(layout) is not None

    def _beside_failures(self, candidates: Sequence[Candidate], seed: int) -> Array:
        """Return the probability by what passed and failed nearby. It is 1 if all failures are explained."""
        if not self._failures:
            return np.ones(len(candidates))
        views = [self._mechanics.view(candidate) for candidate in candidates]
        return chance_to_keep(views, self._failures, Ends.of([*views, *(view for view, _ in self._failures)]), seed)

    def _has_kv(self, values: Mapping[str, Value], layout: Layout) -> float:
        forecast, length = self._mechanics.forecast(layout), values.get(knobs.MAX_MODEL_LEN)
        if forecast is None or not isinstance(length, int) or length <= 0:
            return 1.0
        kv_bytes, sd = forecast.kv_bytes(values)
        needed = forecast.token_bytes * length
        return math.erfc((needed - kv_bytes) / sd / math.sqrt(2)) / 2 if sd else float(kv_bytes >= needed)

    def _has_memory(self, values: Mapping[str, Value], layout: Layout) -> float:
        if layout.server not in self._logits:
            self._logits[layout.server] = self._fitted(layout.server)
        weights = self._logits[layout.server]
        return 1.0 if weights is None else float(1 / (1 + np.exp(-self._row(values) @ weights)))

    def _fitted(self, server: Layout) -> NDArray[np.float64] | None:
        """Fit the logit to the starts of servers of a layout. None if memory refused none."""

        def rows(records: Iterable[TrialRecord]) -> list[NDArray[np.float64]]:
            mine = [r for r in records if self._setting.plan.layout_of(r.candidate).server == server]
            return [self._row(self._setting.values(r.candidate)) for r in mine]

        refused = rows(self._refused)
        if not refused:
            return None
        signs = np.array([-row for row in refused] + rows(self._started))
        prior = np.array([_SURE, *[_SURE / 2] * len(self._axes)])

        def loss(weights: NDArray[np.float64]) -> float:
            misfit = np.logaddexp(0.0, -signs @ weights).sum()
            return float(misfit + ((weights - prior) ** 2).sum() / (2 * _SPREAD**2))

        bounds = [(None, None), *[(0.0, None)] * len(self._axes)]
        return np.asarray(minimize(loss, prior, method="L-BFGS-B", bounds=bounds).x)

    def _row(self, values: Mapping[str, Value]) -> NDArray[np.float64]:
        wanted = [axis.share(axis.number(values.get(axis.parameter.flag))) for axis in self._axes]
        return np.array([1.0, *(-share for share in wanted)])


def _kind(record: TrialRecord) -> str:
    return "" if record.start.cause is None else record.start.cause.kind
