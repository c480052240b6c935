"""Names of vLLM's environment variables and HTTP headers."""

from __future__ import annotations

API_KEY = "VLLM_API_KEY"
CACHE_ROOT = "VLLM_CACHE_ROOT"
CPU_CORES = "VLLM_CPU_OMP_THREADS_BIND"
RPC_BASE_PATH = "VLLM_RPC_BASE_PATH"
STARTUP_PLAN = "VLLM_ENABLE_STARTUP_PLAN"

ENGINE_HEADER = "X-data-parallel-rank"
"""Header that sends a request to one engine of a server with several."""
