"""The shape of a language model: what config.json says, as parameters, FLOPs and KV bytes per token."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path


class UnknownModelError(ValueError):
    """Neither a folder with a config.json nor one of the shapes in PRESETS; the text is transformers' own."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder-only model. Counts are parameters unless the name says bytes.

    `attention_layers` are the layers with a KV cache; a hybrid model (Qwen3.5 and later) has fewer of them than
    `layers`, its other layers keep a fixed state and are counted in `mixer_parameters` alone.
    `expert_parameters` is one expert of one layer; 0 experts means a dense model.
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

    def kv_bytes_per_token(self, kv_bytes: int) -> int:
        """2 (K and V) · layers with attention · KV heads · head dimension · bytes of an element, over all ranks."""
        return 2 * self.attention_layers * self.kv_heads * self.head_dim * kv_bytes


# Shapes from the models' published config.json. Qwen3.6-27B: model card of Qwen3.5/3.6-27B (64 layers, three Gated
# DeltaNet to one gated attention; 16 key and 48 value heads of 128). The attention gate's projection, 0.5 of its 27 B,
# is left out.
PRESETS: Mapping[str, ModelShape] = {
    shape.name: shape
    for shape in (
        ModelShape("Qwen/Qwen3-0.6B", 28, 28, 1024, 3072, 16, 8, 128, 151936, 40960, tied_embeddings=True),
        ModelShape("Qwen/Qwen3-8B", 36, 36, 4096, 12288, 32, 8, 128, 151936, 40960),
        ModelShape("Qwen/Qwen3-32B", 64, 64, 5120, 25600, 64, 8, 128, 151936, 40960),
        ModelShape(
            "Qwen/Qwen3.6-27B", 64, 16, 5120, 17408, 24, 4, 256, 248320, 262144,
            mixer_parameters=5120 * (2 * 16 * 128 + 3 * 48 * 128),
        ),
        ModelShape("meta-llama/Llama-3.1-8B-Instruct", 32, 32, 4096, 14336, 32, 8, 128, 128256, 131072),
        ModelShape("meta-llama/Llama-3.3-70B-Instruct", 80, 80, 8192, 28672, 64, 8, 128, 128256, 131072),
        ModelShape(
            "Qwen/Qwen3-30B-A3B", 48, 48, 2048, 6144, 32, 4, 128, 151936, 40960,
            experts=128, experts_per_token=8, expert_parameters=3 * 2048 * 768,
        ),
    )
}  # fmt: skip


def load_model(name_or_folder: str, dtype: str = "auto") -> ModelShape:
    """The shape for `vllm serve NAME --dtype DTYPE`: a folder's config.json, else a preset. Raises UnknownModelError.

    `auto` runs everything at 16 bits, FP32 checkpoints included, as vLLM does.
    """
    config = Path(name_or_folder) / "config.json"
    if config.is_file():
        shape = shape_from_config(name_or_folder, json.loads(config.read_text()))
        if dtype in ("float", "float32"):
            weight_bytes = 4.0 if shape.weight_bytes == 2.0 else shape.weight_bytes
            return replace(shape, activation_bytes=4, weight_bytes=weight_bytes)
        return shape
    if name_or_folder in PRESETS:
        return PRESETS[name_or_folder]
    raise UnknownModelError(
        f"{name_or_folder} is not a local folder and is not a valid model identifier listed on "
        "'https://huggingface.co/models'"
    )


def _whole(config: Mapping[str, object], key: str, default: int | None = None) -> int:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UnknownModelError(f"config.json: {key} should be a whole number, not {value!r}")
    return value


def shape_from_config(name: str, config: Mapping[str, object]) -> ModelShape:
    """A Llama-like config.json (dense or mixture of experts; `text_config` of a multimodal model is followed)."""
    text = config.get("text_config")
    if isinstance(text, Mapping):
        config = {**config, **text}
    layers = _whole(config, "num_hidden_layers")
    hidden = _whole(config, "hidden_size")
    heads = _whole(config, "num_attention_heads")
    kinds = config.get("layer_types")
    linear = sum(kind == "linear_attention" for kind in kinds) if isinstance(kinds, list) else 0
    key_width = _whole(config, "linear_num_key_heads", 0) * _whole(config, "linear_key_head_dim", 0)
    value_width = _whole(config, "linear_num_value_heads", 0) * _whole(config, "linear_value_head_dim", 0)
    experts = _whole(config, "num_experts", _whole(config, "num_local_experts", 0))
    intermediate = _whole(config, "intermediate_size", 4 * hidden)
    return ModelShape(
        name=name,
        layers=layers,
        attention_layers=layers - linear,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=_whole(config, "num_key_value_heads", heads),
        head_dim=_whole(config, "head_dim", hidden // heads),
        vocab=_whole(config, "vocab_size"),
        max_positions=_whole(config, "max_position_embeddings", 2048),
        mixer_parameters=hidden * (2 * key_width + 3 * value_width),
        experts=experts,
        experts_per_token=_whole(config, "num_experts_per_tok", 0) if experts else 0,
        expert_parameters=3 * hidden * _whole(config, "moe_intermediate_size", intermediate) if experts else 0,
        tied_embeddings=config.get("tie_word_embeddings") is True,
        weight_bytes=_weight_bytes(config),
    )


def _weight_bytes(config: Mapping[str, object]) -> float:
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return 2.0
    bits = quantization.get("bits", 8)
    return bits / 8 if isinstance(bits, int) else 1.0
