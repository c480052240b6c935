"""Requests that reside in a server's KV cache while they are served: how large each is, and how many fit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.candidate import Value
from tuner.capacity import GIB, ModelMemory, model_memory
from tuner.kv.config_json import UnknownModelError
from tuner.layout import Layout
from tuner.study import kv_budget
from tuner.study.lifetimes import Lifetimes
from tuner.study.record import TrialRecord
from tuner.study.setting import StudySetting
from tuner.vllm import knobs

TOKENS, SEQUENCES = knobs.MAX_NUM_BATCHED_TOKENS, knobs.MAX_NUM_SEQS
HALF_BLOCK = 8.0
"""Tokens of an average request's half-empty last block, where the blocks are not known."""

_LOG_BYTES = 0.02 * GIB
"""Standard deviation of a log's KV cache around the forecast. Logs have two decimals, and free memory differs a little
between starts."""

_UNKNOWN_BYTES = (64.0 * GIB, 256.0 * 1024, 1024.0 * 1024)
"""Standard deviations of what is outside the KV cache, of a token's and of a sequence's part, without arithmetic."""


@dataclass(frozen=True, slots=True)
class KvForecast:
    """KV cache of one server before it starts, in bytes of one GPU.

    What a start leaves is its share of the GPU less a constant, a part a token of the step and a part a sequence.
    These three start at what the model's config.json says, and follow what the logs of starts say.

    Attributes:
        gpu_bytes: Memory of the smallest GPU.
        request_bytes: Those of an average resident request.
        token_bytes: Those of a token of the longest request, as vLLM's log counts.
        outside: The three constants, with their covariance.
    """

    gpu_bytes: float
    request_bytes: float
    token_bytes: float
    lives: Lifetimes
    outside: NDArray[np.float64]
    covariance: NDArray[np.float64]

    def surely_fit(self, kv_bytes: float) -> float:
        """Return how many requests nearly always fit."""
        return self.lives.surely_fit(kv_bytes / self.request_bytes * self.lives.resident)

    def kv_bytes(self, values: Mapping[str, Value]) -> tuple[float, float]:
        """Return the forecast and its standard deviation."""
        if (given := _number(values, knobs.KV_CACHE_MEMORY_BYTES)) is not None:
            return given, 0.0
        row = _outside_row(values)
        mean = self.gpu_bytes * float(values[knobs.GPU_MEMORY_UTILIZATION]) - float(row @ self.outside)
        return mean, float(np.sqrt(row @ self.covariance @ row + _LOG_BYTES**2))


def kv_forecast(setting: StudySetting, records: Iterable[TrialRecord], layout: Layout) -> KvForecast | None:
    """Forecast the KV cache of a layout's servers. None if neither config.json nor a log tells of it."""
    mine = [r for r in kv_budget.of_servers(setting, records, layout) if r.start.facts is not None]
    usual = setting.values(setting.plan.default_of(layout))
    lives = Lifetimes.of(setting.plan.workload)
    resident = lives.resident
    gpu_bytes = float(kv_budget.smallest_gpu_bytes(setting.gpus) or 0)
    try:
        memory = kv_budget.kv_table(setting, mine, layout).memory
    except UnknownModelError:
        memory = None
    if memory is not None and memory.paging is not None:
        token_bytes = memory.paging.bytes_per_token(memory.longest)
        request_bytes = memory.paging.mean_blocks(resident) * memory.paging.block_bytes
    elif logged := [facts.kv_memory_gib * GIB / facts.kv_tokens for r in mine
                    if (facts := r.start.facts) is not None and facts.kv_memory_gib and facts.kv_tokens]:  # fmt: skip
        token_bytes, request_bytes = logged[0], logged[0] * (resident + HALF_BLOCK)
    else:
        return None
    if not gpu_bytes and knobs.KV_CACHE_MEMORY_BYTES not in usual and knobs.KV_CACHE_MEMORY_BYTES not in setting.searched:
        return None
    constants, sd = _prior(setting, usual, layout, memory)
    rows, seen = [], []
    for record in mine:
        values = setting.values(record.candidate)
        if record.start.facts is None or not record.start.facts.kv_tokens or knobs.KV_CACHE_MEMORY_BYTES in values:
            continue
        rows.append(_outside_row(values))
        seen.append(gpu_bytes * float(values[knobs.GPU_MEMORY_UTILIZATION]) - record.start.facts.kv_tokens * token_bytes)
    if rows:
        constants, covariance = _updated(constants, sd, np.array(rows), np.array(seen))
    else:
        covariance = np.diag(sd**2)
    return KvForecast(gpu_bytes, request_bytes, token_bytes, lives, constants, covariance)


def _updated(
    mean: NDArray[np.float64], sd: NDArray[np.float64], rows: NDArray[np.float64], seen: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and covariance of linear constants after what was seen."""
    scaled = rows * sd / _LOG_BYTES
    covariance = np.linalg.inv(scaled.T @ scaled + np.eye(len(sd)))
    shift = covariance @ scaled.T @ ((seen - rows @ mean) / _LOG_BYTES)
    return mean + sd * shift, covariance * np.outer(sd, sd)


def _prior(
    setting: StudySetting, usual: Mapping[str, Value], layout: Layout, memory: ModelMemory | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what is outside the KV cache by arithmetic, with the standard deviation of each part."""
    unknown = np.zeros(3), np.array(_UNKNOWN_BYTES)
    folder = kv_budget.model_folder(setting)
    if folder is None or memory is None:
        return unknown
    at = {TOKENS: 8192, SEQUENCES: 256}

    def outside(**changed: int) -> tuple[float, float] | None:
        values = {**usual, **layout.flags, **at, **{flag.replace("_", "-"): value for flag, value in changed.items()}}
        found = model_memory(folder, kv_budget.server_flags(setting, values))
        if found.weights_bytes is None:
            return None
        return found.weights_bytes + found.overhead_bytes.low, found.weights_bytes + found.overhead_bytes.high

    try:
        here = outside()
        more_tokens, more_sequences = outside(max_num_batched_tokens=16384), outside(max_num_seqs=512)
    except UnknownModelError:
        return unknown
    if here is None or more_tokens is None or more_sequences is None:
        return unknown
    token = (more_tokens[0] - here[0]) / 8192
    sequence = [(more - less) / 256 for more, less in zip(more_sequences, here, strict=True)]
    middle = sum(sequence) / 2
    constant = sum(here) / 2 - token * at[TOKENS] - middle * at[SEQUENCES]
    return (
        np.array([constant, token, middle]),
        np.array([(here[1] - here[0]) / 2 + 0.02 * here[0], 0.5 * token, (sequence[1] - sequence[0]) / 2]),
    )


def _outside_row(values: Mapping[str, Value]) -> NDArray[np.float64]:
    tokens, sequences = _number(values, TOKENS) or 2048.0, _number(values, SEQUENCES) or 256.0
    return np.array([1.0, tokens, min(tokens, sequences)])


def _number(values: Mapping[str, Value], flag: str) -> float | None:
    value = values.get(flag)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
