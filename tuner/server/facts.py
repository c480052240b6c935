"""What a server's log says of its start: KV cache, weights, compile time. None where the log is silent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StartFacts:
    vllm_version: str | None = None
    kv_tokens: int | None = None
    kv_memory_gib: float | None = None
    max_concurrency: float | None = None
    weights_gib: float | None = None
    compile_s: float | None = None
    compile_cache_hit: bool | None = None
    engine_init_s: float | None = None
    max_model_len: int | None = None
    """From /v1/models: the length in force after vLLM's own fitting."""
