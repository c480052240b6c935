"""Shape and request length of a language model, derived from its config.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

STATE_KINDS = ("linear_attention", "mamba", "mamba2", "conv", "recurrent")
"""Layer kinds with a fixed state instead of a KV cache."""

WINDOW_KINDS = ("sliding_attention", "chunked_attention")
"""Layer kinds that look back over a window of tokens."""

LENGTH_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
"""Spellings of the length in config.json (vLLM, transformers_utils/model_arch_config_convertor.py)."""

UNSCALED_ROPE = ("su", "longrope", "llama3")
"""RoPE types whose factor vLLM does not apply (config/model.py _get_and_verify_max_len)."""

YARN_ROPE = ("yarn", "deepseek_yarn", "deepseek_llama_scaling")
"""YaRN types. Older vLLM multiplies the original length by the factor, newer vLLM takes the stated length."""


class UnknownModelError(ValueError):
    """Missing or unknown config.json, as the text says."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder-only model. Counts are parameters unless the name says bytes.

    Attributes:
        attention_layers: Layers with a KV cache. A hybrid model (Qwen3.5 and later) has fewer of them than `layers`.
        mixer_parameters: Parameters of one layer without attention, which keeps a fixed state.
        expert_parameters: Parameters of one expert of one layer. A dense model has 0 experts.
        latent_width: Elements that multi-head latent attention (MLA) keeps of a token in a layer; 0 where K and V are
            kept.
        window_layers: Attention layers that look back `window` tokens only.
    """

    name: str
    layers: int
    attention_layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    mixer_parameters: int = 0
    experts: int = 0
    experts_per_token: int = 0
    expert_parameters: int = 0
    tied_embeddings: bool = False
    weight_bytes: float = 2.0
    activation_bytes: int = 2
    latent_width: int = 0
    window_layers: int = 0
    window: int = 0

    def at(self, dtype: str) -> ModelShape:
        """Return the shape under `--dtype DTYPE`. `auto` means 16 bits, FP32 checkpoints included, as in vLLM."""
        if dtype not in ("float", "float32"):
            return self
        return replace(self, activation_bytes=4, weight_bytes=4.0 if self.weight_bytes == 2.0 else self.weight_bytes)

    @property
    def attention_parameters(self) -> int:
        """Parameters of Q, K, V and O in one attention layer."""
        return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    @property
    def shared_parameters(self) -> int:
        """Parameters of all layers without experts and embeddings. They are read every step, multiplied for every
        token."""
        mixers = self.attention_layers * self.attention_parameters
        mixers += (self.layers - self.attention_layers) * self.mixer_parameters
        feed_forward = 0 if self.experts else 3 * self.hidden * self.intermediate
        return mixers + self.layers * feed_forward

    @property
    def head_parameters(self) -> int:
        """Parameters of the output matrix, multiplied only for sampled positions."""
        return self.hidden * self.vocab

    @property
    def total_parameters(self) -> int:
        """Parameters of the whole model, experts and embeddings included."""
        embeddings = self.head_parameters * (1 if self.tied_embeddings else 2)
        return self.shared_parameters + self.layers * self.experts * self.expert_parameters + embeddings

    @property
    def weights_bytes(self) -> float:
        """Bytes of all weights at rest. Embedding and head keep the activation's width in a quantised model."""
        outside = self.head_parameters * (1 if self.tied_embeddings else 2)
        return (self.total_parameters - outside) * self.weight_bytes + outside * self.activation_bytes

    def weights_read_bytes(self, tokens: float) -> float:
        """Return the bytes of weights that a step reads. Of the experts it reads those that at least one token
        chose."""
        read = self.shared_parameters * self.weight_bytes + self.head_parameters * self.activation_bytes
        if self.experts:
            untouched = (1.0 - self.experts_per_token / self.experts) ** tokens
            read += self.layers * self.experts * self.expert_parameters * self.weight_bytes * (1.0 - untouched)
        return read

    def flops(self, tokens: float, sampled: float) -> float:
        """Return the matrices' FLOPs, without attention over the context."""
        active = self.shared_parameters + self.layers * self.experts_per_token * self.expert_parameters
        return 2.0 * (active * tokens + self.head_parameters * sampled)

    def forward_bytes(self, tokens: int, ranks: int) -> int:
        """Return the peak of a step's activations on one rank. Logits are not in it. Four hidden states are alive at
        once: residual, input, output and all-reduce buffer. Gate, up and their product are split over the ranks."""
        return tokens * (4 * self.hidden + 3 * self.intermediate // ranks) * self.activation_bytes

    def stages(self, count: int) -> tuple[int, ...]:
        """Return the layers of each pipeline stage (vLLM, distributed/utils.py get_pp_indices)."""
        layers = [self.layers // count] * count
        for i in range(self.layers % count):
            layers[-2 - i] += 1  # the last stage has the output matrix already
        return tuple(layers)

    def kv_bytes_per_token(self, kv_bytes: int, ranks: int = 1, stages: int = 1) -> int:
        """Return one token's KV bytes on one of `ranks`, in the largest of so many pipeline `stages`.

        They are 2 (K and V) · attention layers · KV heads · head dimension · `kv_bytes` of an element. Ranks share
        the KV heads; with more ranks than heads each keeps a copy of one. MLA keeps one latent vector for all heads,
        whole on every rank (vLLM, v1/kv_cache_interface.py MLAAttentionSpec).
        """
        width = self.latent_width or 2 * max(1, self.kv_heads // ranks) * self.head_dim
        return math.ceil(self.attention_layers * max(self.stages(stages)) / self.layers) * width * kv_bytes


def folder_of(model: str) -> Path | None:
    """Find a model's folder, or its snapshot in the local Hugging Face cache."""
    if (Path(model) / "config.json").is_file():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache  # slow to import, and most models are folders

    try:
        cached = try_to_load_from_cache(model, "config.json")
    except ValueError:  # not the shape of a repository name
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def read_config(folder: Path) -> dict[str, object]:
    """Read config.json, with a multimodal model's `text_config` on top. Raises UnknownModelError."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnknownModelError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise UnknownModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UnknownModelError(f"{path} is not an object")
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def layer_kinds(config: Mapping[str, object]) -> tuple[str, ...]:
    """Return every layer's kind, if `layer_types` lists them."""
    kinds = config.get("layer_types") or config.get("layers_block_type")
    return tuple(map(str, kinds)) if isinstance(kinds, list) else ()


def _whole(config: Mapping[str, object], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:  # many models write null where they mean the default
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UnknownModelError(f"config.json: {key} should be a whole number, not {value!r}")
    return value


def shape_from_config(name: str, config: Mapping[str, object]) -> ModelShape:
    """Build a Llama-like model's shape, dense or with experts."""
    layers = _whole(config, "num_hidden_layers")
    hidden = _whole(config, "hidden_size")
    heads = _whole(config, "num_attention_heads")
    vocab = _whole(config, "vocab_size")
    if not (layers and hidden and heads and vocab):
        raise UnknownModelError("config.json: a model without layers, width, heads or vocabulary")
    kinds, length = layer_kinds(config), model_length(config)
    latent = _whole(config, "kv_lora_rank", 0)
    window = _whole(config, "sliding_window", _whole(config, "attention_chunk_size", 0))
    if config.get("use_sliding_window") is False:
        window = 0
    windowed = sum(kind in WINDOW_KINDS for kind in kinds) if kinds else layers
    key_width = _whole(config, "linear_num_key_heads", 0) * _whole(config, "linear_key_head_dim", 0)
    value_width = _whole(config, "linear_num_value_heads", 0) * _whole(config, "linear_value_head_dim", 0)
    experts = _whole(config, "num_experts", _whole(config, "num_local_experts", _whole(config, "n_routed_experts", 0)))
    intermediate = _whole(config, "intermediate_size", 4 * hidden)
    return ModelShape(
        name=name,
        layers=layers,
        attention_layers=layers - sum(kind in STATE_KINDS for kind in kinds),
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=_whole(config, "num_key_value_heads", heads),
        head_dim=_whole(config, "head_dim", hidden // heads),
        vocab=vocab,
        max_positions=2048 if length is None else length.own,
        mixer_parameters=hidden * (2 * key_width + 3 * value_width),
        experts=experts,
        experts_per_token=_whole(config, "num_experts_per_tok", 0) if experts else 0,
        expert_parameters=3 * hidden * _whole(config, "moe_intermediate_size", intermediate) if experts else 0,
        tied_embeddings=config.get("tie_word_embeddings") is True,
        weight_bytes=_weight_bytes(config),
        latent_width=latent + _whole(config, "qk_rope_head_dim", 0) if latent else 0,
        window_layers=windowed if window else 0,
        window=window,
    )


def _weight_bytes(config: Mapping[str, object]) -> float:
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return 2.0
    bits = quantization.get("bits", 8)
    return bits / 8 if isinstance(bits, int) else 1.0


@dataclass(frozen=True, slots=True)
class ModelLength:
    """Longest requests of a model, in tokens. Every vLLM serves `own` when it is asked for it, and some version
    serves it unasked. Above `most` every vLLM refuses to start."""

    own: int
    most: int


def model_length(config: Mapping[str, object], *, window_off: bool = False) -> ModelLength | None:
    """Derive the length as vLLM does (config/model.py _get_and_verify_max_len).

    `window_off` is `--disable-sliding-window`. None if config.json states no length: the default is then in the code of
    the model's class.
    """
    stated = [length for key in LENGTH_KEYS if (length := _positive(config, key)) is not None]
    if not stated:
        return None
    derived = _positive(config, "model_max_length") or min(stated)
    if window_off and (window := _positive(config, "sliding_window")) is not None:
        derived = min(derived, window)
    ropes = _ropes(config)
    own = most = derived
    for kind, rope in ropes if "gemma3" not in str(config.get("model_type")) else []:  # its length is scaled already
        factor = rope.get("factor")
        if kind in UNSCALED_ROPE or isinstance(factor, bool) or not isinstance(factor, (int, float)) or factor <= 0:
            continue
        if kind in YARN_ROPE:
            scaled = int((_positive(rope, "original_max_position_embeddings") or derived) * factor)
            own, most = min(own, scaled), max(most, scaled)
        else:
            own = most = int(derived * factor)
    if any(kind in ("su", "longrope") for kind, _ in ropes):
        own = min(own, _positive(config, "original_max_position_embeddings") or own)
    return ModelLength(own, most)


def _ropes(config: Mapping[str, object]) -> list[tuple[str, Mapping[str, object]]]:
    """Return each RoPE setting with its type. Some models have one per kind of layer."""
    whole = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(whole, Mapping):
        return []
    nested = [rope for rope in whole.values() if isinstance(rope, Mapping)]
    return [(str(rope.get("rope_type") or rope.get("type") or "default"), rope) for rope in nested or [whole]]


def _positive(config: Mapping[str, object], key: str) -> int | None:
    value = config.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
