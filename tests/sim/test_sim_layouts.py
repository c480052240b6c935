"""Tensor and pipeline parallel cost what links and shapes make them cost, in virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tuner.sim import (
    ClosedLoop,
    EngineArguments,
    Hardware,
    ModelShape,
    OpenLoop,
    Refused,
    Shape,
    SimulatedLevel,
    Started,
    hardware_profile,
    load_model,
    simulate,
    startup,
)
from tuner.sim.link import NVLINK4, PCIE4, PCIE5_STAGED, Link

RTX5090 = hardware_profile("rtx5090")
SMALL, MIDDLE = load_model("Qwen/Qwen3-8B"), load_model("Qwen/Qwen3.6-27B")
PROMPTS = [Shape(1500, 4), Shape(900, 4), Shape(1200, 4)]
CHAT = [Shape(100, 150), Shape(60, 90), Shape(200, 120)]


def started(hardware: Hardware, model: ModelShape, **flags: object) -> Started:
    outcome = startup(EngineArguments(max_model_len=4096, **flags), hardware, model)  # type: ignore[arg-type]
    assert isinstance(outcome, Started), outcome
    return outcome


def level(hardware: Hardware, model: ModelShape, load: ClosedLoop | OpenLoop, **flags: object) -> SimulatedLevel:
    return simulate(started(hardware, model, **flags), hardware, model, load)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_an_all_reduce_is_fastest_over_nvlink_and_slowest_through_host_memory(ranks: int) -> None:
    for payload_bytes in (10_000, 1_000_000, 30_000_000):
        nvlink, direct, staged = (link.all_reduce_s(payload_bytes, ranks) for link in (NVLINK4, PCIE4, PCIE5_STAGED))
        assert nvlink < min(direct, staged)
        assert staged > direct or payload_bytes > 100_000  # PCIe 5 passes more bytes than PCIe 4, later


def test_more_ranks_add_hops_over_pcie_and_none_over_nvlink() -> None:
    assert PCIE5_STAGED.all_reduce_s(0, 8) > 1.5 * PCIE5_STAGED.all_reduce_s(0, 4)
    assert NVLINK4.all_reduce_s(0, 8) == NVLINK4.all_reduce_s(0, 2)


def test_a_model_that_fits_one_card_is_served_best_by_four_servers_without_p2p() -> None:
    alone = level(RTX5090, SMALL, ClosedLoop(CHAT, 96, 30.0, warmup_s=10.0)).qps
    four = level(RTX5090, SMALL, ClosedLoop(CHAT, 384, 30.0, warmup_s=10.0), tensor_parallel_size=4).qps
    assert 4 * alone > 1.3 * four


def test_nvlink_halves_the_first_token_of_a_long_prompt() -> None:
    h100, load = hardware_profile("h100"), OpenLoop([Shape(6000, 4)], [0.0])
    times = [
        simulate(startup_(h100, ranks), h100, MIDDLE, load).first_token_s[0] for ranks in (1, 2)
    ]  # fmt: skip
    assert times[1] < 0.6 * times[0]


def startup_(hardware: Hardware, ranks: int) -> Started:
    arguments = EngineArguments(max_model_len=8192, tensor_parallel_size=ranks)
    outcome = startup(arguments, hardware, MIDDLE)
    assert isinstance(outcome, Started)
    return outcome


def test_stages_share_weights_and_kv_cache() -> None:
    whole = startup(EngineArguments(max_model_len=4096), RTX5090, MIDDLE)
    assert isinstance(whole, Refused)
    halves = started(RTX5090, MIDDLE, pipeline_parallel_size=2, gpu_memory_utilization=0.97)
    quarters = started(RTX5090, MIDDLE, pipeline_parallel_size=4, gpu_memory_utilization=0.97)
    assert halves.memory.weights == pytest.approx(MIDDLE.weights_bytes / 2, rel=0.1)
    assert quarters.kv_tokens > 4 * halves.kv_tokens


def test_a_lone_prompt_gains_nothing_from_stages() -> None:
    load = OpenLoop([Shape(2000, 4)], [0.0])
    one, two = (level(RTX5090, SMALL, load, pipeline_parallel_size=n).first_token_s[0] for n in (1, 2))
    assert one < two < 1.1 * one


def test_many_prompts_keep_all_stages_busy() -> None:
    load = ClosedLoop(PROMPTS, 64, 30.0, warmup_s=10.0)
    one, two = (level(RTX5090, SMALL, load, pipeline_parallel_size=n).qps for n in (1, 2))
    assert 1.6 * one < two < 2.0 * one


def test_stages_serve_prompts_better_than_all_reduces_through_host_memory() -> None:
    load = ClosedLoop(PROMPTS, 64, 30.0, warmup_s=10.0)
    stages = level(RTX5090, SMALL, load, pipeline_parallel_size=4).qps
    assert stages > 1.2 * level(RTX5090, SMALL, load, tensor_parallel_size=4).qps


def test_a_slow_link_costs_tensor_parallel_more_than_stages() -> None:
    slow = replace(RTX5090, link=Link("slow", 2e9, 100e-6))
    load = ClosedLoop(CHAT, 64, 20.0, warmup_s=5.0)

    def kept(flag: str) -> float:
        flags = {flag: 2}
        return level(slow, SMALL, load, **flags).qps / level(RTX5090, SMALL, load, **flags).qps

    assert kept("tensor_parallel_size") < 0.8 < kept("pipeline_parallel_size")


@pytest.mark.parametrize("flag", ["tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"])
def test_more_ranks_than_gpus_are_refused(flag: str) -> None:
    two = replace(RTX5090, devices=2)
    outcome = startup(EngineArguments(max_model_len=4096, **{flag: 4}), two, SMALL)  # type: ignore[arg-type]
    assert isinstance(outcome, Refused)
    assert "World size (4)" in outcome.message or "Error setting CUDA_VISIBLE_DEVICES" in outcome.message
