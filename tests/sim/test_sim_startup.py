"""Starts that succeed, starts that are refused with their words, and the KV cache that is left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tuner.sim import Cause, EngineArguments, ModelShape, Refused, Started, hardware_profile, load_model, startup
from tuner.sim.hardware import GIB, PROFILES

H100, CPU = hardware_profile("H100"), replace(hardware_profile("this CPU"), memory_bytes=16 * GIB)
LLAMA = load_model("meta-llama/Llama-3.1-8B-Instruct")
TINY = ModelShape("tiny", 4, 4, 256, 704, 4, 4, 64, 4096, 16384)


def started(arguments: EngineArguments, **more: object) -> Started:
    outcome = startup(arguments, H100, LLAMA, **more)  # type: ignore[arg-type]
    assert isinstance(outcome, Started), outcome
    return outcome


def refused(arguments: EngineArguments, **more: object) -> Refused:
    outcome = startup(arguments, H100, LLAMA, **more)  # type: ignore[arg-type]
    assert isinstance(outcome, Refused), outcome
    return outcome


@pytest.mark.parametrize(
    ("profile", "batched", "seqs"),
    [("h100", 8192, 1024), ("h200", 8192, 1024), ("b200", 16384, 1024), ("a100", 2048, 256), ("rtx 4090", 2048, 256)],
)
def test_defaults_follow_device_memory(profile: str, batched: int, seqs: int) -> None:
    outcome = startup(EngineArguments(max_model_len=4096), hardware_profile(profile), LLAMA)
    assert isinstance(outcome, Started)
    assert (outcome.config.max_num_batched_tokens, outcome.config.max_num_seqs) == (batched, seqs)


def test_kv_bytes_per_token_come_from_the_config() -> None:
    assert LLAMA.kv_bytes_per_token(2) == 2 * 32 * 8 * 128 * 2
    assert TINY.kv_bytes_per_token(2) == 4096


def test_parameters_add_up_to_the_models_name() -> None:
    assert LLAMA.total_parameters / 1e9 == pytest.approx(8.03, rel=0.01)
    assert load_model("Qwen/Qwen3.6-27B").total_parameters / 1e9 == pytest.approx(27, rel=0.03)
    assert load_model("Qwen/Qwen3-30B-A3B").total_parameters / 1e9 == pytest.approx(30.5, rel=0.03)


def test_more_batched_tokens_and_seqs_leave_less_kv_cache() -> None:
    sizes = [
        started(EngineArguments(max_model_len=4096, max_num_batched_tokens=tokens, max_num_seqs=seqs)).kv_tokens
        for tokens, seqs in ((1024, 64), (16384, 64), (16384, 256))
    ]
    assert sizes[0] > sizes[1] > sizes[2]


def test_fp8_cache_holds_twice_the_tokens() -> None:
    plain, half = (started(EngineArguments(max_model_len=4096, kv_cache_dtype=kind)) for kind in ("auto", "fp8"))
    assert half.kv_tokens == pytest.approx(2 * plain.kv_tokens, rel=0.001)


def test_tensor_parallel_shares_weights_and_heads() -> None:
    one, four = (started(EngineArguments(max_model_len=4096, tensor_parallel_size=ranks)) for ranks in (1, 4))
    assert four.memory.weights == pytest.approx(one.memory.weights / 4, rel=0.001)
    assert four.kv_tokens > 4 * one.kv_tokens


def test_too_small_a_cache_names_the_length_that_would_fit() -> None:
    """vLLM 0.32 said so (docs/vllm.md): 40 MiB, 4 KiB a token, blocks of 128, one of them the null block."""
    outcome = startup(EngineArguments(kv_cache_memory_bytes=40 << 20), CPU, TINY)
    assert isinstance(outcome, Refused) and outcome.cause is Cause.KV_TOO_SMALL
    assert "To serve at least one request with the model's max seq len (16384), (0.06 GiB KV cache" in outcome.message
    assert "the estimated maximum model length is 10112" in outcome.message


def test_the_estimated_length_starts() -> None:
    arguments = EngineArguments(kv_cache_memory_bytes=40 << 20, max_model_len=10112)
    outcome = startup(arguments, CPU, TINY)
    assert isinstance(outcome, Started) and outcome.kv_tokens == 10240


def test_auto_length_is_what_fits() -> None:
    outcome = startup(EngineArguments(kv_cache_memory_bytes=40 << 20, max_model_len=-1), CPU, TINY)
    assert isinstance(outcome, Started) and outcome.config.max_model_len == 10112


def test_memory_of_others_is_refused_in_vllms_words() -> None:
    refusal = refused(EngineArguments(max_model_len=4096), held_bytes=20 * GIB)
    assert refusal.cause is Cause.MEMORY_HELD
    assert "Free memory on device cuda:0 (59.19/79.19 GiB) on startup is less than desired" in refusal.message


def test_weights_that_do_not_fit_are_out_of_memory() -> None:
    outcome = startup(EngineArguments(), H100, load_model("meta-llama/Llama-3.3-70B-Instruct"))
    assert isinstance(outcome, Refused) and outcome.cause is Cause.OUT_OF_MEMORY
    assert "CUDA out of memory. Tried to allocate" in outcome.message


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (EngineArguments(max_num_seqs=512, max_num_batched_tokens=256),
         "max_num_batched_tokens (256) must be greater than or equal to max_num_seqs (512)."),
        (EngineArguments(max_model_len=4096, max_num_batched_tokens=2048, enable_chunked_prefill=False),
         "max_num_batched_tokens (2048) is smaller than max_model_len (4096)."),
        (EngineArguments(max_num_seqs=8, max_num_active_seqs=9),
         "max_num_active_seqs (9) cannot be greater than max_num_seqs (8)."),
        (EngineArguments(max_model_len=4096, long_prefill_token_threshold=5000),
         "long_prefill_token_threshold (5000) cannot be greater than the max_model_len (4096)."),
        (EngineArguments(max_model_len=999_999), "User-specified max_model_len (999999) is greater than the derived"),
        (EngineArguments(tensor_parallel_size=3), "must be divisible by tensor parallel size (3)."),
        (EngineArguments(tensor_parallel_size=16), "World size (16) is larger than the number of available GPUs (8)"),
        (EngineArguments(gpu_memory_utilization=1.5), "validation error for CacheConfig"),
        (EngineArguments(max_num_seqs=0), "validation error for SchedulerConfig"),
    ],
)  # fmt: skip
def test_argument_rules_have_vllms_words(arguments: EngineArguments, words: str) -> None:
    assert words in refused(arguments).message


def test_batched_tokens_are_raised_to_the_length_without_chunking() -> None:
    outcome = started(EngineArguments(max_model_len=32768, enable_chunked_prefill=False))
    assert outcome.config.max_num_batched_tokens == 32768


@pytest.mark.parametrize(
    ("change", "cold"),
    [
        ({"max_num_batched_tokens": 4096}, True), ({"max_num_seqs": 100}, True), ({"max_model_len": 2048}, True),
        ({"gpu_memory_utilization": 0.8}, False), ({"long_prefill_token_threshold": 64}, False),
        ({"enable_prefix_caching": False}, False), ({"watermark": 0.1}, False), ({"max_num_active_seqs": 4}, False),
    ],
)  # fmt: skip
def test_compile_cache_is_keyed_as_vllms(change: dict[str, object], cold: bool) -> None:
    first = started(EngineArguments(max_model_len=4096))
    arguments = replace(EngineArguments(max_model_len=4096), **change)  # type: ignore[arg-type]
    second = started(arguments, compiled={first.compile_key})
    assert (second.compile_key != first.compile_key) is cold
    assert (second.phases.compile_s == first.phases.compile_s) is cold


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_serves_a_small_model(name: str) -> None:
    arguments = EngineArguments(max_model_len=2048, gpu_memory_utilization=0.8)
    assert isinstance(startup(arguments, PROFILES[name], load_model("Qwen/Qwen3-0.6B")), Started)
