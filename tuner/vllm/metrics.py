"""Names of vLLM's metrics, across versions."""

from __future__ import annotations

from collections.abc import Mapping

EXPOSED: Mapping[str, tuple[str, ...]] = {
    "running": ("vllm:num_requests_running",),
    "waiting": ("vllm:num_requests_waiting",),
    "kv_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "preemptions": ("vllm:num_preemptions_total",),
    "request_preemptions": ("vllm:request_num_preemptions_sum",),
    "succeeded": ("vllm:request_success_total",),
    "prompt_tokens": ("vllm:prompt_tokens_total",),
    "generation_tokens": ("vllm:generation_tokens_total",),
    "prefix_queries": ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"),
    "prefix_hits": ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    "queue_s": ("vllm:request_queue_time_seconds_sum",),
    "queued": ("vllm:request_queue_time_seconds_count",),
    "server_ttft_s": ("vllm:time_to_first_token_seconds_sum",),
    "server_ttft_count": ("vllm:time_to_first_token_seconds_count",),
}
"""Our name of a metric → the names that vLLM gave it, newest first: `gpu_` until 0.10.2."""

FINISHED_REASONS = ("stop", "length")
"""Values of the label finished_reason for requests that were answered in full."""
