from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.candidate import Candidate
from tuner.jsonfile import dumps, loads
from tuner.launch import LaunchBase, LaunchSpec, launch
from tuner.placement import GpuGroup
from tuner.sim.arguments import parse

BASE = LaunchBase(
    command=("vllm", "serve"),
    model="/models/my model",
    flags=("shutdown-timeout",),
    fixed=(("enable-prefix-caching", True),),
    extra=("--kv-cache-dtype", "fp8"),
    env=(("VLLM_CACHE_ROOT", "/studies/a/vllm_cache"),),
)
CANDIDATE = Candidate.of({"max-num-seqs": 64, "gpu-memory-utilization": 0.9, "enable-chunked-prefill": False})


def test_the_words_are_the_models_the_candidates_and_the_users() -> None:
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
def test_the_users_shutdown_timeout_stays_alone(own: tuple[str, ...]) -> None:
    words = launch(replace(BASE, extra=own), CANDIDATE, GpuGroup()).argv("h", 1)
    assert "10" not in words


def test_the_spec_keeps_the_values_that_take_effect_and_the_gpus() -> None:
    base = replace(BASE, extra=("--max_num_seqs=8", "--kv-cache-dtype", "fp8", "-tp", "2"))
    spec = launch(base, CANDIDATE, GpuGroup((2, 3), (), 1))
    assert dict(spec.flags) == {
        "enable-prefix-caching": True,
        "enable-chunked-prefill": False,
        "gpu-memory-utilization": 0.9,
        "max-num-seqs": 8,
        "shutdown-timeout": 10,
        "kv-cache-dtype": "fp8",
        "tensor-parallel-size": 2,
    }
    assert spec.max_num_seqs == 8
    assert spec.gpus == (2, 3)


def test_a_record_without_flags_and_gpus_reads_them_from_its_words() -> None:
    spec = launch(BASE, CANDIDATE, GpuGroup((2, 3), (), 1))
    older = loads(dumps(replace(spec, flags=(), gpus=())), LaunchSpec)
    assert older == spec == loads(dumps(spec), LaunchSpec)


SPELLINGS = ("--shutdown-timeout {}", "--shutdown_timeout {}", "--shutdown-timeout={}", "--shutdown_timeout={}")


@given(st.lists(st.tuples(st.sampled_from(SPELLINGS), st.integers(0, 10**6)), max_size=4), st.booleans())
def test_a_users_shutdown_timeout_counts_in_every_spelling_and_the_last_wins(
    own: list[tuple[str, int]], known: bool
) -> None:
    extra = tuple(word for spelling, seconds in own for word in spelling.format(seconds).split())
    flags = ("shutdown-timeout",) if known else ()
    spec = launch(replace(BASE, flags=flags, extra=extra), CANDIDATE, GpuGroup())
    assert spec.shutdown_timeout_s == (own[-1][1] if own else 10 if known else 0)
    assert parse(spec.arguments, {}).shutdown_timeout_s == spec.shutdown_timeout_s


@pytest.mark.parametrize(
    "words", [(), ("--shutdown-timeout", "soon"), ("--shutdown-timeout",), ("--shutdown-timeout", "-5")]
)
def test_without_a_number_the_shutdown_timeout_is_vllms_default(words: tuple[str, ...]) -> None:
    assert LaunchSpec((), ("vllm", "serve"), ("m", *words)).shutdown_timeout_s == 0
