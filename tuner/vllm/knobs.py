"""Names of vLLM's flags, without dashes. Everything else refers to a flag by its name here."""

from __future__ import annotations

import re
from collections.abc import Mapping

API_KEY = "api-key"
ASYNC_SCHEDULING = "async-scheduling"
ATTENTION_BACKEND = "attention-backend"
BLOCK_SIZE = "block-size"
CONFIG = "config"
CPU_OFFLOAD_GB = "cpu-offload-gb"
DATA_PARALLEL = "data-parallel-size"
DECODE_CONTEXT_PARALLEL = "decode-context-parallel-size"
DISABLE_HYBRID_KV_CACHE_MANAGER = "disable-hybrid-kv-cache-manager"
DISABLE_LOG_STATS = "disable-log-stats"
DISABLE_SLIDING_WINDOW = "disable-sliding-window"
DTYPE = "dtype"
ENABLE_AUTO_TOOL_CHOICE = "enable-auto-tool-choice"
ENABLE_CHUNKED_PREFILL = "enable-chunked-prefill"
ENABLE_EXPERT_PARALLEL = "enable-expert-parallel"
ENABLE_LORA = "enable-lora"
ENABLE_PREFIX_CACHING = "enable-prefix-caching"
ENFORCE_EAGER = "enforce-eager"
GPU_MEMORY_UTILIZATION = "gpu-memory-utilization"
HF_CONFIG_PATH = "hf-config-path"
HF_OVERRIDES = "hf-overrides"
HF_TOKEN = "hf-token"
HOST = "host"
KV_CACHE_DTYPE = "kv-cache-dtype"
KV_CACHE_DTYPE_SKIP_LAYERS = "kv-cache-dtype-skip-layers"
KV_CACHE_MEMORY_BYTES = "kv-cache-memory-bytes"
KV_OFFLOADING_SIZE = "kv-offloading-size"
KV_TRANSFER_CONFIG = "kv-transfer-config"
LANGUAGE_MODEL_ONLY = "language-model-only"
LIMIT_MM_PER_PROMPT = "limit-mm-per-prompt"
LONG_PREFILL_TOKEN_THRESHOLD = "long-prefill-token-threshold"
LONG_PREFILL_TOKEN_THRESHOLD_ADAPTIVE = "long-prefill-token-threshold-adaptive"
MAMBA_BLOCK_SIZE = "mamba-block-size"
MAMBA_CACHE_DTYPE = "mamba-cache-dtype"
MAMBA_CACHE_MODE = "mamba-cache-mode"
MAMBA_SSM_CACHE_DTYPE = "mamba-ssm-cache-dtype"
MAX_CUDAGRAPH_CAPTURE_SIZE = "max-cudagraph-capture-size"
MAX_LONG_PARTIAL_PREFILLS = "max-long-partial-prefills"
MAX_MODEL_LEN = "max-model-len"
MAX_NUM_ACTIVE_SEQS = "max-num-active-seqs"
MAX_NUM_BATCHED_TOKENS = "max-num-batched-tokens"
MAX_NUM_PARTIAL_PREFILLS = "max-num-partial-prefills"
MAX_NUM_SCHEDULED_TOKENS = "max-num-scheduled-tokens"
MAX_NUM_SEQS = "max-num-seqs"
MODEL = "model"
NUM_GPU_BLOCKS_OVERRIDE = "num-gpu-blocks-override"
PATHS = frozenset(
    {CONFIG, "allowed-local-media-path", "chat-template", "download-dir", HF_CONFIG_PATH, "log-config-file"}
)
"""Flags whose values are always paths. Others may be a path, a name on a hub or a word."""
PERFORMANCE_MODE = "performance-mode"
PIPELINE_PARALLEL = "pipeline-parallel-size"
PORT = "port"
PREFILL_SCHEDULE_INTERVAL = "prefill-schedule-interval"
QUANTIZATION = "quantization"
REVISION = "revision"
ROPE_SCALING = "rope-scaling"
SCHEDULER_RESERVE_FULL_ISL = "scheduler-reserve-full-isl"
SCHEDULING_POLICY = "scheduling-policy"
SERVED_MODEL_NAME = "served-model-name"
SHUTDOWN_TIMEOUT = "shutdown-timeout"
SPECULATIVE_CONFIG = "speculative-config"
STREAM_INTERVAL = "stream-interval"
TENSOR_PARALLEL = "tensor-parallel-size"
TOOL_CALL_PARSER = "tool-call-parser"
WATERMARK = "watermark"

