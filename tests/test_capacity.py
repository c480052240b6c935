"""Bytes by hand, from config shapes of real models; calibration by logs of real starts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tuner.capacity import (
    GIB,
    FirstStart,
    KvRoom,
    ModelMemory,
    ServerFlags,
    Span,
    WeightsFrom,
    at_kv_bytes,
    at_utilization,
    calibrated,
    model_memory,
)
from tuner.kv.config_json import UnknownModelError
from tuner.kv.pages import linear_paging
from tuner.model import shape_from_config
from tuner.sim import ClosedLoop, EngineArguments, Shape, Started, hardware_profile, load_model, simulate, startup
from tuner.vllm.facts import parse_facts

LOGS = Path(__file__).parent / "server" / "logs"
DEFAULT = ServerFlags(max_num_batched_tokens=8192, max_num_seqs=1024, block_tokens=16)
SMALL_CARD = ServerFlags(max_num_batched_tokens=2048, max_num_seqs=256, block_tokens=16)

LLAMA_3_8B: dict[str, object] = {
    "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN3_8B: dict[str, object] = {
    "num_hidden_layers": 36, "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960,
    "sliding_window": None, "use_sliding_window": False,
}  # fmt: skip
QWEN3_235B: dict[str, object] = {
    "num_hidden_layers": 94, "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 64,
    "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "num_experts": 128, "num_experts_per_tok": 8,
    "moe_intermediate_size": 1536,
}  # fmt: skip
DEEPSEEK_V3: dict[str, object] = {
    "num_hidden_layers": 61, "hidden_size": 7168, "intermediate_size": 18432, "num_attention_heads": 128,
    "num_key_value_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "vocab_size": 129280,
    "n_routed_experts": 256, "n_shared_experts": 1, "num_experts_per_tok": 8, "moe_intermediate_size": 2048,
    "quantization_config": {"quant_method": "fp8"},
}  # fmt: skip
GEMMA_3_27B: dict[str, object] = {
    "vision_config": {"hidden_size": 1152},
    "text_config": {
        "num_hidden_layers": 62, "hidden_size": 5376, "intermediate_size": 21504, "num_attention_heads": 32,
        "num_key_value_heads": 16, "head_dim": 128, "vocab_size": 262208, "sliding_window": 1024,
        "sliding_window_pattern": 6,
    },
}  # fmt: skip
TINY: dict[str, object] = {
    "num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 4096,
}  # fmt: skip
"""The model of the logs in server/logs (its README)."""


def memory(folder: Path, config: dict[str, object], flags: ServerFlags = DEFAULT) -> ModelMemory:
    (folder / "config.json").write_text(json.dumps(config))
    return model_memory(folder, flags)


def bytes_of_a_token(found: ModelMemory) -> float:
    assert found.kv_bytes_per_token is not None, found.unknown_kv
    return found.kv_bytes_per_token


@pytest.mark.parametrize(
    ("config", "ranks", "bytes_per_token"),
    [
        (LLAMA_3_8B, 1, 131_072),  # 2 · 32 layers · 8 heads · 128 · 2 bytes
        (LLAMA_3_8B, 4, 32_768),
        (QWEN3_8B, 1, 147_456),  # 2 · 36 · 8 · 128 · 2
        (QWEN3_235B, 4, 48_128),  # 2 · 94 · 1 · 128 · 2
        (QWEN3_235B, 8, 48_128),  # four heads on eight GPUs: each GPU has a copy of one
        (DEEPSEEK_V3, 1, 70_272),  # (512 + 64) · 61 · 2
        (DEEPSEEK_V3, 8, 70_272),  # one latent for all heads, whole on every GPU
    ],
)
def test_kv_bytes_of_a_token_are_those_reckoned_by_hand(
    config: dict[str, object], ranks: int, bytes_per_token: int, tmp_path: Path
) -> None:
    flags = replace(DEFAULT, tensor_parallel_size=ranks)
    assert memory(tmp_path, config, flags).kv_bytes_per_token == bytes_per_token


@pytest.mark.parametrize(
    ("flags", "bytes_per_token"),
    [
        (replace(DEFAULT, kv_cache_dtype="fp8"), 65_536),
        (replace(DEFAULT, kv_cache_dtype="fp8_e4m3"), 65_536),
        (replace(DEFAULT, kv_cache_dtype="bfloat16"), 131_072),
        (replace(DEFAULT, dtype="float32"), 262_144),
        (replace(DEFAULT, dtype="float32", kv_cache_dtype="fp8"), 65_536),
    ],
)
def test_the_flags_for_types_change_the_bytes_of_a_token(
    flags: ServerFlags, bytes_per_token: int, tmp_path: Path
) -> None:
    assert memory(tmp_path, LLAMA_3_8B, flags).kv_bytes_per_token == bytes_per_token


def test_weights_without_files_come_from_the_config_and_are_split_over_the_gpus(tmp_path: Path) -> None:
    whole = memory(tmp_path, LLAMA_3_8B)
    assert whole.weights_from is WeightsFrom.CONFIG
    assert whole.weights_bytes is not None
    assert whole.weights_bytes / GIB == pytest.approx(14.96, abs=0.01)  # "Model loading took 14.96 GiB"
    quarter = memory(tmp_path, LLAMA_3_8B, replace(DEFAULT, tensor_parallel_size=4))
    assert quarter.weights_bytes == whole.weights_bytes // 4


@pytest.mark.parametrize(
    ("config", "stages", "layers"),
    [
        (LLAMA_3_8B, 3, (11, 11, 10)),
        (LLAMA_3_8B, 4, (8, 8, 8, 8)),
        (QWEN3_8B, 5, (7, 7, 7, 8, 7)),
        (TINY, 3, (1, 2, 1)),
    ],
)
def test_stages_share_the_layers_as_vllm_does_and_the_fullest_counts(
    config: dict[str, object], stages: int, layers: tuple[int, ...], tmp_path: Path
) -> None:
    whole = memory(tmp_path, config)
    part = memory(tmp_path, config, replace(DEFAULT, pipeline_parallel_size=stages))
    assert shape_from_config("x", config).stages(stages) == layers
    assert bytes_of_a_token(part) == bytes_of_a_token(whole) * max(layers) / sum(layers)
    assert whole.weights_bytes is not None and part.weights_bytes is not None
    assert whole.weights_bytes / stages <= part.weights_bytes < whole.weights_bytes
    assert part.not_modelled == whole.not_modelled


@pytest.mark.parametrize(
    ("dtype", "flags", "loaded"),
    [
        ("bfloat16", DEFAULT, 3000),
        ("float32", DEFAULT, 1500),  # vLLM runs an FP32 checkpoint at 16 bits
        ("float32", replace(DEFAULT, dtype="float32"), 3000),
        ("bfloat16", replace(DEFAULT, tensor_parallel_size=2), 1500),
    ],
)
def test_weight_files_are_counted_as_loading_changes_them(
    dtype: str, flags: ServerFlags, loaded: int, tmp_path: Path
) -> None:
    for name, size in (
        ("model-1.safetensors", 1000),
        ("model-2.safetensors", 2000),
        ("consolidated.safetensors", 3000),
    ):
        (tmp_path / name).write_bytes(b"\0" * size)
    found = memory(tmp_path, {**LLAMA_3_8B, "torch_dtype": dtype}, flags)
    assert (found.weights_from, found.weights_bytes) == (WeightsFrom.FILES, loaded)


def test_quantisation_while_loading_halves_all_but_the_embeddings(tmp_path: Path) -> None:
    plain, half = (memory(tmp_path, LLAMA_3_8B, replace(DEFAULT, quantization=q)).weights_bytes for q in (None, "fp8"))
    embeddings = 2 * 128256 * 4096 * 2
    assert plain is not None
    assert half == (plain - embeddings) // 2 + embeddings


def test_an_architecture_whose_weights_are_not_counted_has_no_table_of_shares_but_one_of_bytes(tmp_path: Path) -> None:
    deepseek = memory(tmp_path, DEEPSEEK_V3)
    assert deepseek.weights_bytes is None
    assert at_utilization(deepseek, 141 * GIB, 0.9) is None
    room = at_kv_bytes(deepseek, GIB)
    assert room is not None
    assert room.kv_tokens == Span(15_264, 15_264)


def test_weights_that_are_not_counted_are_said(tmp_path: Path) -> None:
    assert memory(tmp_path, GEMMA_3_27B).not_modelled == ("the weights of vision_config: fewer tokens than shown",)


@pytest.mark.parametrize(
    ("config", "flags", "said"),
    [
        ({**LLAMA_3_8B, "layer_types": ["moe"] * 32}, DEFAULT, "no layer of the model keeps a KV cache"),
        ({**LLAMA_3_8B, "layer_types": ["full_attention"] * 31 + ["odd_attention"]}, DEFAULT, "odd_attention"),
        ({**LLAMA_3_8B, "mamba_d_state": 256}, DEFAULT, "mamba_d_state"),
        ({**LLAMA_3_8B, "compress_ratios": [0, 4, 128]}, DEFAULT, "compressed KV"),
        (LLAMA_3_8B, replace(DEFAULT, kv_cache_dtype="turboquant_4bit"), "turboquant_4bit"),
    ],
)
def test_what_layers_keep_is_left_to_the_first_start_where_it_is_not_modelled(
    config: dict[str, object], flags: ServerFlags, said: str, tmp_path: Path
) -> None:
    found = memory(tmp_path, config, flags)
    assert said in str(found.unknown_kv)
    assert at_kv_bytes(found, GIB) is None
    assert at_utilization(found, 80 * GIB, 0.9) is None
    known = calibrated(found, FirstStart(100_000, 10.0, 15.0, utilization=0.9), 80 * GIB)
    room = at_utilization(known, 80 * GIB, 0.9)
    assert room is not None
    assert room.kv_tokens.low == pytest.approx(100_000, rel=1e-3)


def test_flags_that_change_the_sum_are_said(tmp_path: Path) -> None:
    mentioned = frozenset({"speculative-config", "seed"})
    flags = replace(DEFAULT, quantization="experts_int8", mentioned=mentioned)
    assert memory(tmp_path, LLAMA_3_8B, flags).not_modelled == (
        "--quantization experts_int8: the weights are counted as they are stored",
        "--speculative-config",
    )


@pytest.mark.parametrize("config", [LLAMA_3_8B, QWEN3_8B, QWEN3_235B])
def test_a_plain_model_has_nothing_left_out(config: dict[str, object], tmp_path: Path) -> None:
    assert memory(tmp_path, config).not_modelled == ()


@pytest.mark.parametrize(
    ("config", "flags", "said"),
    [
        ({"max_position_embeddings": 4096}, DEFAULT, "num_hidden_layers"),
        ({**LLAMA_3_8B, "num_attention_heads": 0}, DEFAULT, "without width, heads"),
        ({**LLAMA_3_8B, "num_hidden_layers": -1}, DEFAULT, "num_hidden_layers"),
    ],
)
def test_what_is_not_understood_is_refused_with_the_reason(
    config: dict[str, object], flags: ServerFlags, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UnknownModelError, match=said):
        memory(tmp_path, config, flags)


def test_the_estimate_holds_starts_that_others_logged(tmp_path: Path) -> None:
    # vLLM pull requests 10511 and 12126: 71.29 GiB asked for, 14.96 of weights, 1.26 of activations, 0.16 outside
    # torch, with 8,192 tokens and 256 sequences; NVML says 79.65 GiB of that card.
    h100 = at_utilization(
        memory(tmp_path, LLAMA_3_8B, replace(SMALL_CARD, max_num_batched_tokens=8192)), gib(79.65), 0.9
    )
    # A public log of an RTX A5000, 23.99 GiB, Llama-3.1-8B, eager: "Available KV cache memory: 5.29 GiB".
    a5000 = at_utilization(memory(tmp_path, LLAMA_3_8B, SMALL_CARD), gib(23.99), 0.9)
    assert h100 is not None
    assert a5000 is not None
    assert h100.kv_bytes.low < gib(71.29 - 14.96 - 1.26 - 0.16) < h100.kv_bytes.high
    assert a5000.kv_tokens.low < 43_296 < a5000.kv_tokens.high


def gib(amount: float) -> int:
    return int(amount * GIB)


def test_more_utilization_is_more_room_and_none_is_less_than_none(tmp_path: Path) -> None:
    found = memory(tmp_path, LLAMA_3_8B)
    rooms = [at_utilization(found, gib(24), u) for u in (0.5, 0.8, 0.9, 0.97)]
    lows = [room.kv_tokens.low for room in rooms if room is not None]
    assert lows == sorted(lows)
    assert lows[0] == 0  # 12 GiB do not hold the weights
    assert rooms[0] is not None
    assert rooms[0].sequences(100) == Span(0, 0)


def test_a_request_has_whole_blocks_and_one_block_serves_no_request() -> None:
    room = KvRoom(Span(0, 0), Span(101, 201), linear_paging(1000, 16), 4096)
    assert room.kv_tokens == Span(1616, 3216)
    assert room.sequences(16) == Span(100, 200)
    assert room.sequences(17) == Span(50, 100)


def test_so_many_of_the_longest_requests_run_without_preemption_and_half_as_many_again_do_not() -> None:
    hardware, model = hardware_profile("h100"), load_model("Qwen/Qwen3-8B")
    flags = EngineArguments(max_model_len=2048, kv_cache_memory_bytes=2 * GIB, max_num_seqs=256)
    started = startup(flags, hardware, model)
    assert isinstance(started, Started)
    pages = linear_paging(1, started.config.block_size)
    room = KvRoom(Span(2 * GIB, 2 * GIB), Span(started.kv_blocks, started.kv_blocks), pages, 2048)
    bound = room.sequences(300).low
    preemptions = [
        simulate(started, hardware, model, ClosedLoop([Shape(40, 260)], clients=clients, duration_s=20.0)).preemptions
        for clients in (bound, bound * 3 // 2)
    ]
    assert preemptions[0] == 0
    assert preemptions[1] > 0


def test_bytes_of_a_real_start_give_the_tokens_that_its_log_says(tmp_path: Path) -> None:
    facts = parse_facts((LOGS / "0.32-worker-killed.log").read_text(encoding="utf-8"))
    found = memory(tmp_path, TINY, replace(DEFAULT, block_tokens=128))
    room = at_kv_bytes(found, 41_943_040)
    assert room is not None
    assert room.kv_tokens.low == facts.kv_tokens == 10_240
    # 0.32-kv-too-small.log, the same cache: "the estimated maximum model length is 10112".
    assert (room.sequences(10_112).low, room.sequences(10_113).low) == (1, 0)
    first = FirstStart(kv_tokens=10_240, kv_gib=facts.kv_memory_gib, kv_bytes=41_943_040)
    assert calibrated(found, first, None) == found


def test_a_first_start_on_gpus_makes_every_other_utilization_exact_to_a_block(tmp_path: Path) -> None:
    facts = parse_facts((LOGS / "constructed-0.26-facts-gpu.log").read_text(encoding="utf-8"))
    assert facts.kv_tokens is not None
    first = FirstStart(facts.kv_tokens, facts.kv_memory_gib, facts.weights_gib, utilization=0.85)
    estimate = memory(tmp_path, LLAMA_3_8B, replace(SMALL_CARD, tensor_parallel_size=2))
    known = calibrated(estimate, first, gib(24))
    assert known.weights_from is WeightsFrom.LOG
    same, more = at_utilization(known, gib(24), 0.85), at_utilization(known, gib(24), 0.90)
    assert same is not None
    assert more is not None
    assert same.kv_tokens == Span(204_944, 204_944)
    assert more.kv_tokens.low == more.kv_tokens.high
    assert 0 <= 204_944 + 0.05 * gib(24) / 65_536 - more.kv_tokens.low < 16


def test_the_logs_bytes_of_a_token_replace_the_configs_where_they_differ(tmp_path: Path) -> None:
    estimate = memory(tmp_path, LLAMA_3_8B)
    known = calibrated(estimate, FirstStart(50_000, 12.0, 15.0, utilization=0.92), gib(64))
    assert bytes_of_a_token(known) == pytest.approx(12.0 * GIB / 50_000)
    # Two decimals of a small cache are no evidence against config.json.
    assert bytes_of_a_token(calibrated(estimate, FirstStart(850, 0.11), None)) == bytes_of_a_token(estimate)
