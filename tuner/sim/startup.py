"""Start without a process: does it fit, how long does it take, how large is its KV cache?

The process (server.py) and the virtual runs (virtual.py) both ask here, so that they agree. Memory of a GPU: weights
/ ranks + runtime (CUDA context, NCCL) + activations (grow with max_num_batched_tokens and max_num_seqs) + CUDA
graphs (grow with the captured sizes, hence with max_num_seqs). The rest of what gpu_memory_utilization allows is KV
cache. Words of refusals: vLLM 0.32.0, v1/core/kv_cache_utils.py, v1/worker/utils.py, v1/worker/cpu_worker.py.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Container
from dataclasses import dataclass, replace

from tuner.model import ModelShape
from tuner.sim.configuration import Cause, EngineArguments, EngineConfig, Origin, Refused, resolve
from tuner.sim.hardware import GIB, Device, Hardware

GRAPH_BYTES_PER_LAYER = 300 * 1024
"""Memory of one captured graph per layer. It gives about 10 MiB a size for 32 layers, the order that vLLM logs for
8B models."""


@dataclass(frozen=True, slots=True)
class Phases:
    """Seconds of a start, phase by phase."""

    import_s: float
    engine_s: float
    load_s: float
    compile_s: float
    profile_s: float
    capture_s: float

    @property
    def total_s(self) -> float:
        return self.import_s + self.engine_s + self.load_s + self.compile_s + self.profile_s + self.capture_s


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device. `held` is everything that this server occupies."""

    total: int
    free: int
    requested: int
    weights: int
    activations: int
    graphs: int
    kv_cache: int
    held: int


@dataclass(frozen=True, slots=True)
class Started:
    """Start that reached /health. `kv_tokens` is the KV cache size that vLLM logs; one of its blocks serves no
    request."""

    config: EngineConfig
    kv_blocks: int
    kv_tokens: int
    max_concurrency: float
    memory: Memory
    phases: Phases
    compile_key: str

    @property
    def start_s(self) -> float:
        return self.phases.total_s

    @property
    def usable_blocks(self) -> int:
        """Return all blocks but vLLM's null block."""
        return self.kv_blocks - 1