NO_PLAIN_PORT: Mapping[str, str] = {
    "uds": "serves a socket file",
    "grpc": "serves gRPC alone",
    "headless": "serves no requests",
    "nnodes": "waits for other machines",
    "ssl-keyfile": "serves TLS alone",
    "ssl-certfile": "serves TLS alone",
    "ssl-ca-certs": "serves TLS alone",
    "ssl-cert-reqs": "serves TLS alone",
    "ssl-ciphers": "serves TLS alone",
    "enable-ssl-refresh": "serves TLS alone",
}
"""Flags with which no plain HTTP port opens, and what the server does instead. --nnodes 1 is harmless."""

SHORT_OPTIONS: Mapping[str, str] = {
    "O": "optimization-level",
    "ac": "attention-config",
    "asc": "api-server-count",
    "cc": "compilation-config",
    "dc": "diffusion-config",
    "dcp": DECODE_CONTEXT_PARALLEL,
    "dp": DATA_PARALLEL,
    "dpa": "data-parallel-address",
    "dpb": "data-parallel-backend",
    "dpe": "data-parallel-external-lb",
    "dph": "data-parallel-hybrid-lb",
    "dpl": "data-parallel-size-local",
    "dpm": "data-parallel-multi-port-external-lb",
    "dpn": "data-parallel-rank",
    "dpp": "data-parallel-rpc-port",
    "dpr": "data-parallel-start-rank",
    "ep": ENABLE_EXPERT_PARALLEL,
    "n": "nnodes",
    "pcp": "prefill-context-parallel-size",
    "pp": PIPELINE_PARALLEL,
    "q": QUANTIZATION,
    "r": "node-rank",
    "sc": SPECULATIVE_CONFIG,
    "tp": TENSOR_PARALLEL,
}
"""Long names of vLLM's short options (`--help=all` of 0.32). `-O3` is --optimization-level 3."""

CHANGE_MEMORY = (
    DATA_PARALLEL, DECODE_CONTEXT_PARALLEL, SPECULATIVE_CONFIG, ENABLE_LORA, CPU_OFFLOAD_GB,
    KV_OFFLOADING_SIZE, KV_TRANSFER_CONFIG, NUM_GPU_BLOCKS_OVERRIDE, KV_CACHE_DTYPE_SKIP_LAYERS, MAMBA_BLOCK_SIZE,
    MAMBA_CACHE_DTYPE, MAMBA_CACHE_MODE,
)  # fmt: skip
"""Flags that change a server's memory in ways that tuner/capacity.py does not model."""

CHANGE_CONFIG = (HF_OVERRIDES, HF_CONFIG_PATH, ROPE_SCALING, REVISION)
"""Flags that change the config.json which vLLM reads."""

ONLY_SERVING = frozenset({
    LONG_PREFILL_TOKEN_THRESHOLD, LONG_PREFILL_TOKEN_THRESHOLD_ADAPTIVE, MAX_NUM_PARTIAL_PREFILLS,
    MAX_LONG_PARTIAL_PREFILLS, MAX_NUM_ACTIVE_SEQS, MAX_NUM_SCHEDULED_TOKENS, PREFILL_SCHEDULE_INTERVAL,
    SCHEDULER_RESERVE_FULL_ISL, SCHEDULING_POLICY, WATERMARK, STREAM_INTERVAL,
})  # fmt: skip
"""Flags that the scheduler reads while it serves. They change nothing of a start's memory."""

SEARCHED = ONLY_SERVING | {
    MAX_NUM_SEQS, MAX_NUM_BATCHED_TOKENS, MAX_MODEL_LEN, GPU_MEMORY_UTILIZATION, KV_CACHE_MEMORY_BYTES,
    ENABLE_CHUNKED_PREFILL, MAX_CUDAGRAPH_CAPTURE_SIZE, NUM_GPU_BLOCKS_OVERRIDE, TENSOR_PARALLEL, PIPELINE_PARALLEL,
    "cudagraph-capture-sizes", "chunked-prefill",
}  # fmt: skip
"""Flags whose values differ from candidate to candidate. A refusal that names none is of what every start shares."""

NAMES_SEARCHED = re.compile(rf"(?<![\w-])(?:--)?(?i:{'|'.join(sorted(SEARCHED)).replace('-', '[-_ ]')})(?![\w-])")
"""Any of them, as a flag, as vLLM's code spells it, or in words."""
