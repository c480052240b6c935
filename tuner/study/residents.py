"""Requests that reside in a server's KV cache while they are served: how large each is, and how many fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.candidate import Value
from tuner.capacity import GIB, ModelMemory, model_memory
from tuner.flagwords import as_number
from tuner.kv.config_json import UnknownModelError
from tuner.layout import Layout
from tuner.study import kv_budget
from tuner.study.lifetimes import Lifetimes
from tuner.study.record import TrialOutcome, TrialRecord
from tuner.study.setting import StudySetting
from tuner.vllm import knobs
from tuner.vllm.refusals import CONTEXTS, TOO_LITTLE_KV

TOKENS, SEQUENCES = knobs.MAX_NUM_BATCHED_TOKENS, knobs.MAX_NUM_SEQS
KV_BYTES, UTILIZATION = kv_budget.KV_BYTES, kv_budget.UTILIZATION
HALF_BLOCK = 8.0
"""Tokens of an average request's half-empty last block, where the blocks are not known."""

_LOG_BYTES = 0.02 * GIB
"""Standard deviation of a log's KV cache around the forecast. Logs have two decimals, and free memory differs a little
between starts."""

_USUAL = (8192, 256)
"""Tokens and sequences around which the arithmetic is taken as linear."""

_SURELY_SHORT = 0.9
"""Share of the longest request for which a refused start is taken to have had room."""

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
        if (given := as_number(values.get(KV_BYTES))) is not None:
            return given, 0.0
        row = _outside_row(values)
        mean = self.gpu_bytes * float(values[UTILIZATION]) - float(row @ self.outside)
        return mean, float(np.sqrt(row @ self.covariance @ row + _LOG_BYTES**2))


def kv_forecast(setting: StudySetting, records: Iterable[TrialRecord], layout: Layout) -> KvForecast | None:
    """Forecast the KV cache of a layout's servers. None if neither config.json nor a log tells of it."""
    mine = kv_budget.of_servers(setting, records, layout)
    lives = Lifetimes.of(setting.plan.workload)
    try:
        memory = kv_budget.kv_table(setting, mine, layout).memory
    except UnknownModelError:
        memory = None
    if memory is not None and memory.paging is not None:
        token_bytes = memory.paging.bytes_per_token(memory.longest)
        request_bytes = memory.paging.mean_blocks(lives.resident) * memory.paging.block_bytes
    elif (logged := next(_logged_token_bytes(mine), None)) is not None:
        token_bytes, request_bytes = logged, logged * (lives.resident + HALF_BLOCK)
    else:
        return None
    gpu_bytes = float(kv_budget.smallest_gpu_bytes(setting.gpus) or 0)
    usual = setting.values(setting.plan.default_of(layout))
    if not gpu_bytes and KV_BYTES not in setting.searched | usual.keys():
        return None
    mean, sd = _prior(setting, usual, layout, memory)
    seen = [(values, kv_bytes) for record in mine if KV_BYTES not in (values := setting.values(record.candidate))
            if (kv_bytes := _kv_bytes_seen(record, values, token_bytes)) is not None]  # fmt: skip
    shares = np.array([float(values[UTILIZATION]) for values, _ in seen])
    outside = gpu_bytes * shares - np.array([kv_bytes for _, kv_bytes in seen])
    rows = np.array([_outside_row(values) for values, _ in seen]).reshape(-1, len(mean))
    mean, covariance = _updated(mean, sd, rows, outside)
    return KvForecast(gpu_bytes, request_bytes, token_bytes, lives, mean, covariance)


def _logged_token_bytes(records: Iterable[TrialRecord]) -> Iterator[float]:
    """Yield what a token takes, as far as starts say."""
    for record in records:
        facts = record.start.facts
        if facts is not None and facts.kv_memory_gib and facts.kv_tokens:
            yield facts.kv_memory_gib * GIB / facts.kv_tokens


def _kv_bytes_seen(record: TrialRecord, values: Mapping[str, Value], token_bytes: float) -> float | None:
    """Return the KV cache that a start's log tells of. A refusal for too little names the length that would fit; where
    it does not, the length that was wanted lies a little above."""
    if record.start.facts is not None and record.start.facts.kv_tokens:
        return record.start.facts.kv_tokens * token_bytes
    cause, length = record.start.cause, values.get(kv_budget.LENGTH)
    if record.outcome is not TrialOutcome.REFUSED or cause is None or CONTEXTS.get(cause.kind) is not TOO_LITTLE_KV:
        return None
    named = [bound.limit for bound in cause.bounds if bound.flag == kv_budget.LENGTH and bound.relation == "<="]
    wanted = [_SURELY_SHORT * length] if isinstance(length, int) and length > 0 else []
    return next((tokens * token_bytes for tokens in (*named, *wanted)), None)


def _updated(
    mean: NDArray[np.float64], sd: NDArray[np.float64], rows: NDArray[np.float64], seen: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and covariance of linear constants after what was seen."""
    scaled = rows * sd / _LOG_BYTES
    covariance = np.linalg.inv(scaled.T @ scaled + np.eye(len(sd)))
    shift = covariance @ scaled.T @ ((seen - rows @ mean) / _LOG_BYTES)
    return np.asarray(mean + sd * shift), np.asarray(covariance * np.outer(sd, sd))


def _prior(
    setting: StudySetting, usual: Mapping[str, Value], layout: Layout, memory: ModelMemory | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what is outside the KV cache by arithmetic, with the standard deviation of each part."""
    unknown = np.zeros(3), np.array(_UNKNOWN_BYTES)
    folder = kv_budget.model_folder(setting)
    if folder is None or memory is None:
        return unknown

    def outside(tokens: int, sequences: int) -> tuple[float, float] | None:
        values = {**usual, **layout.flags, TOKENS: tokens, SEQUENCES: sequences}
        found = model_memory(folder, kv_budget.server_flags(setting, values))
        if found.weights_bytes is None:
            return None
        return found.weights_bytes + found.overhead_bytes.low, found.weights_bytes + found.overhead_bytes.high

    try:
        here, more_tokens, more_sequences = (
            outside(*_USUAL),
            outside(2 * _USUAL[0], _USUAL[1]),
            outside(_USUAL[0], 2 * _USUAL[1]),
        )
    except UnknownModelError:
        return unknown
    if here is None or more_tokens is None or more_sequences is None:
        return unknown
    token = (more_tokens[0] - here[0]) / _USUAL[0]
    sequence = [(more - less) / _USUAL[1] for more, less in zip(more_sequences, here, strict=True)]
    middle = sum(sequence) / 2
    constant = sum(here) / 2 - token * _USUAL[0] - middle * _USUAL[1]
    return (
        np.array([constant, token, middle]),
        np.array([(here[1] - here[0]) / 2 + 0.02 * here[0], 0.5 * token, (sequence[1] - sequence[0]) / 2]),
    )


def _outside_row(values: Mapping[str, Value]) -> NDArray[np.float64]:
    tokens, sequences = as_number(values.get(TOKENS)) or 2048.0, as_number(values.get(SEQUENCES)) or 256.0
    return np.array([1.0, tokens, min(tokens, sequences)])
