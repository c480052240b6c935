"""Key of vLLM's compile cache: the flags that decide which compiled code runs."""

from __future__ import annotations

from tuner.vllm import knobs

NOT_IN_THE_KEY = knobs.ONLY_SERVING | {
    knobs.GPU_MEMORY_UTILIZATION, knobs.KV_CACHE_MEMORY_BYTES, knobs.NUM_GPU_BLOCKS_OVERRIDE,
    knobs.ENABLE_PREFIX_CACHING, knobs.ENABLE_CHUNKED_PREFILL, knobs.ASYNC_SCHEDULING, knobs.DATA_PARALLEL,
}  # fmt: skip
"""Flags that the key leaves out: compute_hash in vllm/config/scheduler.py, cache.py and model.py (0.32).

Of the scheduler it holds max-num-seqs (before 0.29 only below 256) and max-num-batched-tokens alone, of the KV cache
nothing that sets its size. It holds data-parallel-size, but a candidate's is the number of its servers, which are
started one by one. A flag that is not listed counts as part of the key: a start that is wrongly called cold costs
nothing but a longer estimate.
"""
