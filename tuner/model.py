"""Shape and request length of a language model, derived from its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tuner.kv.config_json import (
    Config,
    UnknownModelError,
    as_whole,
    layer_count,
    listed,
    mapping,
    positive,
    whole,
)
from tuner.kv.formats import weight_bytes
from tuner.kv.kinds import LayerKind, layer_kinds
from tuner.kv.layers import attention_heads, head_width, hidden_width, kv_heads, latent_width

LENGTH_KEYS = (
    "max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "model_max_length", "max_target_positions",
    "max_sequence_length", "max_seq_length", "seq_len",
)  # fmt: skip
"""Spellings of the length in config.json (vLLM, transformers_utils/model_arch_config_convertor.py)."""

UNSCALED_ROPE = ("su", "longrope", "llama3")
"""RoPE types whose factor vLLM does not apply (config/model.py _get_and_verify_max_len)."""

MOST_FACTOR = 1e6
"""Largest factor of RoPE that is believed."""

YARN_ROPE = ("yarn", "deepseek_yarn", "deepseek_llama_scaling", "telechat3-yarn")
"""YaRN types. Older vLLM multiplies the original length by the factor, newer vLLM takes the stated length."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder-only model. Counts are parameters unless the name says bytes.

    Attributes:
        attention_layers: Layers with a KV cache. A hybrid model (Qwen3.5 and later) has fewer of them than `layers`.
        mixer_parameters: Parameters of one layer without attention, which keeps a fixed state.
        expert_parameters: Parameters of one expert of one layer. A dense model has 0 experts.
        latent_width: Elements that multi-head latent attention (MLA) keeps of a token in a layer; 0 where K and V are
            kept.
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
        """Return the layers of each pipeline stage."""
        return shared_out(self.layers, count)

    def kv_bytes_per_token(self, kv_bytes: int, ranks: int = 1) -> int:
        """Return one token's KV bytes on one of `ranks`, with each layer kept whole.

        They are 2 (K and V) · attention layers · KV heads · head dimension · `kv_bytes` of an element. tuner/kv has
        what vLLM's pages hold where layers differ.
        """
        width = self.latent_width or 2 * max(1, self.kv_heads // ranks) * self.head_dim
        return self.attention_layers * width * kv_bytes


def shared_out(layers: int, count: int) -> tuple[int, ...]:
    """Share layers out to pipeline stages (vLLM, distributed/utils.py get_pp_indices)."""
    stages = [layers // count] * count
    for i in range(layers % count):
        stages[-2 - i] += 1  # the last stage has the output matrix already
    return tuple(stages)


GGUF = ".gguf"


def folder_of(model: str, revision: object = None) -> Path | None:
    """Find a model's folder, or its snapshot in the local Hugging Face cache. None if there is no config.json."""
    if (Path(model) / "config.json").is_file():
        return Path(model)
    if Path(model).exists():
        return None
    from huggingface_hub import try_to_load_from_cache  # slow to import, and most models are folders
    from huggingface_hub.constants import HF_HUB_CACHE

    try:
        cached = try_to_load_from_cache(model, "config.json", revision=None if revision is None else str(revision))
    except ValueError:  # not the shape of a repository name
        return None
    if isinstance(cached, str):
        return Path(cached).parent
    # Without a file of what main is, as after a download of one revision, a single snapshot is that of the model.
    snapshots = list(Path(HF_HUB_CACHE).glob(f"models--{model.replace('/', '--')}/snapshots/*/config.json"))
    return snapshots[0].parent if cached is None and revision is None and len(snapshots) == 1 else None


def why_unread(model: str) -> str:
    """Say why there is no config.json to read."""
    if model.endswith(GGUF) or ":" in model:
        return f"{model} is a GGUF model, whose layers are not read here"
    if Path(model).exists():
        return f"{model} has no config.json; params.json is not read here"
    return f"{model} is not on this disk, so that its config.json cannot be read"


def shape_from_config(name: str, config: Config, quantised: Config | None = None) -> ModelShape:
    """Build a Llama-like model's shape, dense or with experts. `quantised` says how, if not in config.json."""
    layers, hidden, heads = layer_count(config), hidden_width(config), attention_heads(config)
    vocab = whole(config, "vocab_size", "padded_vocab_size")
    if not (hidden and heads and vocab):
        raise UnknownModelError("config.json: a model without width, heads or vocabulary")
    length = model_length(config)
    key_width = whole(config, "linear_num_key_heads", default=0) * whole(config, "linear_key_head_dim", default=0)
    value_width = whole(config, "linear_num_value_heads", default=0) * whole(config, "linear_value_head_dim", default=0)
    experts = _first(config, "num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    intermediate = _first(config, "intermediate_size", "ffn_hidden_size", "n_inner") or 4 * hidden
    return ModelShape(
        name=name,
        layers=layers,
        attention_layers=_attention_layers(config, layers),
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=kv_heads(config),
        head_dim=head_width(config),
        vocab=vocab,
        max_positions=2048 if length is None else length.own,
        mixer_parameters=hidden * (2 * key_width + 3 * value_width),
        experts=experts,
        experts_per_token=_first(config, "num_experts_per_tok", "num_experts_per_token") if experts else 0,
        expert_parameters=3 * hidden * (_first(config, "moe_intermediate_size") or intermediate) if experts else 0,
        tied_embeddings=config.get("tie_word_embeddings") is True,
        weight_bytes=weight_bytes(mapping(config, "quantization_config") if quantised is None else quantised),
        latent_width=latent_width(config),
    )


def _attention_layers(config: Config, layers: int) -> int:
    """Count the layers with attention. All of them where the kinds are not told."""
    try:
        kinds = layer_kinds(config)
    except UnknownModelError:
        return layers
    return sum(kind not in (LayerKind.STATE, LayerKind.NOTHING) for kind in kinds)


def _first(config: Config, *keys: str) -> int:
    """Return the first stated number, of a list for each layer the largest. 0 if there is none."""
    for key in keys:
        for value in listed(config, key) or [config.get(key)]:
            if as_whole(value):
                return max(as_whole(one) or 0 for one in listed(config, key) or [value])
    return 0


@dataclass(frozen=True, slots=True)
class ModelLength:
    """Longest requests of a model, in tokens. Every vLLM serves `own` when it is asked for it, and some version
    serves it unasked. Above `most` every vLLM refuses to start."""

    own: int
    most: int


def model_length(config: Config, *, window_off: bool = False) -> ModelLength | None:
    """Derive the length as vLLM does (config/model.py _get_and_verify_max_len).

    `window_off` is `--disable-sliding-window`. None if config.json states no length: the default is then in the code of
    the model's class.
    """
    stated = [length for key in LENGTH_KEYS if (length := positive(config, key)) is not None]
    if not stated:
        return None
    derived = positive(config, "model_max_length") or min(stated)
    if window_off and (window := positive(config, "sliding_window")) is not None:
        derived = min(derived, window)
    ropes = _ropes(config)
    own = most = derived
    for kind, rope in ropes if "gemma3" not in str(config.get("model_type")) else []:  # its length is scaled already
        factor = _factor(rope)
        if kind in UNSCALED_ROPE or factor is None:
            continue
        if kind in YARN_ROPE:
            scaled = int((positive(rope, "original_max_position_embeddings") or derived) * factor)
            own, most = min(own, scaled), max(most, scaled)
        else:
            own = most = int(derived * factor)
    if any(kind in ("su", "longrope") for kind, _ in ropes):
        own = min(own, positive(config, "original_max_position_embeddings") or own)
    return ModelLength(own, most)


def _factor(rope: Mapping[str, object]) -> float | None:
    """Return what a RoPE multiplies the length by. None if it does not say."""
    factor = rope.get("factor")
    if isinstance(factor, bool) or not isinstance(factor, (int, float)):
        return None
    return float(factor) if 0 < factor < MOST_FACTOR else None


def _ropes(config: Config) -> list[tuple[str, Mapping[str, object]]]:
    """Return each RoPE setting with its type. Some models have one per kind of layer."""
    found: list[Mapping[str, object]] = []
    for key in ("rope_scaling", "rope_parameters"):
        stated = mapping(config, key)
        found += [rope for rope in stated.values() if isinstance(rope, Mapping)] or ([stated] if stated else [])
    return [(str(rope.get("rope_type") or rope.get("type") or "default"), rope) for rope in found]
