"""Memory of a server: weights, KV cache, what fits. Calibrated from start-up logs.

It rules out, orders and explains; it measures nothing. An estimate is a range, `Span`, until a first start's log
replaces it.

With pipeline parallelism it is that of the fullest stage.

On each GPU: memory · gpu-memory-utilization = weights + overhead + KV cache (vLLM, v1/worker/gpu_worker.py
determine_available_memory). The overhead is a profiling step's activations and copies of the logits, CUDA graphs,
memory outside torch, and the driver's own share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from tuner.kv.config_json import Config, UnknownModelError, read_config
from tuner.kv.formats import KV_BYTES, SCALED_BY_HEAD, own_kv_bytes, quantization
from tuner.kv.layers import DS_MLA_BYTES, KvElement, LatentPacking, decoder_layers, layer_caches, with_draft_layers
from tuner.kv.pages import Paging, PagingRules, linear_paging, paging
from tuner.kv.weight_files import weight_file_bytes
from tuner.model import ModelShape, model_length, shape_from_config, shared_out
from tuner.vllm import knobs
from tuner.vllm.speculation import Draft

GIB = 1 << 30

LOGITS_COPIES = (2, 10)
"""FP32 copies of the logits in the sampler's profiling run: two without sorting, up to ten with top-k and top-p.
Seen: 1.26 GiB of activations for Llama-3-8B with 256 sequences (vLLM pull request 10511); ten copies are 1.22 GiB."""

FIXED_BYTES = (int(0.45 * GIB), int(1.75 * GIB))
"""Fixed overhead. Outside torch 0.15 to 0.3 GiB (vLLM pull request 12126: 0.16), CUDA graphs 0 (eager) to 0.75 GiB,
and 0.3 to 0.7 GiB that NVML counts and CUDA does not hand out (an 80 GB H100 has 79.65 and 79.22 GiB)."""

WEIGHT_KEYS = ("kv_lora_rank", "n_shared_experts", "shared_expert_intermediate_size", "first_k_dense_replace")
"""Keys of architectures whose parameters are not counted here. Their weights are known from files alone."""

SURELY_SHORT = 0.9
"""Share of a request's tokens that surely cannot hold it. Free GPU memory differs by some MiB between starts."""

LINES_AGREE = 0.02
"""Share by which the two lines of a log on the KV cache may differ."""

UNKNOWN_LENGTH = 8192
"""Tokens of the longest request where config.json does not state it."""

UNUSABLE_SHARE = 0.02
"""Upper bound on the share of NVML's total memory that the driver reserves. It is 1.5 % on 24 and 32 GB cards, less
on larger ones. gpu-memory-utilization is relative to what CUDA reports."""

UNMODELLED_FLAGS = (*knobs.CHANGE_MEMORY, *(flag for flag in knobs.CHANGE_CONFIG if flag != knobs.REVISION))
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
    max_model_len: int | None = None
    caches_states: bool = True
    steps_in_flight: int = 2
    by_kind: bool = True
    state_dtype: str = "auto"
    packing: LatentPacking = LatentPacking.IF_QUANTISED
    draft: Draft = field(default_factory=Draft)


@dataclass(frozen=True, slots=True)
class ModelMemory:
    """Memory of one GPU of a server.

    Attributes:
        weights_bytes: None if neither files nor config.json give it.
        paging: Blocks of the KV cache. None if what the layers keep is not known.
        longest: Tokens of the longest request.
        not_modelled: Whole sentences, each with the direction of the error if it is known.
        unknown_kv: Reason for a `paging` that is None.
    """

    weights_bytes: int | None
    weights_from: WeightsFrom
    paging: Paging | None
    longest: int
    overhead_bytes: Span
    not_modelled: tuple[str, ...] = ()
    unknown_kv: str | None = None

    @property
    def kv_bytes_per_token(self) -> float | None:
        """Bytes of a token of the longest request, as vLLM's log counts. None if they are not known."""
        return None if self.paging is None else self.paging.bytes_per_token(self.longest)


