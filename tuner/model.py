"""The shape of a language model: what config.json says, as parameters, FLOPs and KV bytes per token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

STATE_KINDS = ("linear_attention", "mamba", "mamba2", "conv", "recurrent")
"""Layers that keep a fixed state for a sequence instead of a KV cache that grows with it."""

WINDOW_KINDS = ("sliding_attention", "chunked_attention")


class UnknownModelError(ValueError):
    """No config.json at hand, or one that is not understood; the text says which."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder-only model. Counts are parameters unless the name says bytes.

    `attention_layers` are the layers with a KV cache; a hybrid model (Qwen3.5 and later) has fewer of them than
    `layers`, its other layers keep a fixed state and are counted in `mixer_parameters` alone.
    `expert_parameters` is one expert of one layer; 0 experts means a dense model.
    `latent_width` is what multi-head latent attention (MLA) keeps of a token in a layer, in elements; 0 means that K
    and V are kept. `window_layers` of the attention layers look back `window` tokens only.
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
        """With `--dtype DTYPE`. `auto` runs everything at 16 bits, FP32 checkpoints included, as vLLM does."""
        if dtype not in ("float", "float32"):
            return self
        return replace(self, activation_bytes=4, weight_bytes=4.0 if self.weight_bytes == 2.0 else self.weight_bytes)

    @property
    def attention_parameters(self) -> int:
        """Q, K, V and O of one layer that has attention."""
        return self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)

    @property
    def shared_parameters(self) -> int:
        """All layers without the experts and without the embeddings: read for every step, multiplied for every
        token."""
        mixers = self.attention_layers * self.attention_parameters
        mixers += (self.layers - self.attention_layers) * self.mixer_parameters
        feed_forward = 0 if self.experts else 3 * self.hidden * self.intermediate
        return mixers + self.layers * feed_forward

    @property
    def head_parameters(self) -> int:
        """The output matrix: multiplied only for positions that are sampled."""
        return self.hidden * self.vocab

    @property
    def total_parameters(self) -> int:
        embeddings = self.head_parameters * (1 if self.tied_embeddings else 2)
        return self.shared_parameters + self.layers * self.experts * self.expert_parameters + embeddings

    @property
    def weights_bytes(self) -> float:
        """All weights at rest. Embedding and head stay at the activation's width in a quantised model."""
        outside = self.head_parameters * (1 if self.tied_embeddings else 2)
        return (self.total_parameters - outside) * self.weight_bytes + outside * self.activation_bytes

    def weights_read_bytes(self, tokens: int) -> float:
        """Bytes of weights that a step over `tokens` tokens has to read (experts: those that at least one token
        chose)."""
        read = self.shared_parameters * self.weight_bytes + self.head_parameters * self.activation_bytes
        if self.experts:
            untouched = (1.0 - self.experts_per_token / self.experts) ** tokens
            read += self.layers * self.experts * self.expert_parameters * self.weight_bytes * (1.0 - untouched)
        return read

    def flops(self, tokens: int, sampled: int) -> float:
        """Multiply-adds of the matrices, two FLOPs each; attention over the context is not in here."""
        active = self.shared_parameters + self.layers * self.experts_per_token * self.expert_parameters
        return 2.0 * (active * tokens + self.head_parameters * sampled)

    def forward_bytes(self, tokens: int, ranks: int) -> int:
        """Peak of a step's activations on one rank, logits aside: four hidden states are alive at once (residual,
        input, output, all-reduce buffer); gate, up and their product are split over the ranks."""
        return tokens * (4 * self.hidden + 3 * self.intermediate // ranks) * self.activation_bytes

    def kv_bytes_per_token(self, kv_bytes: int, ranks: int = 1) -> int:
        """On one of `ranks`: 2 (K and V) · layers with attention · KV heads · head dimension · bytes of an element.

        Ranks share the KV heads; with more ranks than heads each keeps a copy of one. MLA keeps one latent vector for
        all heads, whole on every rank (vLLM, v1/kv_cache_interface.py MLAAttentionSpec).
        """
        width = self.latent_width or 2 * max(1, self.kv_heads // ranks) * self.head_dim
        return self.attention_layers * width * kv_bytes


def read_config(folder: Path) -> dict[str, object]:
    """config.json, with the `text_config` of a multimodal model laid over it. Raises UnknownModelError."""
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
    """The kind of every layer where config.json lists them (transformers' `layer_types`), else empty."""
    kinds = config.get("layer_types") or config.get("layers_block_type")
    return tuple(map(str, kinds)) if isinstance(kinds, list) else ()


def _whole(config: Mapping[str, object], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:  # many models write null for "as usual"
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UnknownModelError(f"config.json: {key} should be a whole number, not {value!r}")
    return value


def shape_from_config(name: str, config: Mapping[str, object]) -> ModelShape:
    """A Llama-like model, dense or mixture of experts, from what read_config returns."""
    layers = _whole(config, "num_hidden_layers")
    hidden = _whole(config, "hidden_size")
    heads = _whole(config, "num_attention_heads")
    vocab = _whole(config, "vocab_size")
    if not (layers and hidden and heads and vocab):
        raise UnknownModelError("config.json: a model without layers, width, heads or vocabulary")
    kinds = layer_kinds(config)
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
        max_positions=_whole(config, "max_position_embeddings", 2048),
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
