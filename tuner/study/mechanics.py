"""What the physics of a server says of a candidate before it is measured.

Symbols: S sequences, T tokens of a step, C of a prompt's part in it, N requests offered, K requests that nearly always
fit the KV cache, P and D tokens of a mean prompt and answer, L of the longest prompt. At once n = min(S, N, K)
requests are served. A full server spends on each request, with constants that no flag changes,

    1 / QPS = a + b D / n + c P / T

for its tokens, its share of the steps of decoding, and the steps of its prefill. A server that must keep limits carries
less, as

    1 / QPS = a + b D / n + c P / T + d D / n^1.5 + e C + f T + g [S > K] + h L / C + i L / C (C / T)^2

for places left free for bursts, what long steps keep waiting, sequences that could preempt, the steps of the longest
prompt, and how much of these it leaves to others. All constants are fitted to what a study measured; none is negative.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from tuner.candidate import Candidate, Value
from tuner.flagwords import as_number
from tuner.layout import Layout
from tuner.space.axis import ParameterAxis
from tuner.study.lifetimes import Lifetimes
from tuner.study.record import TrialRecord
from tuner.study.residents import KvForecast, kv_forecast
from tuner.study.setting import SERVER_SIZES, StudySetting
from tuner.vllm import knobs

SEQUENCES, TOKENS, CAP = knobs.MAX_NUM_SEQS, knobs.MAX_NUM_BATCHED_TOKENS, knobs.LONG_PREFILL_TOKEN_THRESHOLD
MEMORY = frozenset({knobs.GPU_MEMORY_UTILIZATION, knobs.KV_CACHE_MEMORY_BYTES})

_SOFTNESS = 4.0
"""Exponent of a minimum that goes over from one limit to the other, as the number of requests in a server varies."""

_STEEPNESS = 6.0
"""Exponent of the transition from sequences that fit to those that preempt."""

_BURST = 4.0
"""Longest prompts in one step, beyond which a larger step changes nothing."""

_FURTHEST = 3.0
"""Powers of two by which sequences may exceed what fits. Beyond that, no more of them are ever running."""


COSTS = 3
"""Terms that a full server has: their constants hold whatever the traffic and its limits."""


@dataclass(frozen=True, slots=True)
class View:
    """A candidate as the model sees it: its place on smooth axes, and the terms of one server's 1 / QPS within limits
    and without any."""

    place: tuple[float, ...]
    terms: tuple[float, ...]
    full: tuple[float, ...]


class Mechanics:
    """Views of a study's candidates. `records` tell of KV caches that are known from logs."""

    def __init__(self, setting: StudySetting, axes: Iterable[ParameterAxis], records: Iterable[TrialRecord]) -> None:
        self._setting = setting
        self._axes = tuple(axes)
        self._records = tuple(records)
        self._lives = Lifetimes.of(setting.plan.workload)
        self._forecasts: dict[Layout, KvForecast | None] = {}
        self._logged = {
            r.candidate.id: facts.kv_tokens
            for r in self._records
            if (facts := r.start.facts) is not None and facts.kv_tokens
        }

    def forecast(self, layout: Layout) -> KvForecast | None:
        """Return the forecast of a layout's KV cache, None if nothing is known of it."""
        if layout.server not in self._forecasts:
            self._forecasts[layout.server] = kv_forecast(self._setting, self._records, layout)
        return self._forecasts[layout.server]

    def view(self, candidate: Candidate, offered: float | None = None) -> View:
        """Look at a candidate under `offered` requests at once; None is the most that the study offers."""
        values, layout = self._setting.values(candidate), self._setting.plan.layout_of(candidate)
        sequences, budget = _number(values, SEQUENCES, 256.0), _number(values, TOKENS, 2048.0)
        kv_bytes, forecast = self._kv_bytes(candidate, values, layout), self.forecast(layout)
        fits = math.inf if kv_bytes is None or forecast is None else forecast.surely_fit(kv_bytes)
        longest = max(1.0, *(float(share.prompt.high) for share in self._setting.plan.workload.shares))
        chunk = min(_number(values, CAP, 0.0) or longest, budget, longest)
        place = [
            math.log2(budget),
            math.log2(sequences) if fits == math.inf else min(math.log2(sequences / fits), _FURTHEST),
            *(() if kv_bytes is None else (math.log2(kv_bytes),)),
            *((math.log2(chunk),) if CAP in self._setting.searched else ()),
            *self._other_places(values, is_kv_known=kv_bytes is not None),
        ]
        offered = self._setting.plan.load.most_concurrent if offered is None else offered
        at_once = _soft_minimum(sequences, offered, fits)
        costs = (1.0, self._lives.output / at_once, self._lives.prompt / budget)
        limits = (
            self._lives.output / at_once**1.5,
            chunk,
            min(budget, _BURST * longest),
            1 / (1 + (fits / sequences) ** _STEEPNESS),
            longest / chunk,
            longest / chunk * (chunk / budget) ** 2,
        )
        assert len(costs) == COSTS
        unlimited = (*costs, *(0.0 for _ in limits))
        return View(tuple(place), self._by_size((*costs, *limits), layout), self._by_size(unlimited, layout))

    def _other_places(self, values: Mapping[str, Value], *, is_kv_known: bool) -> Iterator[float]:
        """Yield the places on axes that physics has no better coordinate for, sizes of a server in powers of two."""
        for axis in self._axes:
            flag = axis.parameter.flag
            place = axis.number(values.get(flag))
            if flag in SERVER_SIZES:
                yield math.log2(float(axis.parameter.decode(place)))
            elif flag not in (SEQUENCES, TOKENS, CAP) and not (is_kv_known and flag in MEMORY):
                yield axis.share(place)

    def _by_size(self, terms: tuple[float, ...], layout: Layout) -> tuple[float, ...]:
        """Return the terms, where sizes of servers are searched once more over their GPUs."""
        gpus = layout.tensor_parallel
        return (*terms, *(term / gpus for term in terms)) if self._setting.plan.searches_layouts else terms

    def _kv_bytes(self, candidate: Candidate, values: Mapping[str, Value], layout: Layout) -> float | None:
        forecast = self.forecast(layout)
        if forecast is None:
            return None
        if (logged := self._logged.get(candidate.id)) is not None:
            return logged * forecast.token_bytes
        return max(forecast.kv_bytes(values)[0], forecast.request_bytes)


def fitted(terms: NDArray[np.float64], qps: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fit the constants of 1 / QPS, none of them negative, to the least relative errors."""
    scale = np.maximum(terms.mean(axis=0), 1e-12)
    constants, _ = nnls(terms / scale * qps[:, None], np.ones(len(qps)))
    return np.asarray(constants / scale)


def _soft_minimum(*numbers: float) -> float:
    return float(sum(number**-_SOFTNESS for number in numbers) ** (-1 / _SOFTNESS))


def _number(values: Mapping[str, Value], flag: str, unknown: float) -> float:
    """Return a flag's positive number, 0 where it is 0. Else `unknown`: vLLM chooses it."""
    found = as_number(values.get(flag))
    return float(found) if found is not None and found >= 0 else unknown
