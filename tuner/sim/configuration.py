"""Given flags → the configuration that runs: vLLM's defaults by hardware, and its argument rules with their
messages.

Source: vLLM 0.32.0, engine/arg_utils.py (defaults by usage context), config/scheduler.py, config/cache.py,
config/parallel.py, config/model.py. Other programs match on the words of a refusal. So these words are vLLM's own.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from tuner.model import ModelShape
from tuner.sim.hardware import GIB, Device, Hardware


class Cause(enum.Enum):
    """Reason of a refused start, to check a diagnosis against."""

    ARGUMENTS = "arguments"
    WORLD_SIZE = "world size"
    MEMORY_HELD = "memory held by another process"
    HOST_MEMORY = "host memory"
    KV_TOO_SMALL = "kv cache too small for max_model_len"
    NO_KV_MEMORY = "no memory for the kv cache"
    OUT_OF_MEMORY = "out of memory"


class Origin(enum.Enum):
    """Process that raises: the API server or the engine core."""

    API_SERVER = "APIServer"
    ENGINE_CORE = "EngineCore"


@dataclass(frozen=True, slots=True)
class Refused:
    """Start that ended before /health, with exit code 1. `error` is the exception's type as a traceback prints it."""

    cause: Cause
    error: str
    message: str
    origin: Origin
    after_s: float


@dataclass(frozen=True, slots=True)
class EngineArguments:
    """Engine arguments of the command line. None means not given: vLLM's default for the hardware holds."""

    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_active_seqs: int | None = None
    max_num_scheduled_tokens: int | None = None
    max_model_len: int | None = None
    gpu_memory_utilization: float = 0.92
    kv_cache_memory_bytes: int | None = None
    num_gpu_blocks_override: int | None = None
    block_size: int | None = None
    kv_cache_dtype: str = "auto"
    enable_chunked_prefill: bool | None = None
    enable_prefix_caching: bool | None = None
    long_prefill_token_threshold: int = 0
    long_prefill_token_threshold_adaptive: bool = False
    scheduler_reserve_full_isl: bool = True
    watermark: float = 0.0
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    api_server_count: int | None = None
    enforce_eager: bool = False
    optimization_level: int = 2
    max_cudagraph_capture_size: int | None = None
    performance_mode: str = "balanced"
    stream_interval: int = 1


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Resolved value of every argument. A `max_model_len` of -1 (auto) stays open until the start knows the memory."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_num_active_seqs: int
    max_num_scheduled_tokens: int
    max_model_len: int
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None
    num_gpu_blocks_override: int | None
    block_size: int
    kv_cache_dtype: str
    kv_bytes: int
    enable_chunked_prefill: bool
    enable_prefix_caching: bool
    long_prefill_token_threshold: int
    long_prefill_token_threshold_adaptive: bool
    scheduler_reserve_full_isl: bool
    watermark: float
    tensor_parallel_size: int
    pipeline_parallel_size: int
    data_parallel_size: int
    api_server_count: int
    enforce_eager: bool
    optimization_level: int
    capture_sizes: tuple[int, ...]
    stream_interval: int

    @property
    def ranks(self) -> int:
        """Return the devices of one engine."""
        return self.tensor_parallel_size * self.pipeline_parallel_size


def default_limits(hardware: Hardware) -> tuple[int, int]:
    """Return vLLM's (max_num_batched_tokens, max_num_seqs) by device memory (arg_utils.py)."""
    if hardware.device is Device.CPU:
        return 2048, 128
    if hardware.memory_bytes >= 160 * GIB:
        return 16384, 1024
    if hardware.memory_bytes >= 70 * GIB and "a100" not in hardware.name:
        return 8192, 1024
    return 2048, 256


