"""Bytes that each layer keeps on one GPU: of a token, or of a whole request.

Source: vLLM 0.32, v1/kv_cache_interface.py and model_executor/layers/mamba/mamba_utils.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from fractions import Fraction

from tuner.kv.config_json import Config, UnknownModelError, as_whole, layer_count, listed, mapping, positive, whole
from tuner.kv.formats import SCALED_BY_HEAD
from tuner.kv.kinds import INDEXED, LayerKind, layer_kinds, window_of

DS_MLA_BYTES: Mapping[str, int] = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
"""Bytes of a token of sparse multi-head latent attention (MLA): values, scales and RoPE (mla_attention.py)."""

SCALE_BYTES = 4
"""Bytes of one scale, beside quantised K or V or an indexer's key."""

UNMODELLED_KEYS: Mapping[str, str] = {
    "compress_ratios": "compressed KV", "compress_ratio": "compressed KV", "ple_layer_ids": "per-layer embeddings",
    "sparse_attention_config": "sparse attention", "indexer_n_heads": "its indexer", "loop_num": "loops over layers",
    "param_sink_number": "sinks in the KV cache", "rswa_window": "a window over the answer",
    "index_kpool": "a pooled index", "per_layer_config": "layers that differ", "is_encoder_decoder": "an encoder's KV",
}  # fmt: skip
"""Keys of models that keep something else than K and V, a latent or a state."""

UNMODELLED_FAMILIES = ("hrm_text", "iquestloopcoder", "iquest_loopcoder", "inkling_text", "dots3_note")
"""Families whose layers keep something else than one K and V, which no key tells."""

NO_LATENT = ("minicpm3",)
"""Families that state `kv_lora_rank` and keep K and V."""

FLOAT32_STATE = ("nemotron_h", "nemotron_h_puzzle")
"""Families whose state has 4 bytes an element if config.json does not say it."""


class LatentPacking(Enum):
    """When a kernel of sparse MLA packs values, scales and RoPE of a token (DS_MLA_BYTES)."""

    IF_QUANTISED = "if the KV cache is quantised"
    NEVER = "never"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class KvElement:
    """Format of the KV cache: bytes of an element of K and V, of the activations, and vLLM's name of it.

    `state_bytes` are those of a state's element, if a flag says it.
    """

    kv_bytes: float
    activation_bytes: int = 2
    name: str = "auto"
    state_bytes: int | None = None
    packing: LatentPacking = LatentPacking.IF_QUANTISED


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Cache of one layer on one GPU.

    Attributes:
        layer: Place among the decoder's layers.
        token_bytes: Bytes of one token; 0 for a state.
        state_bytes: Bytes of one request's state; 0 for K and V.
        window: Last tokens that are kept; None keeps all of them.
        latent: True for the latent vector of MLA.
    """

    layer: int
    token_bytes: int = 0
    state_bytes: int = 0
    window: int | None = None
    latent: bool = False


def layer_caches(config: Config, element: KvElement, ranks: int) -> tuple[LayerCache, ...]:
    """Return the caches of all layers on one of `ranks` GPUs. Raises UnknownModelError with what is not modelled."""
    for key, what in UNMODELLED_KEYS.items():
        if config.get(key) and not (key == "per_layer_config" and config.get("global_head_dim")):
            raise UnknownModelError(f"{key} in config.json: {what} is not modelled")
    family = str(config.get("model_type"))
    indexed = set(map(str, listed(config, "layer_types") or ())) & set(INDEXED)
    if family in UNMODELLED_FAMILIES or (indexed and not latent_width(config)):
        raise UnknownModelError(f"a model of the type {family[:40]}: what its layers keep is not modelled")
    kinds = layer_kinds(config)
    state = _state_bytes(config, element, ranks) if {LayerKind.STATE, LayerKind.FULL_AND_STATE} & set(kinds) else 0
    found: list[LayerCache] = []
    for layer, kind in enumerate(kinds):
        if kind in (LayerKind.STATE, LayerKind.FULL_AND_STATE):
            found.append(LayerCache(layer, state_bytes=state))
        if kind not in (LayerKind.STATE, LayerKind.NOTHING):
            found.append(_attention(config, layer, kind, element, ranks))
    if latent_width(config):
        return tuple(found) * _attentions_a_layer(config)
    return tuple(found)


def with_draft_layers(config: Config, caches: tuple[LayerCache, ...]) -> tuple[LayerCache, ...]:
    """Add the model's own draft layers. Each keeps what the last layer does that attends to all."""
    layers = positive(config, "mtp_num_hidden_layers") or positive(config, "num_nextn_predict_layers") or 1
    full = [replace(cache, layer=caches[-1].layer) for cache in caches if cache.token_bytes and cache.window is None]
    return (*caches, *full[-1:] * layers)


