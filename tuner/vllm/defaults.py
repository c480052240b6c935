"""Values that vLLM sets for flags that are left out: the place of its default configuration in the space.

Source: vllm/engine/arg_utils.py get_batch_defaults (0.32), vllm/config/cache.py (docs/vllm.md). They only place the
default among the candidates; the default itself is started without these flags.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from tuner.candidate import Value
from tuner.environment import Gpu
from tuner.kv.layers import LatentPacking
from tuner.vllm import knobs

_SM100 = re.compile(r"\bG?B[123]00\b")
_SM120 = re.compile(r"\bGB10\b|RTX (?:PRO [2456]\d00|50[5-9]0)")


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


def latent_packing(version: str, gpus: tuple[Gpu, ...], values: Mapping[str, Value]) -> LatentPacking:
    """Return how sparse MLA is kept (platforms/cuda.py _get_backend_priorities, mla_attention.py).

    FLASHMLA_SPARSE packs a quantised cache. FlashInfer's kernel for B200 (SM100) does not, and is the default for it
    since 0.18 (vLLM pull request 37252). That for SM120 packs every cache.
    """
    names = {gpu.name for gpu in gpus}
    if names and all(map(_SM120.search, names)):
        return LatentPacking.ALWAYS
    asked = str(values.get(knobs.ATTENTION_BACKEND, "")).upper()
    on_flashinfer = asked == "FLASHINFER_MLA_SPARSE" or (not asked and _minor(version) >= 18)
    if names and all(map(_SM100.search, names)) and on_flashinfer:
        return LatentPacking.NEVER
    return LatentPacking.IF_QUANTISED


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
