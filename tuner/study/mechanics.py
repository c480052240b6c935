"""What the physics of a server says of a candidate before it is measured.

Symbols: S sequences, T tokens of a step, K requests that fit the KV cache, N requests offered, P and D tokens of a
mean prompt and answer. At once n = min(S, N, K) requests are served. One request takes D / n steps of decoding as its
share, P / T steps of prefill, and work for each of its tokens that no flag changes. Thus

    1 / QPS = a + b D / n + c P / T + d T,    a, b, c, d ≥ 0

where d is what longer steps cost a tight limit. The constants are fitted to what a study measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from tuner.candidate import Candidate, Value
from tuner.layout import Layout
from tuner.space.axis import ParameterAxis
from tuner.study.record import TrialRecord
from tuner.study.lifetimes import Lifetimes
from tuner.study.residents import KvForecast, kv_forecast
from tuner.study.setting import SERVER_SIZES, StudySetting
from tuner.vllm import knobs

SEQUENCES, TOKENS, CAP = knobs.MAX_NUM_SEQS, knobs.MAX_NUM_BATCHED_TOKENS, knobs.LONG_PREFILL_TOKEN_THRESHOLD
MEMORY = frozenset({knobs.GPU_MEMORY_UTILIZATION, knobs.KV_CACHE_MEMORY_BYTES})

_SOFTNESS = 4.0
"""Exponent of a minimum that goes over from one limit to the other, as the number of requests in a server varies."""

_FURTHEST = 3.0
"""Powers of two by which sequences may exceed what fits. Beyond that, no more of them are ever running."""


@dataclass(frozen=True, slots=True)
class View:
    """A candidate as the model sees it: its place on smooth axes, and the terms of 1 / QPS of one server."""

    place: tuple[float, ...]
    terms: tuple[float, ...]


class Mechanics:
    """Views of a study's candidates. `records` tell of KV caches that are known from logs."""

    def __init__(self, setting: StudySetting, axes: Iterable[ParameterAxis], records: Iterable[TrialRecord]) -> None:
        self._setting = setting
        self._axes = tuple(axes)
        self._records = tuple(records)
        self._lives = Lifetimes.of(setting.plan.workload)
        self._forecasts: dict[tuple[int, int], KvForecast | None] = {}
        self._logged = {
            r.candidate.id: facts.kv_tokens
            for r in self._records
            if (facts := r.start.facts) is not None and facts.kv_tokens
        }

    def forecast(self, layout: Layout) -> KvForecast | None:
        """Return the forecast of a layout's KV cache, None if nothing is known of it."""
        key = layout.tensor_parallel, layout.pipeline_parallel
        if key not in self._forecasts:
            self._forecasts[key] = kv_forecast(self._setting, self._records, layout)
        return self._forecasts[key]

    def view(self, candidate: Candidate, offered: float | None = None) -> View:
        """Look at a candidate under `offered` requests at once; None is the most that the study offers."""
        values, layout = self._setting.values(candidate), self._setting.plan.layout_of(candidate)
        sequences, budget = self._number(values, SEQUENCES, 256.0), self._number(values, TOKENS, 2048.0)
        kv_bytes = self._kv_bytes(candidate, values, layout)
        forecast = self.forecast(layout)
        fits = math.inf if kv_bytes is None or forecast is None else forecast.surely_fit(kv_bytes)
        load = self._setting.plan.load
        offered = load.most_concurrent if offered is None else offered
        at_once = _soft_minimum(sequences, offered, fits)
        place = [
            math.log2(budget),
            math.log2(sequences) if fits == math.inf else min(math.log2(sequences / fits), _FURTHEST),
        ]
        if kv_bytes is not None:
            place.append(math.log2(kv_bytes))
        if CAP in self._setting.searched:
            longest = max(1.0, float(self._setting.plan.workload.longest))
            cap = self._number(values, CAP, 0.0) or longest
            place.append(math.log2(min(cap, budget, longest)))
        for axis in self._axes:
            flag = axis.parameter.flag
            if flag in SERVER_SIZES or flag not in (SEQUENCES, TOKENS, CAP) and (flag not in MEMORY or kv_bytes is None):
                number = axis.number(values.get(flag))
                place.append(math.log2(1 + number) if flag in SERVER_SIZES else axis.share(number))
        lives, gpus = self._lives, layout.tensor_parallel
        own = (1.0, lives.output / at_once, lives.prompt / budget, budget)
        return View(tuple(place), own if not self._setting.plan.searches_layouts else own + tuple(t / gpus for t in own))

    def _kv_bytes(self, candidate: Candidate, values: Mapping[str, Value], layout: Layout) -> float | None:
        forecast = self.forecast(layout)
        if forecast is None:
            return None
        if (logged := self._logged.get(candidate.id)) is not None:
            return logged * forecast.token_bytes
        return max(forecast.kv_bytes(values)[0], forecast.request_bytes)

    def _number(self, values: Mapping[str, Value], flag: str, unknown: float) -> float:
        value = values.get(flag)
        return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else unknown


def fitted(terms: NDArray[np.float64], qps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit the constants of 1 / QPS, none of them negative, to the least relative errors."""
    scale = terms.mean(axis=0)
    constants, _ = nnls(terms / scale * qps[:, None], np.ones(len(qps)))
    return constants / scale


def _soft_minimum(*numbers: float) -> float:
    return sum(number**-_SOFTNESS for number in numbers) ** (-1 / _SOFTNESS)
