from __future__ import annotations

from dataclasses import replace

import pytest

from tuner.candidate import Candidate
from tuner.launch import LaunchBase, given_word, launch, mentioned_flags
from tuner.placement import GpuGroup

BASE = LaunchBase(
    command=("vllm", "serve"),
    model="/models/my model",
    flags=("shutdown-timeout",),
    fixed=(("enable-prefix-caching", True),),
    extra=("--kv-cache-dtype", "fp8"),
    env=(("VLLM_CACHE_ROOT", "/studies/a/vllm_cache"),),
)
CANDIDATE = Candidate.of({"max-num-seqs": 64, "gpu-memory-utilization": 0.9, "enable-chunked-prefill": False})


def test_the_words_are_the_models_the_candidates_and_the_persons_own() -> None:
    assert launch(BASE, CANDIDATE, GpuGroup()).argv("127.0.0.1", 8001) == (
        "vllm", "serve", "/models/my model",
        "--enable-prefix-caching", "--no-enable-chunked-prefill", "--gpu-memory-utilization", "0.9",
        "--max-num-seqs", "64", "--shutdown-timeout", "10", "--kv-cache-dtype", "fp8",
        "--host", "127.0.0.1", "--port", "8001",
    )  # fmt: skip


def test_a_saved_start_up_plan_is_never_used() -> None:
    assert ("VLLM_ENABLE_STARTUP_PLAN", "0") in launch(BASE, CANDIDATE, GpuGroup()).env


def test_a_group_is_bound_to_its_gpus_and_its_numa_node() -> None:
    spec = launch(BASE, CANDIDATE, GpuGroup((2, 3), ("numactl", "--cpunodebind=1", "--membind=1"), 1))
    assert ("CUDA_VISIBLE_DEVICES", "2,3") in spec.env
    assert spec.argv("h", 1)[:4] == ("numactl", "--cpunodebind=1", "--membind=1", "vllm")


def test_a_module_entry_point_gets_the_model_as_a_flag() -> None:
    command = ("python", "-m", "vllm.entrypoints.openai.api_server")
    assert launch(replace(BASE, command=command), Candidate(), GpuGroup()).argv("h", 1)[3:5] == (
        "--model",
        "/models/my model",
    )


def test_a_container_gets_the_environment_by_its_own_options() -> None:
    command = ("docker", "run", "--gpus", "all", "vllm/vllm-openai")
    spec = launch(replace(BASE, command=command), Candidate(), GpuGroup((0,), ("numactl",), 0))
    assert spec.in_container
    assert spec.prefix == ()
    words = spec.argv("0.0.0.0", 8000)
    assert words[:4] == ("docker", "run", "-e", "CUDA_VISIBLE_DEVICES=0")
    assert words.index("vllm/vllm-openai") < words.index("--model")


def test_a_version_without_shutdown_timeout_is_not_given_one() -> None:
    assert "--shutdown-timeout" not in launch(replace(BASE, flags=()), CANDIDATE, GpuGroup()).argv("h", 1)


@pytest.mark.parametrize("own", [("--shutdown-timeout", "3"), ("--shutdown_timeout=3",)])
def test_the_persons_own_shutdown_timeout_stays_alone(own: tuple[str, ...]) -> None:
    words = launch(replace(BASE, extra=own), CANDIDATE, GpuGroup()).argv("h", 1)
    assert "10" not in words


def test_flags_are_known_by_every_spelling() -> None:
    assert mentioned_flags(("--max_num_seqs=3", "--no-enable-prefix-caching", "-tp", "2", "value")) == {
        "max-num-seqs",
        "enable-prefix-caching",
    }


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        (("--kv-cache-dtype", "fp8"), "fp8"),
        (("--kv_cache_dtype=fp8_e5m2", "--seed", "1"), "fp8_e5m2"),
        (("--kv-cache-dtype", "fp8", "--kv-cache-dtype", "auto"), "auto"),
        (("--seed", "1"), None),
        (("--kv-cache-dtype", "--seed", "1"), None),
        (("--kv-cache-dtype",), None),
    ],
)
def test_a_given_word_is_the_last_that_the_person_gave(extra: tuple[str, ...], word: str | None) -> None:
    assert given_word(extra, "kv-cache-dtype") == word
