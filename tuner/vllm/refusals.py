"""Causes by which vLLM refuses like candidates: what "like" means for each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from tuner.vllm import knobs


class OtherFlags(Enum):
    """Flags that a context does not name: equal to those of the refused start, or of no influence."""

    EQUAL = "equal"
    IRRELEVANT = "irrelevant"


@dataclass(frozen=True, slots=True)
class RefusalContext:
    """Scope of a refusal. `axes` are flags, each with the direction away from the refused start.

    With `OtherFlags.IRRELEVANT` only the bounds in the refusal's message give a rule. `idle` are flags without
    influence, `beside_kv_bytes` the axes that have none if kv-cache-memory-bytes is given.
    """

    axes: Mapping[str, str] = field(default_factory=dict)
    others: OtherFlags = OtherFlags.IRRELEVANT
    idle: frozenset[str] = frozenset()
    beside_kv_bytes: frozenset[str] = frozenset()


_MEMORY_USERS = dict.fromkeys(
    (knobs.MAX_NUM_SEQS, knobs.MAX_NUM_BATCHED_TOKENS, knobs.MAX_MODEL_LEN, knobs.MAX_CUDAGRAPH_CAPTURE_SIZE), ">="
)
_OUT_OF_MEMORY = RefusalContext(
    {knobs.GPU_MEMORY_UTILIZATION: ">=", knobs.KV_CACHE_MEMORY_BYTES: ">=", **_MEMORY_USERS},
    OtherFlags.EQUAL,
    beside_kv_bytes=frozenset({knobs.GPU_MEMORY_UTILIZATION}),
)
# Before the KV cache is allocated its share of the memory has no part in a shortage: less of it would not help.
_OUT_OF_MEMORY_BEFORE_KV = RefusalContext(
    _MEMORY_USERS,
    OtherFlags.EQUAL,
    idle=frozenset({knobs.GPU_MEMORY_UTILIZATION, knobs.KV_CACHE_MEMORY_BYTES}),
)
TOO_LITTLE_KV = RefusalContext(
    {knobs.GPU_MEMORY_UTILIZATION: "<=", knobs.KV_CACHE_MEMORY_BYTES: "<=", **_MEMORY_USERS},
    OtherFlags.EQUAL,
    beside_kv_bytes=frozenset({
        knobs.GPU_MEMORY_UTILIZATION, knobs.MAX_NUM_SEQS, knobs.MAX_NUM_BATCHED_TOKENS,
        knobs.MAX_CUDAGRAPH_CAPTURE_SIZE,
    }),
)  # fmt: skip
_ALWAYS = RefusalContext()

CONTEXTS: Mapping[str, RefusalContext] = {
    "oom": _OUT_OF_MEMORY,
    "oom-warm-up": _OUT_OF_MEMORY,
    "oom-weights": _OUT_OF_MEMORY_BEFORE_KV,
    "oom-profiling": _OUT_OF_MEMORY_BEFORE_KV,
    "kv-too-small": TOO_LITTLE_KV,
    "no-kv-memory": TOO_LITTLE_KV,
    "mamba-blocks": TOO_LITTLE_KV,
    "memory-wanted": _ALWAYS,
    "host-memory-wanted": _ALWAYS,
    "host-kv-memory": RefusalContext({knobs.MAX_NUM_SEQS: ">=", knobs.MAX_NUM_BATCHED_TOKENS: ">="}),
    "len-above-model": _ALWAYS,
    "partial-prefills": _ALWAYS,
    "batched-below-item": _ALWAYS,
    "batched-below-seqs": RefusalContext({knobs.MAX_NUM_BATCHED_TOKENS: "<="}),
    "batched-below-len": RefusalContext({knobs.MAX_MODEL_LEN: ">=", knobs.ENABLE_CHUNKED_PREFILL: "=="}),
    "active-above-seqs": RefusalContext({knobs.MAX_NUM_SEQS: "<="}),
    "threshold-above-len": RefusalContext({knobs.MAX_MODEL_LEN: "<="}),
}
"""Contexts by kind of cause (log_patterns.py). A kind that is not here gives no rule."""
