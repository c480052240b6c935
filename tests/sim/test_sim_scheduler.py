"""The scheduler against the same rules written out request by request, and its rules one by one."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tuner.sim.configuration import EngineArguments, EngineConfig, Refused, resolve
from tuner.sim.hardware import hardware_profile
from tuner.sim.model import load_model
from tuner.sim.scheduler import Request, Scheduler

H100 = hardware_profile("h100")
SMALL = load_model("Qwen/Qwen3-0.6B")


def config(**changes: object) -> EngineConfig:
    resolved = resolve(EngineArguments(max_model_len=4096, enable_prefix_caching=False), H100, SMALL)
    assert not isinstance(resolved, Refused)
    changes.setdefault("max_num_scheduled_tokens", changes.get("max_num_batched_tokens", 8192))
    changes.setdefault("max_num_active_seqs", changes.get("max_num_seqs", 1024))
    return replace(resolved, **changes)  # type: ignore[arg-type]


def run(scheduler: Scheduler, limit: int = 10_000) -> int:
    """Step until nothing is left."""
    for count in range(limit):
        step = scheduler.schedule()
        if step is None:
            return count
        scheduler.complete(step)
    raise AssertionError("endless")


@dataclass(eq=False)
class Naive:
    """One request of the reference: every token and block counted one at a time."""

    name: int
    prompt: int
    output: int
    computed: int = 0
    generated: int = 0
    blocks: int = 0
    preemptions: int = 0
    finished_step: int = -1


@dataclass
class NaiveScheduler:
    """The same rules without any shortcut: a loop over all requests in every step."""

    settings: EngineConfig
    free: int
    running: list[Naive] = field(default_factory=list)
    waiting: deque[Naive] = field(default_factory=deque)
    total_preemptions: int = 0

    def step(self, number: int) -> dict[int, int]:
        budget = self.settings.max_num_scheduled_tokens
        eligible = len(self.running) + len(self.waiting)
        threshold = self.settings.long_prefill_token_threshold if eligible > 1 else 0
        scheduled: dict[Naive, int] = {}
        preempted = False
        index = 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            tokens = request.prompt + request.generated - request.computed
            tokens = min(tokens, threshold or tokens, budget)
            needed = -(-(request.computed + tokens) // self.settings.block_size) - request.blocks
            while needed > self.free and self.running:
                victim = self.running.pop()
                self.free += victim.blocks
                victim.blocks = victim.computed = 0
                victim.preemptions += 1
                self.total_preemptions += 1
                self.waiting.appendleft(victim)
                preempted = True
                if victim is request:
                    break
            if request not in self.running:
                break
            self.take(request, needed)
            scheduled[request] = tokens
            budget -= tokens
            index += 1
        while not preempted and self.waiting and budget and len(self.running) < self.settings.max_num_active_seqs:
            request = self.waiting[0]
            total = request.prompt + request.generated
            tokens = min(total, threshold or total)
            if not self.settings.enable_chunked_prefill and tokens > budget:
                break
            tokens = min(tokens, budget)
            reach = total if self.settings.scheduler_reserve_full_isl else tokens
            if -(-reach // self.settings.block_size) > self.free:
                break
            self.waiting.popleft()
            self.take(request, -(-tokens // self.settings.block_size))
            self.running.append(request)
            scheduled[request] = tokens
            budget -= tokens
        return self.finish(scheduled, number)

    def take(self, request: Naive, blocks: int) -> None:
        request.blocks += blocks
        self.free -= blocks

    def finish(self, scheduled: dict[Naive, int], number: int) -> dict[int, int]:
        for request, tokens in scheduled.items():
            request.computed += tokens
            if request.computed == request.prompt + request.generated:
                request.generated += 1
                if request.generated == request.output:
                    request.finished_step = number
                    self.free += request.blocks
                    self.running.remove(request)
        return {request.name: tokens for request, tokens in scheduled.items()}


@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 60)), min_size=1, max_size=14),
    arrivals=st.lists(st.integers(0, 30), min_size=14, max_size=14),
    seqs=st.integers(1, 10),
    budget=st.integers(10, 120),
    scheduled=st.integers(3, 120),
    threshold=st.sampled_from([0, 7, 30]),
    blocks=st.integers(20, 80),
    chunked=st.booleans(),
    reserve=st.booleans(),
)
def test_scheduler_does_what_a_loop_over_all_requests_does(
    sizes: list[tuple[int, int]], arrivals: list[int], seqs: int, budget: int, scheduled: int, threshold: int,
    blocks: int, chunked: bool, reserve: bool,
) -> None:  # fmt: skip
    budget = budget if chunked else 200
    used = config(
        max_num_seqs=seqs, max_num_batched_tokens=budget, block_size=8, long_prefill_token_threshold=threshold,
        max_num_scheduled_tokens=min(scheduled, budget) if chunked else budget, enable_chunked_prefill=chunked,
        scheduler_reserve_full_isl=reserve,
    )  # fmt: skip
    fast, naive = Scheduler(used, blocks), NaiveScheduler(used, blocks)
    requests = [Request(index, *size) for index, size in enumerate(sizes)]
    mirrors = [Naive(index, *size) for index, size in enumerate(sizes)]
    finished: dict[int, int] = {}
    for number in range(3000):
        for index, request in enumerate(requests):
            if arrivals[index] == number:
                fast.add(request)
                naive.waiting.append(mirrors[index])
        step = fast.schedule()
        tokens = naive.step(number)
        if step is None:
            assert not tokens
            assert not fast.running
            # No step passed in the fast one; make the numbers equal again.
            fast.step += 1
            continue
        assert step.work.decode_tokens + step.work.prefill_tokens == sum(tokens.values())
        for request in fast.complete(step).finished:
            finished[request.name] = number
        assert fast.pool.free == naive.free
        assert [request.name for request in fast.running] == [mirror.name for mirror in naive.running]
        assert [fast.generated(request) for request in fast.running] == [m.generated for m in naive.running]
        if len(finished) == len(requests):
            break
    assert finished == {mirror.name: mirror.finished_step for mirror in mirrors}
    assert fast.preemptions == naive.total_preemptions
    assert fast.pool.free == blocks


def test_context_read_is_the_sum_of_tokens_in_the_cache() -> None:
    scheduler = Scheduler(config(), 1000)
    for name, prompt in enumerate((10, 25)):
        scheduler.add(Request(name, prompt, 8))
    for expected in (0, 10 + 1 + 25 + 1, 10 + 2 + 25 + 2):
        step = scheduler.schedule()
        assert step is not None
        assert step.work.decode_context_tokens == expected
        scheduler.complete(step)


def test_long_prefill_threshold_does_not_hold_for_the_only_request() -> None:
    scheduler = Scheduler(config(long_prefill_token_threshold=16), 1000)
    scheduler.add(Request(0, 100, 2))
    step = scheduler.schedule()
    assert step is not None and step.work.prefill_tokens == 100


def test_adaptive_threshold_never_cuts_below_a_fair_share() -> None:
    scheduler = Scheduler(
        config(long_prefill_token_threshold=16, long_prefill_token_threshold_adaptive=True, max_num_batched_tokens=100,
               max_num_seqs=10), 1000,
    )  # fmt: skip
    scheduler.add(Request(0, 500, 2))
    scheduler.add(Request(1, 500, 2))
    step = scheduler.schedule()
    assert step is not None and [tokens for _, tokens in step.chunks] == [50, 50]


@pytest.mark.parametrize(("watermark", "admitted"), [(0.0, 2), (0.5, 1)])
def test_watermark_keeps_blocks_free_when_others_run(watermark: float, admitted: int) -> None:
    scheduler = Scheduler(config(block_size=16, watermark=watermark), 10)
    for name in range(2):
        scheduler.add(Request(name, 64, 4))
    step = scheduler.schedule()
    assert step is not None and len(step.admitted) == admitted


def test_a_shared_prefix_is_computed_once() -> None:
    scheduler = Scheduler(config(enable_prefix_caching=True, block_size=16), 1000)
    keys = [("system prompt", index) for index in range(4)]
    scheduler.add(Request(0, 80, 4, keys))
    scheduler.add(Request(1, 80, 4, keys))
    step = scheduler.schedule()
    assert step is not None and [tokens for _, tokens in step.chunks] == [80, 16]
    assert scheduler.pool.blocks - scheduler.pool.free == 5 + 1


def test_a_fully_cached_prompt_still_computes_its_last_block() -> None:
    scheduler = Scheduler(config(enable_prefix_caching=True, block_size=16), 1000)
    keys = [("same", index) for index in range(4)]
    for name in range(2):
        scheduler.add(Request(name, 64, 1, keys))
        run(scheduler)
    assert scheduler.prefix_hits == 48


def test_reset_forgets_what_no_request_holds() -> None:
    scheduler = Scheduler(config(enable_prefix_caching=True, block_size=16), 100)
    keys = [("same", index) for index in range(4)]
    for name in range(2):
        scheduler.add(Request(name, 64, 1, keys))
        run(scheduler)
        scheduler.pool.forget()
    assert scheduler.prefix_hits == 0 and scheduler.pool.free == 100


def test_a_preempted_request_finds_its_own_blocks_again() -> None:
    scheduler = Scheduler(config(enable_prefix_caching=True, block_size=16), 9)
    scheduler.add(Request(0, 60, 40))
    scheduler.add(Request(1, 60, 40))
    run(scheduler)
    assert scheduler.preemptions > 0 and scheduler.pool.free == 9


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_an_aborted_request_gives_everything_back(steps: int) -> None:
    scheduler = Scheduler(config(max_num_batched_tokens=32, max_num_seqs=4), 100)
    request = Request(0, 100, 10)
    scheduler.add(request)
    for _ in range(steps):
        step = scheduler.schedule()
        assert step is not None
        scheduler.complete(step)
    scheduler.abort(request)
    assert not scheduler.busy and scheduler.pool.free == 100 and scheduler.schedule() is None
