"""Memory of a server: weights, KV cache, what fits. Calibrated from start-up logs.

It rules out, orders and explains; it measures nothing. An estimate is a range, `Span`, until a first start's log
replaces it.

With pipeline parallelism it is that of the fullest stage.

On each GPU: memory · gpu-memory-utilization = weights + overhead + KV cache (vLLM, v1/worker/gpu_worker.py
determine_available_memory). The overhead is a profiling step's activations and copies of the logits, CUDA graphs,
memory outside torch, and the driver's own share.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from tuner.model import (
    STATE_KINDS,
    WINDOW_KINDS,
    ModelShape,
    UnknownModelError,
    layer_kinds,
    read_config,
    shape_from_config,
)
from tuner.vllm import knobs

GIB = 1 << 30

LOGITS_COPIES = (2, 10)
"""FP32 copies of the logits in the sampler's profiling run: two without sorting, up to ten with top-k and top-p.
Seen: 1.26 GiB of activations for Llama-3-8B with 256 sequences (vLLM pull request 10511); ten copies are 1.22 GiB."""

FIXED_BYTES = (int(0.45 * GIB), int(1.75 * GIB))
"""Fixed overhead. Outside torch 0.15 to 0.3 GiB (vLLM pull request 12126: 0.16), CUDA graphs 0 (eager) to 0.75 GiB,
and 0.3 to 0.7 GiB that NVML counts and CUDA does not hand out (an 80 GB H100 has 79.65 and 79.22 GiB)."""

HYBRID_KEYS = ("hybrid_override_pattern", "attn_layer_period", "mamba_d_state", "mamba_expand", "ssm_cfg", "state_size")
"""Keys of models with state layers. Without a list of kinds it is unknown which of their layers have attention."""

VARIED_KEYS = ("block_configs", "attn_type_list", "compress_ratios", "index_head_dim", "num_kv_shared_layers")
"""Keys of models whose layers differ in what they keep of a token."""

WEIGHT_KEYS = ("kv_lora_rank", "n_shared_experts", "shared_expert_intermediate_size", "first_k_dense_replace")
"""Keys of architectures whose parameters are not counted here. Their weights are known from files alone. Their
weights are known from files alone."""

SURELY_SHORT = 0.9
"""Share of a request's tokens that surely cannot hold it. Free GPU memory differs by some MiB between starts."""

UNUSABLE_SHARE = 0.02
"""Upper bound on the share of NVML's total memory that the driver reserves. It is 1.5 % on 24 and 32 GB cards, less
on larger ones. gpu-memory-utilization is relative to what CUDA reports."""

OTHER_PARTS = ("vision_config", "audio_config")

QUANTISED_ON_LOAD = {"fp8": 1.0, "bitsandbytes": 0.5}
"""Bytes of a weight after quantisation on load."""


@dataclass(frozen=True, slots=True)
class Span:
    """Range from the least to the most. Equal ends mean that nothing is estimated."""

    low: int
    high: int


class WeightsFrom(StrEnum):
    FILES = "its weight files"
    CONFIG = "config.json"
    LOG = "the log of the first start"
    NOWHERE = "nowhere"