@dataclass(frozen=True, slots=True)
class KvRoom:
    """KV cache on one GPU, in bytes and in blocks. Every rank of a server holds the same tokens."""

    kv_bytes: Span
    blocks: Span
    paging: Paging
    longest: int

    @property
    def kv_tokens(self) -> Span:
        """Return the tokens as vLLM logs them ("KV cache size")."""
        return self.tokens_of(self.longest)

    def tokens_of(self, longest: int) -> Span:
        """Return the tokens as vLLM logs them where requests may be so long."""
        low, high = (self.paging.logged_tokens(blocks, longest) for blocks in (self.blocks.low, self.blocks.high))
        return Span(low, high)

    def sequences(self, tokens_each: float) -> Span:
        """Return how many equal requests fit without preemption. A request has whole blocks, and vLLM's null block
        serves none."""
        each = self.paging.blocks(math.ceil(tokens_each))
        return Span(max(0, self.blocks.low - 1) // each, max(0, self.blocks.high - 1) // each)

    def surely_admits(self, tokens: int) -> bool:
        """Return True if vLLM surely starts with so long a request allowed."""
        return self.paging.reserved(tokens) < self.blocks.low


@dataclass(frozen=True, slots=True)
class FirstStart:
    """Figures from the log of a start. `kv_gib` has two decimals. With a given `kv_bytes`, `utilization` is None.

    `concurrency` requests of `length` tokens fit, says the log; `block_tokens` are those that it set. `step_tokens` is
    its --max-num-batched-tokens, None if it is the memory's.
    """

    kv_tokens: int
    kv_gib: float | None = None
    weights_gib: float | None = None
    utilization: float | None = None
    kv_bytes: int | None = None
    concurrency: float | None = None
    length: int | None = None
    block_tokens: int | None = None
    step_tokens: int | None = None

    def tokens(self, longest: int) -> float:
        """Return the tokens of the KV cache. Up to 0.20.0 the line "KV cache size" counts the blocks of one group
        alone, while "Maximum concurrency" is right: where they differ, the second is believed."""
        if self.concurrency is None:
            return self.kv_tokens
        by_requests = self.concurrency * (self.length or longest)
        differ = abs(by_requests - self.kv_tokens) > LINES_AGREE * self.kv_tokens + 0.005 * (self.length or longest)
        return by_requests if differ else self.kv_tokens


def model_memory(folder: Path, flags: ServerFlags) -> ModelMemory:
    """Estimate before any start. Raises UnknownModelError if config.json is not that of a language model."""
    config = read_config(folder)
    own = quantization(folder, config)
    shape = shape_from_config(str(folder), config, own).at(flags.dtype)
    length = model_length(config)
    try:
        pages, unknown = _paging(folder, config, shape, flags), None
    except UnknownModelError as error:
        pages, unknown = None, str(error)
    running = _quantised(own, shape, flags)
    weights, source = _weights(folder, config, running, shape_from_config(str(folder), config, own))
    logits = min(flags.max_num_seqs, flags.max_num_batched_tokens) * shape.vocab * 4
    forward = shape.forward_bytes(flags.max_num_batched_tokens, flags.tensor_parallel_size)
    low, high = (forward + n * logits + more for n, more in zip(LOGITS_COPIES, FIXED_BYTES, strict=True))
    return ModelMemory(
        weights_bytes=None
        if weights is None
        else _of_fullest_stage(weights, shape, flags) // flags.tensor_parallel_size,
        weights_from=source,
        paging=pages,
        longest=flags.max_model_len or (UNKNOWN_LENGTH if length is None else length.own),
        overhead_bytes=Span(low, high),
        not_modelled=_not_modelled(config, own, source, running is shape, flags),
        unknown_kv=unknown,
    )


def at_utilization(memory: ModelMemory, gpu_bytes: int, utilization: float) -> KvRoom | None:
    """Return the room at a utilization of the smallest GPU. None if weights or bytes of a token are not known."""
    if memory.weights_bytes is None:
        return None
    left = int(gpu_bytes * utilization) - memory.weights_bytes
    return _room(memory, Span(left - memory.overhead_bytes.high, left - memory.overhead_bytes.low))


def at_kv_bytes(memory: ModelMemory, kv_bytes: int) -> KvRoom | None:
    """Return the room at kv-cache-memory-bytes of each GPU. Nothing is estimated then. None if the bytes of a token
    are not known."""
    return _room(memory, Span(kv_bytes, kv_bytes))


def calibrated(memory: ModelMemory, first: FirstStart, gpu_bytes: int | None) -> ModelMemory:
    """Replace the estimates by a first start's log, exact to a block at that start's token budget. If its blocks are
    larger than config.json tells by more than rounding, the log is right: it counts as vLLM's scheduler does."""
    length = first.length or memory.longest
    pages = _calibrated_paging(memory.paging, first, length)
    if pages is None:
        return memory
    known = replace(memory, paging=pages)
    if first.utilization is None or gpu_bytes is None:
        return known
    weights = memory.weights_bytes or 0
    if first.weights_gib is not None:
        weights = int(first.weights_gib * GIB)
    rest = int(gpu_bytes * first.utilization) - weights - math.ceil(_pool_bytes(pages, first, length))
    return replace(known, weights_bytes=weights, weights_from=WeightsFrom.LOG, overhead_bytes=Span(rest, rest))


def _pool_bytes(pages: Paging, first: FirstStart, length: int) -> float:
    """Return the bytes of the blocks that a log tells of."""
    return first.tokens(length) * pages.with_steps_of(first.step_tokens).bytes_per_token(length)


def _calibrated_paging(pages: Paging | None, first: FirstStart, length: int) -> Paging | None:
    """Return the paging that explains a log. Without a model of it every token costs the same."""
    tokens, kv_bytes = first.tokens(length), first.kv_bytes or (first.kv_gib or 0.0) * GIB
    if pages is None:
        return linear_paging(kv_bytes / tokens, first.block_tokens or 1) if kv_bytes else None
    if first.block_tokens:
        pages = pages.with_block_tokens(first.block_tokens)
    if not kv_bytes:
        return pages
    pages = min(pages.ways_to_count, key=lambda way: abs(math.log(_pool_bytes(way, first, length) / kv_bytes)))
    # Neither two decimals of a GiB nor a last block that did not fit are evidence; nor is one worker's line of several.
    rounding = 0.02 + pages.block_bytes / kv_bytes + (0.0 if first.kv_bytes else 0.005 * GIB / kv_bytes)
    larger = kv_bytes / _pool_bytes(pages, first, length)
    return replace(pages, block_bytes=pages.block_bytes * larger) if abs(larger - 1) > rounding else pages


def least_for(memory: ModelMemory, first: FirstStart, gpu_bytes: int | None, tokens: int) -> float | None:
    """Return the setting of `first`'s kind below which a request of so many tokens surely does not fit.

    `memory` is calibrated by `first`. A share of the memory holds for servers that use at least as much of it
    outside the KV cache as that start did. None if `gpu_bytes` or the bytes of a token are not known.
    """
    if memory.paging is None:
        return None
    pages = memory.paging.with_steps_of(first.step_tokens)
    needed = SURELY_SHORT * tokens * pages.bytes_per_token(tokens)
    if first.utilization is None:
        return needed
    if gpu_bytes is None:
        return None
    spare = _pool_bytes(pages, first, first.length or memory.longest) - needed
    return first.utilization - spare / (gpu_bytes * (1 - UNUSABLE_SHARE))


def _room(memory: ModelMemory, kv_bytes: Span) -> KvRoom | None:
    if (pages := memory.paging) is None:
        return None
    low, high = max(0, kv_bytes.low), max(0, kv_bytes.high)
    blocks = Span(int(low // pages.block_bytes), int(high // pages.block_bytes))
    return KvRoom(Span(low, high), blocks, pages, memory.longest)


def _paging(folder: Path, config: Config, shape: ModelShape, flags: ServerFlags) -> Paging:
    """Lay out the KV cache. Raises UnknownModelError with what is not modelled."""
    caches = layer_caches(config, _kv_element(folder, config, shape, flags), flags.tensor_parallel_size)
    if not caches:
        raise UnknownModelError("no layer of the model keeps a KV cache")
    if flags.draft.own_head:
        caches = with_draft_layers(config, caches)
    rules = PagingRules(
        block_tokens=flags.block_tokens,
        step_tokens=flags.max_num_batched_tokens,
        steps_in_flight=flags.steps_in_flight,
        blocks_a_state=2 if flags.caches_states else 1,
        by_kind=flags.by_kind,
        draft_tokens=flags.draft.tokens,
    )
    return paging(caches, shared_out(decoder_layers(config), flags.pipeline_parallel_size), rules)


def _kv_element(folder: Path, config: Config, shape: ModelShape, flags: ServerFlags) -> KvElement:
    """Return the format of the KV cache (vLLM, config/cache.py CacheDType)."""
    kind, activation = flags.kv_cache_dtype, shape.activation_bytes
    state = {"float32": 4, "float16": 2, "bfloat16": 2}.get(flags.state_dtype)
    if kind == "auto":
        return KvElement(own_kv_bytes(folder, config) or activation, activation, kind, state, flags.packing)
    if kind in DS_MLA_BYTES:
        return KvElement(1, activation, kind, state)
    if (element := KV_BYTES.get(kind, SCALED_BY_HEAD.get(kind))) is not None:
        return KvElement(element, activation, kind, state, flags.packing)
    raise UnknownModelError(f"--{knobs.KV_CACHE_DTYPE} {kind}: its bytes of a token are not known here")


def _quantised(own: Config, shape: ModelShape, flags: ServerFlags) -> ModelShape:
    if own or flags.quantization not in QUANTISED_ON_LOAD:
        return shape
    return replace(shape, weight_bytes=QUANTISED_ON_LOAD[flags.quantization])


def _weights(folder: Path, config: Config, shape: ModelShape, plain: ModelShape) -> tuple[int | None, WeightsFrom]:
    """Return all weights in memory. Files are scaled as loading does: FP32 to 16 bits, 16 bits to FP8."""
    stored = plain.at(str(config.get("dtype") or config.get("torch_dtype")))
    if files := weight_file_bytes(folder):
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


def _not_modelled(
    config: Config, own: Config, source: WeightsFrom, as_stored: bool, flags: ServerFlags
) -> tuple[str, ...]:
    notes = []
    if source is WeightsFrom.CONFIG:
        notes += [f"the weights of {key}: fewer tokens than shown" for key in OTHER_PARTS if config.get(key)]
    if flags.quantization and as_stored and not own:
        notes.append(f"--{knobs.QUANTIZATION} {flags.quantization}: the weights are counted as they are stored")
    return (*notes, *(f"--{flag}" for flag in UNMODELLED_FLAGS if flag in flags.mentioned))
