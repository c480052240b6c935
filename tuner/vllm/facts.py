"""Facts of a start from the server's log: KV cache, weights, compile time. None if the log is silent."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Wordings of vLLM 0.8.5 to 0.33.
_VERSION = re.compile(r"(?:LLM engine \(v|API server version |\bversion )(\d+\.\d+\.\d+[^\s)]*)")
_KV_TOKENS = re.compile(r"(?:GPU|CPU|XPU)(?: \+ host)? KV cache size: ([\d,]+) tokens")
_KV_MEMORY = re.compile(
    r"(?:Available KV cache memory: (?=-?[\d.]+ GiB)"  # GPU
    r"|(?:Auto|Explicitly) set \((?=[\d.]+/[\d.]+\) GiB for KV cache))"  # CPU
    r"(-?[\d.]+)"
)
_CONCURRENCY = re.compile(r"Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x")
_BLOCK = re.compile(r"Setting attention block size to (\d+) tokens")
_WEIGHTS = re.compile(r"Model loading took ([\d.]+) Gi?B")
_COMPILE = re.compile(r"torch\.compile (?:took|takes) ([\d.]+) s in total")
_COMPILE_HIT = re.compile(r"Directly load (?:the compiled graph|AOT compilation)")
_ENGINE_INIT = re.compile(r"init engine \([^)]*\) took ([\d.]+) s")


@dataclass(frozen=True, slots=True)
class StartFacts:
    vllm_version: str | None = None
    kv_tokens: int | None = None
    kv_memory_gib: float | None = None
    max_concurrency: float | None = None
    concurrency_tokens: int | None = None
    """Tokens of each of the `max_concurrency` requests."""
    block_tokens: int | None = None
    """Tokens of an attention block, where vLLM set it itself."""
    weights_gib: float | None = None
    compile_s: float | None = None
    compile_cache_hit: bool | None = None
    engine_init_s: float | None = None
    max_model_len: int | None = None
    """Length in force after vLLM's own fitting, from /v1/models."""


def parse_facts(log_text: str, *, max_model_len: int | None = None) -> StartFacts:
    """Parse the log. Of several workers' lines the limiting one counts: least KV cache, most weights, longest
    compilation."""
    version = _VERSION.search(log_text)
    compile_s = _largest(_COMPILE, log_text)
    concurrency = min(
        ((float(n), int(each.replace(",", ""))) for each, n in _CONCURRENCY.findall(log_text)), default=None
    )
    return StartFacts(
        vllm_version=version[1].rstrip(",") if version else None,
        kv_tokens=min((int(n.replace(",", "")) for n in _KV_TOKENS.findall(log_text)), default=None),
        kv_memory_gib=_smallest(_KV_MEMORY, log_text),
        max_concurrency=None if concurrency is None else concurrency[0],
        concurrency_tokens=None if concurrency is None else concurrency[1],
        block_tokens=max(map(int, _BLOCK.findall(log_text)), default=None),
        weights_gib=_largest(_WEIGHTS, log_text),
        compile_s=compile_s,
        compile_cache_hit=True if _COMPILE_HIT.search(log_text) else None if compile_s is None else False,
        engine_init_s=_largest(_ENGINE_INIT, log_text),
        max_model_len=max_model_len,
    )


def _smallest(pattern: re.Pattern[str], text: str) -> float | None:
    return min(map(float, pattern.findall(text)), default=None)


def _largest(pattern: re.Pattern[str], text: str) -> float | None:
    return max(map(float, pattern.findall(text)), default=None)
