"""Values that vLLM sets for flags that are left out: the place of its default configuration in the space.

Source: vllm/engine/arg_utils.py get_batch_defaults (0.32), vllm/config/cache.py (docs/vllm.md). They only place the
default among the candidates; the default itself is started without these flags.
"""

from __future__ import annotations

from tuner.candidate import Value
from tuner.environment import Gpu


def vllm_defaults(version: str, gpus: tuple[Gpu, ...]) -> dict[str, Value]:
    batched, seqs = _batch(gpus)
    return {
        "max-num-batched-tokens": batched,
        "max-num-seqs": seqs,
        "gpu-memory-utilization": 0.9 if _minor(version) < 20 else 0.92,
        "enable-chunked-prefill": True,
        "long-prefill-token-threshold": 0,
        "long-prefill-token-threshold-adaptive": False,
        "max-num-partial-prefills": 1,
        "max-long-partial-prefills": 1,
        "enable-prefix-caching": True,
    }


def steps_in_flight(version: str) -> int:
    """Return the steps whose tokens vLLM reserves for each window (v1/kv_cache_interface.py, since 0.25 two)."""
    return 1 if _minor(version) < 25 else 2


def caches_states(version: str) -> bool:
    """Return True if prefix caching is on by default in models with states (vLLM pull request 50991)."""
    return _minor(version) >= 27


def _batch(gpus: tuple[Gpu, ...]) -> tuple[int, int]:
    if not gpus:
        return 2048, 128
    memory_gib = min(gpu.memory_gib for gpu in gpus)
    if memory_gib >= 160:
        return 16384, 1024
    if memory_gib >= 70 and "a100" not in gpus[0].name.lower():
        return 8192, 1024
    return 2048, 256


def _minor(version: str) -> int:
    parts = version.split(".")
    return int(parts[1]) if len(parts) > 1 and parts[0] == "0" and parts[1].isdigit() else 99
