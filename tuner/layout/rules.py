"""Layouts that a model cannot have: sizes that do not divide, and weights that surely do not fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tuner.capacity import GIB, QUANTISED_ON_LOAD, ServerFlags, WeightsFrom, model_memory
from tuner.flagwords import Value
from tuner.formatting import gib, share
from tuner.kv.config_json import UnknownModelError, read_config
from tuner.layout.layout import AUTO, Layout
from tuner.model import ModelShape, shape_from_config
from tuner.vllm import knobs

SURELY_LOADED = 0.95
"""Share of the weight files that every server loads. They may hold layers for speculation, which it leaves out."""

VOCABULARY_PADDING = 64
"""Rows to whose multiple vLLM pads the embedding (model_executor/layers/vocab_parallel_embedding.py)."""

MOST_GPUS = 1024
"""Sizes up to which the least number of GPUs is looked for."""

CHANGE_WEIGHTS = frozenset({
    *knobs.CHANGE_CONFIG, knobs.CPU_OFFLOAD_GB, knobs.LANGUAGE_MODEL_ONLY, knobs.LIMIT_MM_PER_PROMPT,
})  # fmt: skip
"""Flags with which a GPU may hold less than the weight files say."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of the smallest GPU, and the largest share of it that is searched."""

    gpu_bytes: int
    utilization: float


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """What the files of a model say about its layouts.

    Attributes:
        shape: Its sizes. None if config.json is not here or not understood: then no size is ruled out.
        weights_bytes: Bytes of its weights. None if no file tells: then all layouts fit.
        per_gpu_bytes: Least bytes of a GPU beside weights and KV cache.
        whole_experts: True if a GPU holds whole experts instead of a part of each.
    """

    shape: ModelShape | None = None
    weights_bytes: int | None = None
    per_gpu_bytes: int = 0
    whole_experts: bool = False

    @property
    def has_experts(self) -> bool:
        """Return True if it is known to have experts."""
        return self.shape is not None and self.shape.experts > 0

    def indivisible(self, layout: Layout) -> str | None:
        """Say why vLLM refuses the sizes of a layout, None if it does not."""
        shape, size = self.shape, layout.tensor_parallel
        if shape is None:
            return None
        if layout.pipeline_parallel > shape.layers:
            return f"{shape.layers} layers are fewer than {layout.pipeline_parallel} stages"
        if shape.heads % size:
            return f"{shape.heads} attention heads do not divide by {size}"
        if not shape.latent_width and shape.kv_heads % size and size % (shape.kv_heads or size):
            return f"{shape.kv_heads} KV heads and {size} GPUs do not divide each other"
        padded = -(-shape.vocab // VOCABULARY_PADDING) * VOCABULARY_PADDING
        if padded % size:
            return f"the vocabulary, padded to {padded:,} rows, does not divide by {size}"
        return self._indivisible_width(shape, size)

    def _indivisible_width(self, shape: ModelShape, size: int) -> str | None:
        if self.whole_experts and shape.experts:
            return None
        if 0 < shape.experts < size:
            return f"{shape.experts} experts are fewer than {size} GPUs"
        width = shape.expert_parameters // (3 * shape.hidden) if shape.experts else shape.intermediate
        what = "an expert's width" if shape.experts else "the intermediate size"
        if width % size:
            return f"{what} {width:,} does not divide by {size}"
        return None

    def too_large(self, ranks: int, memory: Memory | None) -> str | None:
        """Say that the weights surely do not fit on `ranks` GPUs. None if they may."""
        if self.weights_bytes is None or memory is None or self._fits(self.weights_bytes, ranks, memory):
            return None
        weights, room = gib(self.weights_bytes / ranks / GIB), gib(memory.gpu_bytes / GIB)
        return f"weights of {weights} on a GPU do not fit into {share(memory.utilization)} of its {room}"

    def refusal(self, layout: Layout, memory: Memory | None) -> str | None:
        """Say why a server of a layout cannot be, None if it may."""
        return self.indivisible(layout) or self.too_large(layout.ranks, memory)

    def least_gpus(self, memory: Memory) -> int | None:
        """Return the fewest GPUs on which one server of it may fit, if need be in stages. None if no number does."""
        enough = (n for n in range(1, MOST_GPUS + 1) if self.too_large(n, memory) is None)
        shapes = (Layout(1, size, n // size) for n in enough for size in range(n, 0, -1) if n % size == 0)
        return next((layout.ranks for layout in shapes if self.indivisible(layout) is None), None)

    def bits_that_fit(self, ranks: int, memory: Memory) -> int | None:
        """Return the most bits a weight, 8 or 4, with which it may fit on `ranks` GPUs. None if neither does."""
        if self.shape is None or self.weights_bytes is None:
            return None
        for bits in (8, 4):
            part = replace(self.shape, weight_bytes=bits / 8).weights_bytes / self.shape.weights_bytes
            if part < 1 and self._fits(self.weights_bytes * part, ranks, memory):
                return bits
        return None

    def _fits(self, weights_bytes: float, ranks: int, memory: Memory) -> bool:
        return SURELY_LOADED * weights_bytes / ranks + self.per_gpu_bytes < memory.gpu_bytes * memory.utilization


def limits_of(folder: Path | None, values: Mapping[str, Value], mentioned: Collection[str]) -> ModelLimits:
    """Read a model's limits. `values` go to every server; `mentioned` names the flags that some server gets."""
    if folder is None or not set(knobs.CHANGE_CONFIG).isdisjoint(mentioned):
        return ModelLimits()
    try:
        shape = shape_from_config(str(folder), read_config(folder))
    except UnknownModelError:
        return ModelLimits()
    limits = ModelLimits(shape, whole_experts=knobs.ENABLE_EXPERT_PARALLEL in mentioned)
    return _with_weights(limits, folder, values, mentioned)


def _with_weights(
    limits: ModelLimits, folder: Path, values: Mapping[str, Value], mentioned: Collection[str]
) -> ModelLimits:
    quantization = str(values[knobs.QUANTIZATION]) if knobs.QUANTIZATION in values else None
    if not CHANGE_WEIGHTS.isdisjoint(mentioned) or (quantization is None and knobs.QUANTIZATION in mentioned):
        return limits
    flags = ServerFlags(1, 1, 16, dtype=str(values.get(knobs.DTYPE, AUTO)), quantization=quantization)
    try:
        memory = model_memory(folder, flags)
        as_stored = bool(read_config(folder).get("quantization_config"))
    except UnknownModelError:
        return limits
    if memory.weights_bytes is None or memory.weights_from is not WeightsFrom.FILES:
        return limits
    if quantization is not None and not as_stored and quantization not in QUANTISED_ON_LOAD:
        return limits
    return replace(limits, weights_bytes=memory.weights_bytes, per_gpu_bytes=memory.overhead_bytes.low)