def latent_width(config: Config) -> int:
    """Return the elements of the latent vector of MLA; 0 where K and V are kept."""
    rank = whole(config, "kv_lora_rank", default=0)
    if not rank or config.get("model_type") in NO_LATENT:
        return 0
    return rank + whole(config, "qk_rope_head_dim", default=0)


def kv_heads(config: Config) -> int:
    """Return the KV heads of the whole model, in every spelling."""
    if config.get("model_type") == "step3_text":
        return 1
    if config.get("multi_query") is True and not config.get("new_decoder_architecture"):
        return 1  # Falcon
    own = mapping(config, "attn_config")  # DBRX
    return whole(
        {**config, "kv_n_heads": own.get("kv_n_heads")},
        "num_key_value_heads", "n_head_kv", "num_kv_heads", "multi_query_group_num", "num_attention_groups",
        "kv_n_heads",
        default=attention_heads(config),
    )  # fmt: skip


def attention_heads(config: Config) -> int:
    return whole(config, "num_attention_heads", "n_head", "n_heads", "num_heads")


def hidden_width(config: Config) -> int:
    return whole(config, "hidden_size", "n_embd", "d_model", "model_dim")


def head_width(config: Config) -> int:
    """Return the width of one head of K. A stated 0 means the default, as in vLLM."""
    for key in ("head_dim", "attention_head_dim", "hidden_size_per_head", "kv_channels"):
        if width := whole(config, key, default=0):
            return width
    return hidden_width(config) // attention_heads(config)


