"""Bits of weights and bytes of KV elements, as a checkpoint's own files and the server's flags say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tuner.kv.config_json import Config, UnknownModelError, as_whole, mapping, read_object

MXFP4_BITS, NVFP4_BITS = 4.25, 4.5
"""Bits of a 4-bit weight with its share of the scales: one byte for 32 weights, one for 16."""

NVFP4_KV_BYTES = 0.5 + 1 / 16
"""Bytes of an NVFP4 element of the KV cache with its share of the scales."""

KV_BYTES: Mapping[str, float] = {
    "float16": 2, "half": 2, "bfloat16": 2, "float32": 4, "float": 4, "nvfp4": NVFP4_KV_BYTES,
    **dict.fromkeys(("fp8", "fp8_e4m3", "fp8_e5m2", "fp8_inc", "int8"), 1),
}  # fmt: skip
"""Bytes of a KV element by --kv-cache-dtype (vLLM, config/cache.py CacheDType)."""

SCALED_BY_HEAD: Mapping[str, float] = {"fp8_per_token_head": 1, "int8_per_token_head": 1, "int4_per_token_head": 0.5}
"""Formats with a scale a token and head, by the bytes of an element."""


def quantization(folder: Path, config: Config) -> Config:
    """Return how the checkpoint is quantised: from config.json, else from the file beside it. Empty if it is not."""
    for key in ("quantization_config", "compression_config"):
        if own := mapping(config, key):
            return own
    try:
        return mapping(read_object(folder / "hf_quant_config.json"), "quantization")
    except UnknownModelError:
        return {}


def own_kv_bytes(folder: Path, config: Config) -> float | None:
    """Return the bytes of a KV element in the checkpoint's own format. None if it has none.

    vLLM reads `kv_cache_scheme` and `kv_cache_quant_algo`, also those in hf_quant_config.json.
    """
    own = quantization(folder, config)
    try:
        beside = mapping(read_object(folder / "hf_quant_config.json"), "quantization")
    except UnknownModelError:
        beside = {}
    for source in (own, mapping(own, "quantization"), beside):
        algorithm = str(source.get("kv_cache_quant_algo") or "").lower()
        if algorithm in ("fp8", "int8", "nvfp4"):
            return KV_BYTES[algorithm]
        if as_whole(mapping(source, "kv_cache_scheme").get("num_bits")) == 8:
            return 1
    return None


def weight_bytes(own: Config) -> float:
    """Return the bytes of a weight in a checkpoint of this quantisation; 2 if there is none."""
    if not own:
        return 2.0
    words = " ".join(str(own.get(key) or "").lower() for key in ("quant_method", "quant_algo", "format"))
    words += " " + str(mapping(own, "quantization").get("quant_algo") or "").lower()
    for name, bits in (("mxfp4", MXFP4_BITS), ("nvfp4", NVFP4_BITS)):
        if name in words:
            return bits / 8
    groups = [group for group in mapping(own, "config_groups").values() if isinstance(group, Mapping)]
    widths = [width for group in groups if (width := as_whole(mapping(group, "weights").get("num_bits")))]
    if widths:
        return max(widths) / 8
    if own.get("load_in_4bit") is True or "w4a" in words or "int4" in words:
        return 0.5
    return (as_whole(own.get("bits")) or as_whole(own.get("w_bit")) or 8) / 8
