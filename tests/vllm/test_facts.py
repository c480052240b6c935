"""Start-up logs of several versions → StartFacts."""

from __future__ import annotations

from pathlib import Path

from tuner.vllm.facts import StartFacts, parse_facts

LOGS = Path(__file__).parents[1] / "server" / "logs"


def facts(name: str) -> StartFacts:
    return parse_facts((LOGS / f"{name}.log").read_text(encoding="utf-8"), max_model_len=8192)


def test_two_line_form_of_026_with_two_workers_gives_the_figures_that_limit() -> None:
    assert facts("constructed-0.26-facts-gpu") == StartFacts(
        vllm_version="0.26.0",
        kv_tokens=204_944,
        kv_memory_gib=12.32,
        max_concurrency=25.02,
        concurrency_tokens=8192,
        weights_gib=7.6065,
        compile_s=18.41,
        compile_cache_hit=False,
        engine_init_s=30.16,
        max_model_len=8192,
    )


def test_one_line_form_of_028_with_a_warm_compile_cache() -> None:
    assert facts("constructed-0.28-facts-gpu") == StartFacts(
        vllm_version="0.28.0",
        kv_tokens=123_456,
        max_concurrency=15.07,
        concurrency_tokens=8192,
        compile_cache_hit=True,
        engine_init_s=9.8,
        max_model_len=8192,
    )


def test_cpu_form_of_032() -> None:
    found = facts("0.32-worker-killed")
    assert (found.vllm_version, found.kv_tokens, found.kv_memory_gib) == ("0.32.0", 10_240, 0.04)
    assert found.max_concurrency == 5.0
    assert found.compile_s is None and found.compile_cache_hit is None


def test_a_silent_log_gives_none_and_not_zero() -> None:
    assert parse_facts("") == StartFacts()


def test_the_length_of_the_counted_requests_and_the_block_of_a_model_with_states_are_read() -> None:
    found = parse_facts(
        "INFO [config.py:281] Setting attention block size to 944 tokens to ensure that attention page size is >= "
        "mamba page size.\n"
        "INFO [kv_cache_utils.py:1316] Maximum concurrency for 120,000 tokens per request: 2.48x\n"
    )
    assert (found.max_concurrency, found.concurrency_tokens, found.block_tokens) == (2.48, 120_000, 944)
