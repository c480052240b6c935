"""Kind of every decoder layer: what it keeps of a request. Each family of models spells it in its own way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum, auto

from tuner.kv.config_json import Config, UnknownModelError, as_whole, layer_count, listed, mapping, positive


class LayerKind(Enum):
    """What a layer keeps: K and V of every token, of a window or a chunk, a fixed state, both, or nothing."""

    FULL = auto()
    WINDOW = auto()
    CHUNKED = auto()
    STATE = auto()
    FULL_AND_STATE = auto()
    NOTHING = auto()


FULL, WINDOW, CHUNKED, STATE, NOTHING = (
    LayerKind.FULL, LayerKind.WINDOW, LayerKind.CHUNKED, LayerKind.STATE, LayerKind.NOTHING,
)  # fmt: skip

INDEXED = ("indexed_attention", "deepseek_sparse_attention", "sparse_attention", "sparse")
"""Names of layers with latent attention over the tokens that an indexer chooses."""

NAMES: Mapping[str, LayerKind] = {
    **dict.fromkeys(("full_attention", "attention", "full", "global_attention", "global"), FULL),
    **dict.fromkeys(("sliding_attention", "sliding_window", "sliding", "local_attention", "local", "swa"), WINDOW),
    "chunked_attention": CHUNKED,
    **dict.fromkeys(
        ("linear_attention", "linear", "mamba", "mamba1", "mamba2", "conv", "short_conv", "recurrent", "kda", "gdn"),
        STATE,
    ),
    "hybrid": LayerKind.FULL_AND_STATE,
    **dict.fromkeys(INDEXED, FULL),
    **dict.fromkeys(("moe", "mlp", "feed_forward"), NOTHING),
}
"""Names in `layer_types` and `layers_block_type`."""

PATTERN = {"M": STATE, "*": FULL, "-": NOTHING, "E": NOTHING}
"""Letters of `hybrid_override_pattern`."""

EVERY_NTH_FULL: Mapping[str, int] = {
    **dict.fromkeys(("gemma2", "vaultgemma", "gpt_oss"), 2),
    **dict.fromkeys(("cohere2", "cohere2_moe", "exaone4", "exaone4_5", "exaone_moe", "olmo3", "muse_glimmer_text"), 4),
    **dict.fromkeys(("gemma3n", "gemma3n_text"), 5),
    **dict.fromkeys(("gemma3", "gemma3_text", "gemma4", "gemma4_text", "gemma4_unified_text"), 6),
}
"""Families with windows before every n-th full layer, where config.json does not list them (transformers)."""

FIRST_OF_FOUR_FULL = ("cwm", "granite_swa", "granitemoe_swa")
"""Families with three windows after every full layer, where config.json does not list them (transformers)."""

ALL_FULL = ("laguna", "mellum", "cohere_compass", "cohere_compass_text")
"""Families that state a window and use it only in layers that config.json lists."""

EVERY_NTH_ATTENDS: Mapping[str, int] = {
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "olmo_hybrid"), 4),
}
"""Families with states between every n-th full layer, where config.json does not list them (transformers)."""

STATE_ONLY = ("mamba", "mamba2", "falcon_mamba")
"""Families without attention."""

UNTOLD = (
    "attn_type_list", "linear_attn_config", "linear_num_", "linear_key_", "linear_value_", "linear_conv_",
    "linear_head_", "full_attention_interval", "mamba_", "ssm_", "state_size", "attn_layer_",
)  # fmt: skip
"""Beginnings of keys of models with states. Without a spelling of the kinds it is unknown which layers have one."""


def layer_kinds(config: Config) -> tuple[LayerKind, ...]:
    """Return the kind of every layer. Raises UnknownModelError if config.json does not tell it."""
    layers = layer_count(config)
    kinds = next((found for spelling in SPELLINGS if (found := spelling(config, layers)) is not None), None)
    if kinds is None:
        if untold := next((key for key in config if key.startswith(UNTOLD) and config[key]), None):
            raise UnknownModelError(f"{untold} in config.json: which of the layers keep a state is not told by it")
        kinds = [WINDOW] * layers
    kept = [_without_bound(kind, config) for kind in kinds]
    shared = min(_shared_layers(config), len(kept))
    return (*kept[: len(kept) - shared], *[NOTHING] * shared)


def window_of(config: Config) -> int | None:
    """Return the tokens of a window. None if windows are off."""
    if config.get("use_sliding_window") is False:
        return None
    windows = config.get("interleaved_sliding_window")
    if isinstance(windows, list):
        return max(filter(None, map(as_whole, windows)), default=None)
    return as_whole(windows) or positive(config, "sliding_window") or positive(config, "sliding_window_size")


def _without_bound(kind: LayerKind, config: Config) -> LayerKind:
    """Return FULL for a window or a chunk without a length."""
    if kind is WINDOW and window_of(config) is None:
        return FULL
    return FULL if kind is CHUNKED and positive(config, "attention_chunk_size") is None else kind


def _shared_layers(config: Config) -> int:
    """Return the last layers, which use the KV cache of earlier ones."""
    if config.get("num_kv_shared_layers") is None and config.get("model_type") == "gemma3n_text":
        return 15
    return positive(config, "num_kv_shared_layers") or 0


def _named(config: Config, layers: int) -> list[LayerKind] | None:
    names = listed(config, "layer_types") or listed(config, "layers_block_type")
    if names is None:
        return None
    if len(names) < layers:
        raise UnknownModelError(f"config.json: {len(names)} kinds of layers for {layers} layers")
    strange = sorted({str(name) for name in names[:layers]} - NAMES.keys())
    if strange:
        raise UnknownModelError(f"layers of the kind {', '.join(strange)[:80]}: what they keep is not modelled")
    return [NAMES[str(name)] for name in names[:layers]]  # some lists go on with the layers of a draft model


def _lettered(config: Config, layers: int) -> list[LayerKind] | None:
    pattern = config.get("hybrid_override_pattern")
    if not isinstance(pattern, str) or not pattern:
        return None
    if strange := sorted(set(pattern) - PATTERN.keys()):
        raise UnknownModelError(f"{''.join(strange)[:20]!r} in hybrid_override_pattern: not modelled")
    return [PATTERN[letter] for letter in pattern]


def _in_blocks(config: Config, layers: int) -> list[LayerKind] | None:
    """Read `block_configs`, of which an attention may be skipped or another kind of block (DeciLM, NemotronH)."""
    blocks = listed(config, "block_configs")
    if blocks is None:
        return None
    return [_block(block) for block in blocks[:layers]]


def _block(block: object) -> LayerKind:
    own: Config = block if isinstance(block, Mapping) else {}
    if (kind := NAMES.get(str(own.get("block_type")))) is not None:
        return kind
    attention = mapping(own, "attention")
    if not attention or attention.get("window_length") or attention.get("is_mamba"):
        raise UnknownModelError("block_configs in config.json: a block of a kind that is not modelled")
    return NOTHING if attention.get("no_op") or attention.get("replace_with_linear") else FULL


def _flagged(key: str, meanings: Mapping[int, LayerKind]) -> Callable[[Config, int], list[LayerKind] | None]:
    """Return a reader of a list of numbers, one a layer."""

    def read(config: Config, layers: int) -> list[LayerKind] | None:
        flags = [flag for flag in listed(config, key) or () if isinstance(flag, int) and flag in meanings]
        return [meanings[flag] for flag in flags[:layers]] if len(flags) >= layers else None

    return read


def _at(
    layers: int, which: Iterable[object], here: LayerKind, elsewhere: LayerKind, *, first: int = 0
) -> list[LayerKind]:
    places = {place - first for place in which if isinstance(place, int)}
    return [here if layer in places else elsewhere for layer in range(layers)]


def _every(layers: int, period: int, here: LayerKind, elsewhere: LayerKind) -> list[LayerKind]:
    return [here if (layer + 1) % period == 0 else elsewhere for layer in range(layers)]


def _indexed(config: Config, layers: int) -> list[LayerKind] | None:
    """Read the places of the layers with attention."""
    linear = mapping(config, "linear_attn_config")
    if (full := listed(linear, "full_attn_layers")) is not None:
        return _at(layers, full, FULL, STATE, first=1)
    if (states := listed(linear, "kda_layers")) is not None:
        return _at(layers, states, STATE, FULL, first=1)
    for key in ("full_attn_idxs", "attn_layer_indices"):
        if (full := listed(config, key)) is not None:
            return _at(layers, full, FULL, STATE)
    if (hybrid := listed(config, "hybrid_layer_ids")) is not None:
        return _at(layers, hybrid, LayerKind.FULL_AND_STATE, STATE)
    return None


def _periodic(config: Config, layers: int) -> list[LayerKind] | None:
    if period := positive(config, "attn_layer_period"):
        offset = as_whole(config.get("attn_layer_offset")) or 0
        return [FULL if layer % period == offset else STATE for layer in range(layers)]
    if period := positive(config, "full_attention_interval"):
        return _every(layers, period, FULL, STATE)
    if period := positive(config, "layer_group_size"):
        kinds = _every(layers, period, FULL, STATE)
        rest = layers % period if "v3" in str(config.get("model_type")) else 0
        return [*kinds[: layers - rest], *[FULL] * rest]
    return None


def _chunked(config: Config, layers: int) -> list[LayerKind] | None:
    """Read Llama 4: layers without RoPE are full. MiMo states a chunk that vLLM ignores."""
    if positive(config, "attention_chunk_size") is None or str(config.get("model_type")).startswith("mimo"):
        return None
    own = _flagged("no_rope_layers", {1: CHUNKED, 0: FULL})(config, layers)
    return own or _every(layers, positive(config, "no_rope_layer_interval") or 4, FULL, CHUNKED)


def _windowed(config: Config, layers: int) -> list[LayerKind] | None:
    if (
        config.get("use_sliding_window") is not False
        and (first := as_whole(config.get("max_window_layers"))) is not None
    ):
        return [WINDOW if layer >= first else FULL for layer in range(layers)]
    for key in ("sliding_window_pattern", "_sliding_window_pattern", "global_attn_every_n_layers"):
        pattern = config.get(key)
        if isinstance(pattern, str) and pattern and set(pattern) <= {"L", "G"}:
            kinds = [WINDOW if pattern[layer % len(pattern)] == "L" else FULL for layer in range(layers)]
            return [*kinds[:-1], FULL]
        if period := as_whole(pattern):
            return _every(layers, period, FULL, WINDOW)
    windows = listed(config, "interleaved_sliding_window")
    if windows is not None:
        return [WINDOW if windows[layer % len(windows)] else FULL for layer in range(layers)]
    return None


def _by_family(config: Config, layers: int) -> list[LayerKind] | None:
    family = str(config.get("model_type"))
    architectures = listed(config, "architectures") or ()
    if family in STATE_ONLY:
        return [STATE] * layers
    if family == "falcon_h1" or "FalconH1ForCausalLM" in architectures:
        return [LayerKind.FULL_AND_STATE] * layers
    if family in ALL_FULL:
        return [FULL] * layers
    if family in FIRST_OF_FOUR_FULL:
        return [FULL if layer % 4 == 0 else WINDOW for layer in range(layers)]
    if period := EVERY_NTH_ATTENDS.get(family):
        return _every(layers, period, FULL, STATE)
    if period := EVERY_NTH_FULL.get(family) or next(
        (6 for name in architectures if str(name).startswith("Gemma3For")), None
    ):
        kinds = _every(layers, period, FULL, WINDOW)
        return [*kinds[:-1], FULL] if family.startswith("gemma4") else kinds
    return None


SPELLINGS: tuple[Callable[[Config, int], list[LayerKind] | None], ...] = (
    _named, _lettered, _in_blocks,
    _flagged("hybrid_layer_pattern", {1: WINDOW, 0: FULL}),
    _flagged("attn_type_list", {1: FULL, 0: STATE}),
    _indexed, _periodic, _chunked, _windowed, _by_family,
)  # fmt: skip
"""Readers of the kinds, each None for a config.json that spells them in another way."""