def resolve(arguments: EngineArguments, hardware: Hardware, model: ModelShape) -> EngineConfig | Refused:
    """Fill in the defaults, then check every rule. Pure."""
    refusal = _out_of_range(arguments, hardware) or _parallel_refusal(arguments, hardware, model)
    if refusal is not None:
        return refusal
    length = _length(arguments, hardware, model)
    if isinstance(length, Refused):
        return length
    chunked = True if arguments.enable_chunked_prefill is None else arguments.enable_chunked_prefill
    batched, seqs = _limits(arguments, hardware, chunked, length if length > 0 else model.max_positions)
    eager = arguments.enforce_eager or arguments.optimization_level == 0 or hardware.device is Device.CPU
    config = EngineConfig(
        max_num_seqs=seqs,
        max_num_batched_tokens=batched,
        max_num_active_seqs=seqs if arguments.max_num_active_seqs is None else arguments.max_num_active_seqs,
        max_num_scheduled_tokens=min(arguments.max_num_scheduled_tokens or batched, batched),
        max_model_len=length,
        gpu_memory_utilization=arguments.gpu_memory_utilization,
        kv_cache_memory_bytes=arguments.kv_cache_memory_bytes,
        num_gpu_blocks_override=arguments.num_gpu_blocks_override,
        block_size=arguments.block_size or (128 if hardware.device is Device.CPU else 16),
        kv_cache_dtype=arguments.kv_cache_dtype,
        kv_bytes=1 if arguments.kv_cache_dtype.startswith(("fp8", "int8")) else model.activation_bytes,
        enable_chunked_prefill=chunked,
        enable_prefix_caching=True if arguments.enable_prefix_caching is None else arguments.enable_prefix_caching,
        long_prefill_token_threshold=arguments.long_prefill_token_threshold,
        long_prefill_token_threshold_adaptive=arguments.long_prefill_token_threshold_adaptive,
        scheduler_reserve_full_isl=arguments.scheduler_reserve_full_isl,
        watermark=arguments.watermark,
        tensor_parallel_size=arguments.tensor_parallel_size,
        pipeline_parallel_size=arguments.pipeline_parallel_size,
        data_parallel_size=arguments.data_parallel_size,
        api_server_count=arguments.api_server_count or arguments.data_parallel_size,
        enforce_eager=arguments.enforce_eager,
        optimization_level=arguments.optimization_level,
        capture_sizes=() if eager else _capture_sizes(arguments, hardware, seqs, batched),
        stream_interval=arguments.stream_interval,
    )
    return _scheduler_refusal(config, hardware, length if length > 0 else model.max_positions) or config


def _limits(arguments: EngineArguments, hardware: Hardware, chunked: bool, length: int) -> tuple[int, int]:
    batched, seqs = default_limits(hardware)
    scale = 2 if arguments.performance_mode == "throughput" else 1
    if hardware.device is Device.CPU:
        scale *= arguments.tensor_parallel_size * arguments.pipeline_parallel_size
    batched, seqs = batched * scale, seqs * scale
    if not chunked:
        batched = max(batched, length)
    if arguments.max_num_batched_tokens is not None:
        batched = arguments.max_num_batched_tokens
    seqs = min(seqs, batched) if arguments.max_num_seqs is None else arguments.max_num_seqs
    return batched, seqs


def _capture_sizes(arguments: EngineArguments, hardware: Hardware, seqs: int, batched: int) -> tuple[int, ...]:
    """Return the batch sizes with a CUDA graph. They are 1, 2, 4, every 8 up to 256, then every 16 (config/vllm.py)."""
    ceiling = 1024 if hardware.name == "b200" else 512
    largest = arguments.max_cudagraph_capture_size or min(seqs * 2, ceiling, batched)
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16)]
    return tuple(size for size in sizes if size <= largest)


def _argument_refusal(hardware: Hardware, message: str, config: str) -> Refused:
    """Word a ValueError as a pydantic config does."""
    text = f"1 validation error for {config}\n  Value error, {message} [type=value_error]"
    after_s = hardware.start.import_s + 2.0
    return Refused(Cause.ARGUMENTS, "pydantic_core._pydantic_core.ValidationError", text, Origin.API_SERVER, after_s)


def _out_of_range(arguments: EngineArguments, hardware: Hardware) -> Refused | None:
    """Check the bounds that pydantic checks field by field."""
    bounds = (
        ("SchedulerConfig", "max_num_seqs", arguments.max_num_seqs),
        ("SchedulerConfig", "max_num_batched_tokens", arguments.max_num_batched_tokens),
        ("SchedulerConfig", "max_num_active_seqs", arguments.max_num_active_seqs),
        ("SchedulerConfig", "max_num_scheduled_tokens", arguments.max_num_scheduled_tokens),
        ("ParallelConfig", "tensor_parallel_size", arguments.tensor_parallel_size),
        ("ParallelConfig", "pipeline_parallel_size", arguments.pipeline_parallel_size),
        ("ParallelConfig", "data_parallel_size", arguments.data_parallel_size),
        ("SchedulerConfig", "stream_interval", arguments.stream_interval),
    )
    for config, field, value in bounds:
        if value is not None and value < 1:
            kind = f"[type=greater_than_equal, input_value={value}]"
            detail = f"{field}\n  Input should be greater than or equal to 1 {kind}"
            return _field_refusal(hardware, config, detail)
    utilization = arguments.gpu_memory_utilization
    if not 0.0 < utilization <= 1.0:
        bound = "greater than 0" if utilization <= 0.0 else "less than or equal to 1"
        kind = "greater_than" if utilization <= 0.0 else "less_than_equal"
        detail = f"gpu_memory_utilization\n  Input should be {bound} [type={kind}, input_value={utilization}]"
        return _field_refusal(hardware, "CacheConfig", detail)
    if not 0.0 <= arguments.watermark < 1.0:
        detail = f"watermark\n  Input should be less than 1 [type=less_than, input_value={arguments.watermark}]"
        return _field_refusal(hardware, "SchedulerConfig", detail)
    if arguments.long_prefill_token_threshold < 0:
        value = arguments.long_prefill_token_threshold
        detail = f"long_prefill_token_threshold\n  Input should be greater than or equal to 0 [input_value={value}]"
        return _field_refusal(hardware, "SchedulerConfig", detail)
    return None


