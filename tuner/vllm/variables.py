"""Names of vLLM's environment variables and HTTP headers."""

from __future__ import annotations

from collections.abc import Mapping

API_KEY = "VLLM_API_KEY"
CACHE_ROOT = "VLLM_CACHE_ROOT"
CONFIGURE_LOGGING = "VLLM_CONFIGURE_LOGGING"
CPU_CORES = "VLLM_CPU_OMP_THREADS_BIND"
RPC_BASE_PATH = "VLLM_RPC_BASE_PATH"
LOGGING = "VLLM_LOGGING_"
"""Beginning of the names that say how much is logged, how and where."""
STARTUP_PLAN = "VLLM_ENABLE_STARTUP_PLAN"

ENGINE_HEADER = "X-data-parallel-rank"
"""Header that sends a request to one engine of a server with several."""


def with_start_facts(env: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which a server logs what it says of itself: size of the KV cache, phases, refusals.
    A user's quieter level or own logging would hide them. DEBUG stays."""
    kept = {name: value for name, value in env.items() if name != CONFIGURE_LOGGING and not name.startswith(LOGGING)}
    level = f"{LOGGING}LEVEL"
    return {**kept, level: "DEBUG" if env.get(level, "").upper() == "DEBUG" else "INFO"}