def _attention(config: Config, layer: int, kind: LayerKind, element: KvElement, ranks: int) -> LayerCache:
    window = window_of(config) if kind is LayerKind.WINDOW else None  # chunks are kept whole, vLLM's default
    if latent := latent_width(config):
        return LayerCache(layer, _latent_bytes(config, layer, latent, element), window=window, latent=True)
    heads, key, value = _heads(config, layer, kind)
    on_one = max(1, heads // ranks)
    scales = 2 * SCALE_BYTES if element.name in SCALED_BY_HEAD else 0
    token = on_one * ((key + value) * Fraction(element.kv_bytes) + scales)
    return LayerCache(layer, int(token), window=window)


def _heads(config: Config, layer: int, kind: LayerKind) -> tuple[int, int, int]:
    """Return KV heads and the widths of a head of K and of V. Windows and full layers may have their own."""
    heads = kv_heads(config) if not listed(config, "num_key_value_heads_per_layer") else _per_layer(config, layer)
    width = head_width(config)
    block = (listed(config, "block_configs") or [{}])[layer:][:1]
    own: Config = block[0] if block and isinstance(block[0], Mapping) else {}
    if in_group := positive(mapping(own, "attention"), "n_heads_in_group"):
        heads = attention_heads(config) // in_group
    value = width
    if kind is LayerKind.WINDOW:
        other = mapping(config, "attention_other_setting")
        heads = positive(config, "swa_num_key_value_heads") or positive(other, "num_attention_groups") or heads
        width = positive(config, "swa_head_dim") or positive(other, "head_dim") or width
        return heads, width, positive(config, "swa_v_head_dim") or width
    if str(config.get("model_type")).startswith("mimo_v2"):
        value = positive(config, "v_head_dim") or width
    if wide := positive(config, "global_head_dim"):
        width = value = wide
    if config.get("attention_k_eq_v") is True:
        heads = positive(config, "num_global_key_value_heads") or heads
    return heads, width, value


def _per_layer(config: Config, layer: int) -> int:
    heads = listed(config, "num_key_value_heads_per_layer") or ()
    found = as_whole(heads[layer]) if layer < len(heads) else None
    if not found:
        raise UnknownModelError("num_key_value_heads_per_layer in config.json: not a number of heads for each layer")
    return found


def _latent_bytes(config: Config, layer: int, latent: int, element: KvElement) -> int:
    """Return the bytes of a latent vector, with an indexer's key of one byte an element and its scales."""
    indexed = positive(config, "index_topk") is not None or positive(config, "index_head_dim") is not None
    packs = element.packing is LatentPacking.ALWAYS or (
        element.packing is LatentPacking.IF_QUANTISED and element.kv_bytes <= 1
    )
    if indexed and packs:
        own = DS_MLA_BYTES["nvfp4_ds_mla" if "nvfp4" in element.name else "fp8_ds_mla"]
    else:
        own = DS_MLA_BYTES.get(element.name) or int(latent * element.kv_bytes)
    if not indexed or _without_indexer(config, layer):
        return own
    width = whole(config, "index_head_dim", default=128)
    return own + width + width // 128 * SCALE_BYTES


def _without_indexer(config: Config, layer: int) -> bool:
    """Return True for a layer that attends to all, or uses an earlier layer's choice (vLLM, deepseek_v2.py)."""
    names = listed(config, "layer_types") or ()
    if set(map(str, names)) & set(INDEXED) and names[layer] not in INDEXED:
        return True
    pattern = config.get("index_topk_pattern")
    if isinstance(pattern, (str, list)):
        return layer < len(pattern) and pattern[layer] == "S"
    if (types := listed(config, "indexer_types")) is not None:
        return layer < len(types) and types[layer] == "shared"
    every = positive(config, "index_topk_freq") or 1
    offset = as_whole(config.get("index_skip_topk_offset"))
    return max(layer - (2 if offset is None else offset) + 1, 0) % every != 0


def _attentions_a_layer(config: Config) -> int:
    """Return the attentions of a layer: LongCat-Flash has two."""
    doubled = str(config.get("model_type")).startswith("longcat_flash") and config.get("num_hidden_layers") is None
    return 2 if doubled else 1


def _state_bytes(config: Config, element: KvElement, ranks: int) -> int:
    """Return the bytes of one request's state in one layer."""
    for state in (_gated_delta, _delta, _short_convolution, _mamba, _linear):
        if (found := state(config, element, ranks)) is not None:
            return found
    raise UnknownModelError("config.json: the size of the state that some of its layers keep is not known")


def _ssm_bytes(config: Config, element: KvElement) -> int:
    """Return the bytes of a recurrent state's element."""
    if element.state_bytes is not None:
        return element.state_bytes
    named = config.get("mamba_ssm_dtype") or config.get("mamba_ssm_cache_dtype")
    if named is None and str(config.get("model_type")) in FLOAT32_STATE:
        return 4
    return 4 if named in ("float32", "float") else element.activation_bytes


def _gated_delta(config: Config, element: KvElement, ranks: int) -> int | None:
    """Qwen3-Next, Qwen3.5, OLMo hybrid: a gated delta net."""
    if not positive(config, "linear_num_value_heads"):
        return None
    keys = whole(config, "linear_num_key_heads") * (key := whole(config, "linear_key_head_dim"))
    heads, value = whole(config, "linear_num_value_heads"), whole(config, "linear_value_head_dim")
    channels = (2 * keys + heads * value) // ranks
    kernel = whole(config, "linear_conv_kernel_dim", default=4)
    return channels * (kernel - 1) * element.activation_bytes + heads // ranks * value * key * _ssm_bytes(
        config, element
    )