@dataclass(frozen=True, slots=True)
class ServerFlags:
    """Flags that decide a server's memory, with vLLM's defaults. `mentioned` names all flags that the user gave."""

    max_num_batched_tokens: int
    max_num_seqs: int
    block_tokens: int
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    quantization: str | None = None
    mentioned: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """Memory of one GPU of a server. `weights_bytes` is None if neither files nor config.json give it.
    `not_modelled` are whole sentences, each with the direction of the error if it is known."""

    weights_bytes: int | None
    weights_from: WeightsFrom
    kv_bytes_per_token: float
    block_tokens: int
    overhead_bytes: Span
    not_modelled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class KvRoom:
    """KV cache on one GPU, in bytes and in blocks of `block_tokens`. Every rank of a server holds the same tokens."""

    kv_bytes: Span
    blocks: Span
    block_tokens: int

    @property
    def kv_tokens(self) -> Span:
        """Return the tokens as vLLM logs them ("KV cache size")."""
        return Span(self.blocks.low * self.block_tokens, self.blocks.high * self.block_tokens)

    def sequences(self, tokens_each: float) -> Span:
        """Return how many equal requests fit without preemption. A request has whole blocks, and vLLM's null block
        serves none."""
        each = math.ceil(tokens_each / self.block_tokens)
        return Span(max(0, self.blocks.low - 1) // each, max(0, self.blocks.high - 1) // each)

    def sequences_of_mean(self, tokens: float) -> int:
        """Return how many requests of a mean length surely fit. The last block of each is half empty (128 tokens on
        a CPU)."""
        return int(max(0, self.blocks.low - 1) / (tokens / self.block_tokens + 0.5))


@dataclass(frozen=True, slots=True)
class FirstStart:
    """Figures from the log of a start. `kv_gib` has two decimals. With a given `kv_bytes`, `utilization` is None."""

    kv_tokens: int
    kv_gib: float | None = None
    weights_gib: float | None = None
    utilization: float | None = None
    kv_bytes: int | None = None


def model_memory(folder: Path, flags: ServerFlags) -> ModelMemory:
    """Estimate before any start. Raises UnknownModelError if the KV bytes of a token are not known."""
    config = read_config(folder)
    kinds = layer_kinds(config)
    hybrid = [key for key in HYBRID_KEYS if config.get(key)]
    if hybrid and not kinds:
        raise UnknownModelError(f"{hybrid[0]} in config.json: which of the layers keep a KV cache is not read from it")
    shape = shape_from_config(str(folder), config).at(flags.dtype)
    element, notes = _kv_element(config, shape, flags)
    per_token = shape.kv_bytes_per_token(element, flags.tensor_parallel_size, flags.pipeline_parallel_size)
    if not per_token:
        raise UnknownModelError("no layer of the model keeps a KV cache")
    running = _quantised(config, shape, flags)
    weights, source = _weights(folder, config, running)
    logits = min(flags.max_num_seqs, flags.max_num_batched_tokens) * shape.vocab * 4
    forward = shape.forward_bytes(flags.max_num_batched_tokens, flags.tensor_parallel_size)
    low, high = (forward + n * logits + more for n, more in zip(LOGITS_COPIES, FIXED_BYTES, strict=True))
    return ModelMemory(
        weights_bytes=None
        if weights is None
        else _of_fullest_stage(weights, shape, flags) // flags.tensor_parallel_size,
        weights_from=source,
        kv_bytes_per_token=per_token,
        block_tokens=flags.block_tokens,
        overhead_bytes=Span(low, high),
        not_modelled=(*_layers(config, shape, kinds), *notes, *_other(config, source, running is shape, flags)),
    )


def at_utilization(memory: ModelMemory, gpu_bytes: int, utilization: float) -> KvRoom | None:
    """Return the room at a utilization of the smallest GPU. None if the weights are not known."""
    if memory.weights_bytes is None:
        return None
    left = int(gpu_bytes * utilization) - memory.weights_bytes
    return _room(memory, Span(left - memory.overhead_bytes.high, left - memory.overhead_bytes.low))


def at_kv_bytes(memory: ModelMemory, kv_bytes: int) -> KvRoom:
    """Return the room at kv-cache-memory-bytes of each GPU. Nothing is estimated then."""
    return _room(memory, Span(kv_bytes, kv_bytes))


def calibrated(memory: ModelMemory, first: FirstStart, gpu_bytes: int | None) -> ModelMemory:
    """Replace the estimates by a first start's log, exact to a block at that start's token budget. If bytes of a
    token differ from config.json by more than rounding, the log is right: it counts as vLLM's scheduler does."""
    per_token = memory.kv_bytes_per_token
    kv_bytes = first.kv_bytes or (first.kv_gib or 0.0) * GIB
    # Neither two decimals of a GiB nor a last block that did not fit are evidence; nor is one worker's line of several.
    rounding = 0.02 + memory.block_tokens / first.kv_tokens + (0.0 if first.kv_bytes else 0.005 * GIB / (kv_bytes or 1))
    if kv_bytes and abs(kv_bytes / first.kv_tokens / per_token - 1) > rounding:
        per_token = kv_bytes / first.kv_tokens
    known = replace(memory, kv_bytes_per_token=per_token)
    if first.utilization is None or gpu_bytes is None:
        return known
    weights = memory.weights_bytes or 0
    if first.weights_gib is not None:
        weights = int(first.weights_gib * GIB)
    rest = int(gpu_bytes * first.utilization) - weights - math.ceil(first.kv_tokens * per_token)
    return replace(known, weights_bytes=weights, weights_from=WeightsFrom.LOG, overhead_bytes=Span(rest, rest))


def least_for(memory: ModelMemory, first: FirstStart, gpu_bytes: int | None, tokens: float) -> float | None:
    """Return the setting of `first`'s kind below which a request of so many tokens surely does not fit.

    `memory` is calibrated by `first`. A share of the memory holds for servers that use at least as much of it
    outside the KV cache as that start did. None if `gpu_bytes` is not known.
    """
    needed = SURELY_SHORT * tokens * memory.kv_bytes_per_token
    if first.utilization is None:
        return needed
    if gpu_bytes is None:
        return None
    spare = first.kv_tokens * memory.kv_bytes_per_token - needed
    return first.utilization - spare / (gpu_bytes * (1 - UNUSABLE_SHARE))


def _room(memory: ModelMemory, kv_bytes: Span) -> KvRoom:
    block_bytes = memory.kv_bytes_per_token * memory.block_tokens
    low, high = max(0, kv_bytes.low), max(0, kv_bytes.high)
    return KvRoom(Span(low, high), Span(int(low // block_bytes), int(high // block_bytes)), memory.block_tokens)


def _kv_element(config: Mapping[str, object], shape: ModelShape, flags: ServerFlags) -> tuple[int, list[str]]:
    """Return the bytes of one KV cache element (vLLM, config/cache.py CacheDType)."""
    kind = flags.kv_cache_dtype
    if kind == "auto":
        quantization = config.get("quantization_config")
        own = quantization if isinstance(quantization, Mapping) else {}
        if own.get("kv_cache_scheme") or own.get("kv_cache_quant_algo"):
            return shape.activation_bytes, ["the checkpoint's own KV cache format: FP8 would hold twice the tokens"]
        return shape.activation_bytes, []
    if kind in ("float16", "bfloat16"):
        return 2, []
    if kind.startswith(("fp8", "int8")) and not kind.endswith("ds_mla"):
        return 1, [f"the scales of {kind}: somewhat fewer tokens"] if kind.endswith("per_token_head") else []
    raise UnknownModelError(f"--{knobs.KV_CACHE_DTYPE} {kind}: its bytes of a token are not known here")


def _quantised(config: Mapping[str, object], shape: ModelShape, flags: ServerFlags) -> ModelShape:
    if config.get("quantization_config") or flags.quantization not in QUANTISED_ON_LOAD:
        return shape
    return replace(shape, weight_bytes=QUANTISED_ON_LOAD[flags.quantization])


def _weights(folder: Path, config: Mapping[str, object], shape: ModelShape) -> tuple[int | None, WeightsFrom]:
    """Return all weights in memory. Files are scaled as loading does: FP32 to 16 bits, 16 bits to FP8."""
    stored = shape_from_config(shape.name, config).at(str(config.get("dtype") or config.get("torch_dtype")))
    if files := _file_bytes(folder):
        return int(files * shape.weights_bytes / stored.weights_bytes), WeightsFrom.FILES
    if any(config.get(key) for key in WEIGHT_KEYS):
        return None, WeightsFrom.NOWHERE
    return int(shape.weights_bytes), WeightsFrom.CONFIG


def _of_fullest_stage(weights: int, shape: ModelShape, flags: ServerFlags) -> int:
    """Return the weights of the fullest pipeline stage. The first has the embedding, the last the output matrix."""
    layers = shape.stages(flags.pipeline_parallel_size)
    if len(layers) == 1:
        return weights
    matrix = shape.head_parameters * shape.activation_bytes
    each = (weights - matrix * (1 if shape.tied_embeddings else 2)) / shape.layers
    return int(max(each * max(layers), each * max(layers[0], layers[-1]) + matrix))


def _file_bytes(folder: Path) -> int:
    """Sum the weight files, or take the sum that their index states. consolidated.safetensors holds the same weights
    in another format."""
    files = [p for p in folder.glob("*.safetensors") if not p.name.startswith("consolidated")]
    return _index_bytes(folder) or sum(p.stat().st_size for p in files)


def _index_bytes(folder: Path) -> int:
    """Return the bytes that the index of the weight files states, 0 if there is none."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        total = index["metadata"]["total_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return total if isinstance(total, int) and total > 0 else 0


def _layers(config: Mapping[str, object], shape: ModelShape, kinds: tuple[str, ...]) -> list[str]:
    notes = []
    if state := shape.layers - shape.attention_layers:
        notes.append(
            f"the fixed state that {state} of {shape.layers} layers keep for every sequence: fewer tokens than shown"
        )
    if shape.window_layers:
        which = f"{shape.window_layers} of {shape.layers} layers" if kinds else "its layers or some of them"
        notes.append(
            f"the window of {shape.window:,} tokens in {which}, counted as if they kept everything: "
            "longer requests take less than shown"
        )
    strange = sorted({k for k in kinds if k not in (*STATE_KINDS, *WINDOW_KINDS, "full_attention", "attention")})
    if strange:
        notes.append(f"layers of the kind {', '.join(strange)}, counted as full attention")
    return notes + [f"{key} in config.json: layers differ in what they keep" for key in VARIED_KEYS if config.get(key)]


def _other(config: Mapping[str, object], source: WeightsFrom, as_stored: bool, flags: ServerFlags) -> list[str]:
    notes = []
    if source is WeightsFrom.CONFIG:
        notes += [f"the weights of {key}: fewer tokens than shown" for key in OTHER_PARTS if config.get(key)]
    if flags.quantization and as_stored and not config.get("quantization_config"):
        notes.append(f"--{knobs.QUANTIZATION} {flags.quantization}: the weights are counted as they are stored")
    return notes + [f"--{flag}" for flag in knobs.CHANGE_MEMORY if flag in flags.mentioned]
