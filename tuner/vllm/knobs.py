"""Names of vLLM's flags, without dashes. Everything else refers to a flag by its name here."""

from __future__ import annotations

from collections.abc import Mapping

API_KEY = "api-key"
DATA_PARALLEL = "data-parallel-size"
DECODE_CONTEXT_PARALLEL = "decode-context-parallel-size"
ENABLE_EXPERT_PARALLEL = "enable-expert-parallel"
ENFORCE_EAGER = "enforce-eager"
HF_TOKEN = "hf-token"
HOST = "host"
MAX_MODEL_LEN = "max-model-len"
MAX_NUM_SEQS = "max-num-seqs"
MODEL = "model"
PIPELINE_PARALLEL = "pipeline-parallel-size"
PORT = "port"
QUANTIZATION = "quantization"
SHUTDOWN_TIMEOUT = "shutdown-timeout"
SPECULATIVE_CONFIG = "speculative-config"
TENSOR_PARALLEL = "tensor-parallel-size"

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
