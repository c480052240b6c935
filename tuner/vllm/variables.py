"""Names of vLLM's environment variables."""

from __future__ import annotations

API_KEY = "VLLM_API_KEY"
CACHE_ROOT = "VLLM_CACHE_ROOT"
RPC_BASE_PATH = "VLLM_RPC_BASE_PATH"
STARTUP_PLAN = "VLLM_ENABLE_STARTUP_PLAN"
