"""Loads in virtual time: conserved, repeatable, and moved by flags and hardware as they should be."""

from __future__ import annotations

import numpy as np
import pytest

from tuner.sim import (
    ClosedLoop,
    EngineArguments,
    Noise,
    OpenLoop,
    Shape,
    SimulatedLevel,
    Started,
    hardware_profile,
    load_model,
    simulate,
    startup,
)

H100 = hardware_profile("h100")
MODEL = load_model("Qwen/Qwen3-8B")
SHAPES = [Shape(400, 130), Shape(200, 60), Shape(900, 40)]


def level(load: ClosedLoop | OpenLoop, *, seed: int = 0, noise: Noise | None = None, **flags: object) -> SimulatedLevel:
    flags.setdefault("max_model_len", 2048)
    started = startup(EngineArguments(**flags), H100, MODEL)  # type: ignore[arg-type]
    assert isinstance(started, Started), started
    return simulate(started, H100, MODEL, load, seed=seed, noise=noise)


def test_every_request_is_answered_in_order_of_time() -> None:
    result = level(ClosedLoop(SHAPES, clients=50, duration_s=10.0))
    assert np.all(result.sent_s < result.first_token_s)
    assert np.all(result.first_token_s <= result.done_s)
    assert result.done_s.size > 100


def test_a_closed_loop_never_has_more_under_way_than_clients() -> None:
    result = level(ClosedLoop(SHAPES, clients=7, duration_s=10.0))
    under_way = [int(np.sum((result.sent_s <= at) & (result.done_s > at))) for at in result.sent_s]
    assert max(under_way) == 7


def test_the_same_seed_gives_the_same_times() -> None:
    load, noise = ClosedLoop(SHAPES, clients=20, duration_s=5.0), Noise(0.05, 0.1)
    first, second, other = (level(load, seed=seed, noise=noise) for seed in (1, 1, 2))
    assert np.array_equal(first.done_s, second.done_s)
    assert not np.array_equal(first.done_s[:10], other.done_s[:10])


def test_run_noise_changes_between_starts_and_not_within_one() -> None:
    load = ClosedLoop(SHAPES, clients=20, duration_s=20.0, warmup_s=5.0)
    qps = [level(load, seed=seed, noise=Noise(run=0.05)).qps for seed in range(12)]
    assert 0.02 < np.std(qps) / np.mean(qps) < 0.10


def test_an_open_loop_sends_when_it_should() -> None:
    arrivals = np.cumsum(np.random.default_rng(3).exponential(0.05, 200)).tolist()
    result = level(OpenLoop(SHAPES, arrivals))
    assert result.sent_s.tolist() == arrivals


def test_overload_makes_the_queue_of_an_open_loop_grow() -> None:
    slow, fast = (level(OpenLoop(SHAPES, [i / rate for i in range(1500)]), max_num_seqs=16) for rate in (10.0, 60.0))
    assert slow.ttft_s[-100:].mean() < 0.2
    assert fast.ttft_s[-100:].mean() > 5.0


def test_few_seqs_cost_throughput_and_first_tokens() -> None:
    load = ClosedLoop(SHAPES, clients=64, duration_s=20.0, warmup_s=4.0)
    narrow, wide = level(load, max_num_seqs=8), level(load, max_num_seqs=64)
    assert wide.qps > 1.5 * narrow.qps
    assert (wide.ttft_percentile_ms(99) or 0) < (narrow.ttft_percentile_ms(99) or 0)


@pytest.mark.parametrize(("blocks", "some"), [(600, True), (20_000, False)])
def test_a_tight_cache_preempts_and_an_ample_one_does_not(blocks: int, some: bool) -> None:
    load = ClosedLoop([Shape(100, 400)], clients=64, duration_s=15.0)
    result = level(load, max_num_seqs=64, num_gpu_blocks_override=blocks)
    assert (result.preemptions > 0) is some
    assert int(result.preempted.sum()) == result.preemptions


def test_prefix_caching_pays_for_shared_prompts_only() -> None:
    def qps(shared: int, caching: bool) -> float:
        load = ClosedLoop([Shape(1800, 20, shared_tokens=shared)], clients=64, duration_s=10.0, warmup_s=2.0)
        return level(load, enable_prefix_caching=caching).qps

    assert qps(1600, True) > 1.5 * qps(1600, False)
    assert qps(0, True) == pytest.approx(qps(0, False), rel=0.02)


def test_no_request_in_the_window_has_no_percentile() -> None:
    assert level(OpenLoop(SHAPES, [])).ttft_percentile_ms(99) is None


def test_output_is_clipped_at_max_model_len() -> None:
    result = level(ClosedLoop([Shape(2000, 500)], clients=1, duration_s=1.0))
    assert set(result.output_tokens.tolist()) == {48}


def test_a_prompt_that_can_never_be_served_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not fit max_model_len 2048"):
        level(ClosedLoop([Shape(2048, 1)], clients=1, duration_s=1.0))