def _field_refusal(hardware: Hardware, config: str, detail: str) -> Refused:
    text = f"1 validation error for {config}\n{detail}"
    after_s = hardware.start.import_s + 1.0
    return Refused(Cause.ARGUMENTS, "pydantic_core._pydantic_core.ValidationError", text, Origin.API_SERVER, after_s)


def _parallel_refusal(arguments: EngineArguments, hardware: Hardware, model: ModelShape) -> Refused | None:
    tensor, stages, engines = (
        arguments.tensor_parallel_size, arguments.pipeline_parallel_size, arguments.data_parallel_size
    )  # fmt: skip
    if model.heads % tensor:
        heads = f"Total number of attention heads ({model.heads})"
        message = f"{heads} must be divisible by tensor parallel size ({tensor})."
        return _argument_refusal(hardware, message, "ModelConfig")
    if hardware.device is Device.CPU:
        return None
    if tensor * stages > hardware.devices:
        message = (
            f"World size ({tensor * stages}) is larger than the number of available GPUs ({hardware.devices}) in this "
            "node. If this is intentional and you are using:\n- ray, set '--distributed-executor-backend ray'.\n"
            "- multiprocessing, set '--nnodes' appropriately."
        )
        refusal = _argument_refusal(hardware, message, "ParallelConfig")
        return Refused(Cause.WORLD_SIZE, refusal.error, refusal.message, refusal.origin, refusal.after_s)
    if tensor * stages * engines > hardware.devices:
        # The first engine without GPUs of its own (v1/engine/utils.py).
        rank = hardware.devices // (tensor * stages)
        local = f"local range: [{rank * tensor * stages}, {(rank + 1) * tensor * stages})"
        message = f'Error setting CUDA_VISIBLE_DEVICES: {local} base value: "None"'
        return Refused(Cause.WORLD_SIZE, "Exception", message, Origin.API_SERVER, hardware.start.import_s + 2.0)
    return None


def _length(arguments: EngineArguments, hardware: Hardware, model: ModelShape) -> int | Refused:
    length = arguments.max_model_len
    if length is None:
        return model.max_positions
    if length > model.max_positions:
        message = (
            f"User-specified max_model_len ({length}) is greater than the derived max_model_len "
            f"(max_position_embeddings={model.max_positions} or model_max_length=None in model's config.json). "
            "To allow overriding this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1."
        )
        return _argument_refusal(hardware, message, "ModelConfig")
    if length < -1 or length == 0:
        detail = f"max_model_len\n  Input should be greater than or equal to -1 [input_value={length}]"
        return _field_refusal(hardware, "ModelConfig", detail)
    return length


def _scheduler_refusal(config: EngineConfig, hardware: Hardware, length: int) -> Refused | None:
    """Check the scheduler's rules in vLLM's order (config/scheduler.py, verify_max_model_len). The order matters:
    the log shows the first rule that fails."""
    message = None
    if config.max_num_batched_tokens < length and not config.enable_chunked_prefill:
        message = (
            f"max_num_batched_tokens ({config.max_num_batched_tokens}) is smaller than max_model_len ({length}). This "
            "effectively limits the maximum sequence length to max_num_batched_tokens and makes vLLM reject longer "
            "sequences. Please increase max_num_batched_tokens or decrease max_model_len."
        )
    elif config.max_num_batched_tokens < config.max_num_seqs:
        message = (
            f"max_num_batched_tokens ({config.max_num_batched_tokens}) must be greater than or equal to max_num_seqs "
            f"({config.max_num_seqs})."
        )
    elif config.max_num_active_seqs > config.max_num_seqs:
        message = (
            f"max_num_active_seqs ({config.max_num_active_seqs}) cannot be greater than max_num_seqs "
            f"({config.max_num_seqs})."
        )
    elif config.long_prefill_token_threshold > length:
        message = (
            f"long_prefill_token_threshold ({config.long_prefill_token_threshold}) cannot be greater than the "
            f"max_model_len ({length})."
        )
    return None if message is None else _argument_refusal(hardware, message, "SchedulerConfig")
