"""What a server says of its engines: throughput lines in the log, and the cache's configuration in /metrics."""

from __future__ import annotations

import asyncio
import os

from tuner.sim.engine_loop import EngineLoop
from tuner.sim.engine_pool import EnginePool
from tuner.sim.log import Log
from tuner.sim.metrics import Metrics
from tuner.sim.startup import Started


async def report(pool: EnginePool, log: Log, device: str) -> None:
    """Log the throughput of each engine every VLLM_LOG_STATS_INTERVAL seconds."""
    interval_s = float(os.environ.get("VLLM_LOG_STATS_INTERVAL") or 10.0)
    before = [engine.tokens_seen for engine in pool.engines]
    while True:
        await asyncio.sleep(interval_s)
        for rank, engine in enumerate(pool.engines):
            now = engine.tokens_seen
            rates = [(there - here) / interval_s for there, here in zip(now, before[rank], strict=True)]
            log.info("loggers.py:282", _throughput(rank, engine, rates, device))
            before[rank] = now


def _throughput(rank: int, engine: EngineLoop, rates: list[float], device: str) -> str:
    scheduler = engine.scheduler
    preempted = f"Preemptions: {scheduler.preemptions}, " if scheduler.preemptions else ""
    hit_rate = 100.0 * scheduler.prefix_hits / max(1, scheduler.prefix_queries)
    return (
        f"Engine {rank:03}: Avg prompt throughput: {rates[0]:.1f} tokens/s, "
        f"Avg generation throughput: {rates[1]:.1f} tokens/s, "
        f"Running: {len(scheduler.running)} reqs, Waiting: {len(scheduler.waiting)} reqs, {preempted}"
        f"{device} KV cache usage: {100 * scheduler.pool.usage:.1f}%, Prefix cache hit rate: {hit_rate:.1f}%"
    )


def describe_cache(metrics: Metrics, started: Started) -> None:
    """Set vllm:cache_config_info of an engine."""
    config = started.config
    metrics.set_cache_config(
        {
            "block_size": str(config.block_size),
            "cache_dtype": config.kv_cache_dtype,
            "enable_prefix_caching": str(config.enable_prefix_caching),
            "gpu_memory_utilization": str(config.gpu_memory_utilization),
            "kv_cache_memory_bytes": str(config.kv_cache_memory_bytes),
            "kv_cache_max_concurrency": str(started.max_concurrency),
            "kv_cache_size_tokens": str(started.kv_tokens),
            "num_gpu_blocks": str(started.kv_blocks),
            "num_gpu_blocks_override": str(config.num_gpu_blocks_override),
        }
    )