def _delta(config: Config, element: KvElement, ranks: int) -> int | None:
    """Kimi-Linear, GLM and Ling: a delta net whose state has 4 bytes an element."""
    own = mapping(config, "linear_attn_config")
    if own:
        heads, width = whole(own, "num_heads"), whole(own, "head_dim")
        kernel = whole(own, "short_conv_kernel_size", default=4)
    elif positive(config, "linear_num_heads"):
        heads, width = whole(config, "linear_num_heads"), whole(config, "linear_head_dim")
        kernel = whole(config, "linear_conv_kernel_dim", default=4)
    elif positive(config, "short_conv_kernel_size"):
        heads, width = attention_heads(config), head_width(config)
        kernel = whole(config, "short_conv_kernel_size")
    else:
        return None
    convolution = 3 * heads * width // ranks * (kernel - 1) * element.activation_bytes
    return convolution + heads // ranks * width * width * (element.state_bytes or 4)


def _short_convolution(config: Config, element: KvElement, ranks: int) -> int | None:
    """LFM2: a convolution alone."""
    if not (kernel := positive(config, "conv_L_cache")):
        return None
    channels = positive(config, "conv_dim") or hidden_width(config)
    return channels // ranks * (kernel - 1) * element.activation_bytes


def _mamba(config: Config, element: KvElement, ranks: int) -> int | None:
    """Mamba 1 and 2, alone and in Jamba, Bamba, Granite, Falcon-H1, Zamba2 and Nemotron-H."""
    size = next(filter(None, (positive(config, k) for k in ("ssm_state_size", "mamba_d_state", "state_size"))), None)
    if size is None:
        return None
    kernel = whole(config, "mamba_d_conv", "conv_kernel", default=4)
    inner = _mamba_width(config)
    heads = next(
        (n for k in ("mamba_num_heads", "mamba_n_heads", "n_mamba_heads", "num_heads") if (n := positive(config, k))), 0
    )
    if not heads or config.get("model_type") in ("jamba", "mamba", "falcon_mamba"):
        return inner // ranks * ((kernel - 1) * element.activation_bytes + size * _ssm_bytes(config, element))
    width = next(
        (n for k in ("mamba_head_dim", "mamba_d_head", "mamba_headdim") if (n := positive(config, k))), inner // heads
    )
    groups = whole(config, "mamba_n_groups", "mamba_ngroups", "n_groups", default=1)
    if groups % ranks:
        groups = ranks  # vLLM repeats groups so that every rank has one
    channels = (inner + 2 * groups * size) // ranks
    return channels * (kernel - 1) * element.activation_bytes + heads // ranks * width * size * _ssm_bytes(
        config, element
    )


def _mamba_width(config: Config) -> int:
    """Return the inner width of a Mamba layer."""
    if own := positive(config, "mamba_d_ssm"):
        return own
    if config.get("model_type") in ("mamba", "falcon_mamba") and (own := positive(config, "intermediate_size")):
        return own
    if (heads := positive(config, "mamba_num_heads")) and (width := positive(config, "mamba_head_dim")):
        return heads * width
    return whole(config, "mamba_expand", "expand", default=2) * hidden_width(config)


def _linear(config: Config, element: KvElement, ranks: int) -> int | None:
    """MiniMax-01 and Ling: linear attention with the width of its heads, squared."""
    if not str(config.get("model_type")).startswith(("minimax", "bailing")):
        return None
    return attention_heads(config) // ranks * head_width(config) ** 2 * element.activation_bytes


def decoder_layers(config: Config) -> int:
    """Return the layers that pipeline stages share."""
    return max(layer_count(config), len(layer_kinds(config)))