def startup(
    arguments: EngineArguments,
    hardware: Hardware,
    model: ModelShape,
    *,
    held_bytes: int = 0,
    compiled: Container[str] = (),
    environment_key: str = "",
) -> Started | Refused:
    """Try a start beside `held_bytes` of others per device. `compiled` are the keys in the compile cache."""
    config = resolve(arguments, hardware, model)
    if isinstance(config, Refused):
        return config
    memory = _memory(config, hardware, model, held_bytes)
    if isinstance(memory, Refused):
        return memory
    block_bytes = block_bytes_per_device(config, model)
    blocks = memory.kv_cache // block_bytes
    if config.num_gpu_blocks_override is not None:
        blocks = config.num_gpu_blocks_override
    length = config.max_model_len
    if length == -1:
        length = min(model.max_positions, (blocks - 1) * config.block_size)
        if length < 1:
            message = "Cannot auto-fit max_model_len: not enough GPU memory available to serve even a single token."
            return _engine_refusal(hardware, model, Cause.KV_TOO_SMALL, "ValueError", message)
        config = replace(config, max_model_len=length)
    refusal = _kv_refusal(config, hardware, model, blocks, block_bytes)
    if refusal is not None:
        return refusal
    key = compile_key(config, model, environment_key)
    concurrency = blocks / -(-length // config.block_size)
    return Started(
        config=config,
        kv_blocks=blocks,
        kv_tokens=int(concurrency * length),
        max_concurrency=concurrency,
        memory=memory,
        phases=_phases(config, hardware, model, warm=key in compiled),
        compile_key=key,
    )


def block_bytes_per_device(config: EngineConfig, model: ModelShape) -> int:
    """Return a block's bytes on the stage with the most layers."""
    token = model.kv_bytes_per_token(config.kv_bytes, config.tensor_parallel_size)
    return int(token * stage_share(config, model)) * config.block_size


def stage_share(config: EngineConfig, model: ModelShape) -> float:
    """Return the share of the layers on the largest pipeline stage. vLLM gives some stages one layer more."""
    return math.ceil(model.layers / config.pipeline_parallel_size) / model.layers


def weights_on_rank(config: EngineConfig, model: ModelShape) -> int:
    """Return the bytes of weights on the fullest device. The last stage holds the head, the first the embedding."""
    if config.pipeline_parallel_size == 1:
        return int(model.weights_bytes / config.tensor_parallel_size)
    outside = model.head_parameters * model.activation_bytes
    layers = model.weights_bytes - outside * (1 if model.tied_embeddings else 2)
    return int((layers * stage_share(config, model) + outside) / config.tensor_parallel_size)


def activation_bytes(config: EngineConfig, model: ModelShape) -> int:
    """Return the peak memory of a profiling step. The sampler keeps one copy of the logits."""
    forward = model.forward_bytes(config.max_num_batched_tokens, config.tensor_parallel_size)
    sampled = min(config.max_num_seqs, config.max_num_batched_tokens)
    return forward + sampled * model.vocab * 4 * 2


def graph_bytes(config: EngineConfig, model: ModelShape) -> int:
    return len(config.capture_sizes) * model.layers * GRAPH_BYTES_PER_LAYER


def compile_key(config: EngineConfig, model: ModelShape, environment_key: str = "") -> str:
    """Hash the compile cache's key (config/*.compute_hash, envs.py)."""
    factors = [
        model.name, model.layers, model.hidden, config.max_num_batched_tokens, config.max_num_seqs,
        config.max_model_len, config.block_size, config.kv_cache_dtype, config.tensor_parallel_size,
        config.optimization_level, list(config.capture_sizes), environment_key,
    ]  # fmt: skip
    if config.pipeline_parallel_size * config.data_parallel_size > 1:
        factors += [config.pipeline_parallel_size, config.data_parallel_size]
    return hashlib.sha256(json.dumps(factors).encode()).hexdigest()[:10]


def compiles(config: EngineConfig) -> bool:
    return not config.enforce_eager and config.optimization_level > 0


def _phases(config: EngineConfig, hardware: Hardware, model: ModelShape, *, warm: bool) -> Phases:
    start = hardware.start
    per_layer_s = start.compile_warm_s_per_layer if warm else start.compile_cold_s_per_layer
    return Phases(
        import_s=start.import_s,
        engine_s=start.engine_s,
        load_s=weights_on_rank(config, model) / start.load_bytes_per_s,
        compile_s=model.layers * stage_share(config, model) * per_layer_s if compiles(config) else 0.0,
        profile_s=start.profile_s,
        capture_s=len(config.capture_sizes) * start.capture_s_per_graph,
    )


def gib(count: float) -> str:
    """Format bytes as vLLM does (utils/mem_utils.py, format_gib)."""
    return f"{round(count / GIB, 2)}"


def _engine_refusal(hardware: Hardware, model: ModelShape, cause: Cause, error: str, message: str) -> Refused:
    """Build a refusal of the engine core. Most of them come after the weights were loaded."""
    after_s = hardware.start.import_s + hardware.start.engine_s
    if cause not in (Cause.MEMORY_HELD, Cause.HOST_MEMORY):
        after_s += model.weights_bytes / hardware.start.load_bytes_per_s
    return Refused(cause, error, message, Origin.ENGINE_CORE, after_s)


def _memory(config: EngineConfig, hardware: Hardware, model: ModelShape, held: int) -> Memory | Refused:
    if hardware.device is Device.CPU:
        return _host_memory(config, hardware, model, held)
    total, free = hardware.memory_bytes, max(0, hardware.memory_bytes - held)
    requested = int(total * config.gpu_memory_utilization)
    if config.kv_cache_memory_bytes is None and free < requested:
        message = free_memory_message(config, total, free)
        return _engine_refusal(hardware, model, Cause.MEMORY_HELD, "ValueError", message)
    weights = weights_on_rank(config, model)
    activations, graphs = activation_bytes(config, model), graph_bytes(config, model)
    fixed = weights + hardware.runtime_bytes + activations
    for needed in (weights + hardware.runtime_bytes, fixed):
        if needed > free:
            return _engine_refusal(hardware, model, Cause.OUT_OF_MEMORY, *out_of_memory(total, free, needed - free))
    kv_cache = config.kv_cache_memory_bytes
    if kv_cache is None:
        kv_cache = max(0, requested - fixed - graphs)
    elif fixed + graphs + kv_cache > free:
        excess = fixed + graphs + kv_cache - free
        return _engine_refusal(hardware, model, Cause.OUT_OF_MEMORY, *out_of_memory(total, free, excess))
    return Memory(total, free, requested, weights, activations, graphs, kv_cache, fixed + graphs + kv_cache)


def free_memory_message(config: EngineConfig, total: int, free: int) -> str:
    requested = int(total * config.gpu_memory_utilization)
    return (
        f"Free memory on device cuda:0 ({gib(free)}/{gib(total)} GiB) on startup "
        f"is less than desired GPU memory utilization ({config.gpu_memory_utilization}, {gib(requested)} GiB). "
        "Decrease GPU memory utilization or reduce GPU memory used by other processes."
    )


def out_of_memory(total: int, free: int, wanted: int) -> tuple[str, str]:
    """Return (exception type, message) in torch's words."""
    wanted = max(wanted, 2 << 20)
    size = f"{wanted / GIB:.2f} GiB" if wanted >= GIB else f"{wanted / (1 << 20):.2f} MiB"
    return "torch.OutOfMemoryError", (
        f"CUDA out of memory. Tried to allocate {size}. GPU 0 has a total capacity of {total / GIB:.2f} GiB of which "
        f"{min(free, wanted) / 2 / (1 << 20):.2f} MiB is free. Process {{pid}} has {free / GIB:.2f} GiB memory in use."
    )


def _host_memory(config: EngineConfig, hardware: Hardware, model: ModelShape, held: int) -> Memory | Refused:
    """Account for the host's memory as the CPU backend does. The worker's own size comes off."""
    total, free = hardware.memory_bytes, max(0, hardware.memory_bytes - held)
    requested = int(total * config.gpu_memory_utilization)
    where = f"Available memory on node 0 ({gib(free)}/{gib(total)} GiB) on"
    weights = weights_on_rank(config, model)
    worker = weights + hardware.runtime_bytes
    explicit = config.kv_cache_memory_bytes
    if explicit is None and requested > free:
        message = (
            f"{where} startup is less than desired CPU memory utilization ({config.gpu_memory_utilization}, "
            f"{gib(requested)} GiB). On the CPU backend, the `--gpu-memory-utilization` flag controls the fraction of "
            "CPU memory reserved (despite its name). To resolve: decrease `--gpu-memory-utilization` (e.g. "
            "`--gpu-memory-utilization 0.5`) or reduce CPU memory used by other processes."
        )
        return _engine_refusal(hardware, model, Cause.HOST_MEMORY, "ValueError", message)
    kv_cache = requested - worker if explicit is None else explicit
    if kv_cache <= 0 or kv_cache > free:
        of = f"/{gib(requested)}" if explicit is None else ""
        message = (
            f"{where} kv cache allocation is less than requested memory for kv ({gib(kv_cache)}{of} GiB). "
            "Reduce CPU memory used by other processes."
        )
        return _engine_refusal(hardware, model, Cause.HOST_MEMORY, "ValueError", message)
    return Memory(total, free, requested, weights, 0, 0, kv_cache, worker + kv_cache)


def _kv_refusal(
    config: EngineConfig, hardware: Hardware, model: ModelShape, blocks: int, block_bytes: int
) -> Refused | None:
    """Refuse a KV cache below one request of max_model_len."""
    available = (blocks - 1) * block_bytes
    see = "See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."
    if available <= 0:
        message = (
            "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the "
            f"engine (this flag also controls CPU memory reservation on the CPU backend, despite its name). {see}"
        )
        return _engine_refusal(hardware, model, Cause.NO_KV_MEMORY, "ValueError", message)
    needed = -(-config.max_model_len // config.block_size) * block_bytes
    if needed <= available:
        return None
    estimate = (blocks - 1) * config.block_size
    message = (
        f"To serve at least one request with the model's max seq len ({config.max_model_len}), ({gib(needed)} GiB KV "
        f"cache is needed, which is larger than the available KV cache memory ({gib(available)} GiB). Based on the "
        f"available memory, the estimated maximum model length is {estimate}. Try increasing "
        "`gpu_memory_utilization` (which also "
        f"controls CPU memory on the CPU backend) or decreasing `max_model_len` when initializing the engine. {see}"
    )
    return _engine_refusal(hardware, model, Cause.KV_TOO_SMALL, "ValueError", message)
