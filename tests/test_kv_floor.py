"""The least memory that a request needs, derived from a start's log: never more than what vLLM needs."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from tuner.capacity import GIB, FirstStart, ServerFlags, calibrated, least_for, model_memory

COMMON: dict[str, object] = {"vocab_size": 1000, "intermediate_size": 4096, "max_position_embeddings": 262144}
QWEN3_NEXT: dict[str, object] = {
    **COMMON, "model_type": "qwen3_next", "num_hidden_layers": 48, "hidden_size": 2048, "num_attention_heads": 16,
    "num_key_value_heads": 2, "head_dim": 256, "full_attention_interval": 4, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip
KIMI_LINEAR: dict[str, object] = {
    **COMMON, "model_type": "kimi_linear", "num_hidden_layers": 27, "hidden_size": 2304, "num_attention_heads": 32,
    "num_key_value_heads": 32, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
    "linear_attn_config": {
        "full_attn_layers": [4, 8, 12, 16, 20, 24, 27], "num_heads": 32, "head_dim": 128, "short_conv_kernel_size": 4,
    },
}  # fmt: skip
GEMMA_3: dict[str, object] = {
    **COMMON, "model_type": "gemma3_text", "num_hidden_layers": 62, "hidden_size": 5376, "num_attention_heads": 32,
    "num_key_value_heads": 16, "head_dim": 128, "sliding_window": 1024, "sliding_window_pattern": 6,
}  # fmt: skip
LONGEST, UTILIZATION, POOL_GIB, GPU_GIB = 65536, 0.9, 12.0, 80.0


@pytest.mark.parametrize("config", [QWEN3_NEXT, KIMI_LINEAR, GEMMA_3], ids=["qwen3-next", "kimi-linear", "gemma-3"])
@pytest.mark.parametrize(("steps", "caches", "logs_both_lines"), list(product((1, 2), (False, True), (False, True))))
def test_no_release_of_vllm_starts_below_what_we_call_the_least(
    config: dict[str, object], steps: int, caches: bool, logs_both_lines: bool, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    flags = ServerFlags(8192, 256, 16, max_model_len=LONGEST)
    truth = model_memory(tmp_path, replace(flags, steps_in_flight=steps, caches_states=caches)).paging
    assert truth is not None
    blocks = int(POOL_GIB * GIB / truth.block_bytes)
    requests = round(blocks / truth.reserved(LONGEST), 2) if logs_both_lines else None
    first = FirstStart(
        truth.logged_tokens(blocks, LONGEST), POOL_GIB, utilization=UTILIZATION, concurrency=requests, length=LONGEST
    )
    gpu_bytes = int(GPU_GIB * GIB)
    memory = calibrated(model_memory(tmp_path, flags), first, gpu_bytes)
    for tokens in (512, 8192, LONGEST):
        least = least_for(memory, first, gpu_bytes, tokens)
        spare_gib = POOL_GIB - truth.reserved(tokens) * truth.block_bytes / GIB
        assert least is not None
        assert least <= UTILIZATION - spare_gib / GPU_GIB
