"""Continuous batching as in vLLM's V1 scheduler.

Source: vLLM 0.32.0, v1/core/sched/scheduler.py, v1/core/kv_cache_manager.py. A step serves the running requests
first, in the order of their admission. Then it admits waiting ones in order of arrival. Kept: the token budget
(max_num_scheduled_tokens), chunked prefill on and off, the long-prefill threshold with its adaptive floor,
max_num_active_seqs, reservation of the whole prompt at admission, the watermark, prefix caching by block key,
preemption of the last one by recompute, no admission in a step that preempted. Left out: priorities, speculation,
encoders, LoRA, the extra step of delay of asynchronous scheduling.

With pipeline stages a step is a round of as many batches (tuner/sim/hardware.py, StepCost). Its token budget is that of
all of them, and a prompt may have a chunk in each: vLLM schedules the next chunk before the last one is computed.

The scheduler has no clock and no randomness: `schedule()` and `complete()` alternate, and the caller times the
steps.

Decoding costs O(1) a step, whatever the number of sequences. A decoding sequence gets exactly one token a step. So
its state is a function of the step number: it stores `anchor` such that generated = step - anchor. The anchor gives
the step that finishes it, and the steps (every block_size-th) that need a block. Only prefills and sequences that
miss a step are touched one by one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import replace

from tuner.sim.configuration import EngineConfig
from tuner.sim.hardware import StepWork
from tuner.sim.kv_cache import BlockPool


class Request:
    """One request inside the engine. Its fields belong to the Scheduler; other code reads the first block of them.
    `keys` name the content of the full blocks of the prompt: equal keys are equal content."""

    __slots__ = (
        "admitted", "anchor", "arrived_s", "computed", "decoding", "generated", "held", "hit_tokens", "keys", "name",
        "output_tokens", "preemptions", "prompt_tokens", "target",
    )  # fmt: skip

    def __init__(
        self, name: int, prompt_tokens: int, output_tokens: int, keys: Sequence[Hashable] = (), arrived_s: float = 0.0
    ) -> None:
        """Create a request. Both token counts are at least 1."""
        self.name = name
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens
        self.keys = keys
        self.arrived_s = arrived_s
        self.preemptions = 0
        self.hit_tokens = 0  # prompt tokens found in the prefix cache at the first admission
        self.admitted = False  # has ever been scheduled
        self.decoding = False
        self.computed = 0  # tokens in the KV cache while prefilling
        self.generated = 0  # output tokens while not decoding
        self.anchor = 0  # while decoding: generated = step - anchor
        self.target = 0  # while prefilling: tokens to compute before the next output token
        self.held: list[Hashable] = []  # keys of its blocks


class Step:
    """One scheduled step with its work and events."""

    __slots__ = ("admitted", "chunks", "missed", "missed_context_tokens", "preempted", "work")

    def __init__(self) -> None:
        self.work = StepWork()
        self.chunks: list[tuple[Request, int]] = []
        self.admitted: list[Request] = []
        self.preempted: list[Request] = []
        self.missed = 0  # decoding requests that the token budget did not reach
        self.missed_context_tokens = 0


class Completed:
    """Result of a step. `prefilled` got the first token after their (re)computed prompt, `finished` their last."""

    __slots__ = ("finished", "prefilled")

    def __init__(self) -> None:
        self.prefilled: list[Request] = []
        self.finished: list[Request] = []


class Scheduler:
    """Scheduler of one engine. `blocks` are usable KV blocks, without the null block."""

    def __init__(self, config: EngineConfig, blocks: int) -> None:
        stages = config.pipeline_parallel_size
        self._config = replace(
            config,
            max_num_scheduled_tokens=stages * config.max_num_scheduled_tokens,
            max_num_batched_tokens=stages * config.max_num_batched_tokens,
            long_prefill_token_threshold=stages * config.long_prefill_token_threshold,
        )
        self._block = config.block_size
        self.pool = BlockPool(blocks)
        self._watermark_blocks = int(config.watermark * blocks)
        self.step = 0
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self._prefilling: list[Request] = []  # in the order of `running`
        self._needs_block = [0] * self._block  # decoding sequences that need a block in steps = index modulo block size
        self._finishing: dict[int, list[Request]] = {}
        self._context_base = 0  # sum of (prompt - anchor): context read in step s is count · s + this

    # ---------------------------------------------------------------- requests in and out

    def add(self, request: Request) -> None:
        """Queue a request. vLLM refuses one that can never fit the cache, since it would block the queue for ever."""
        self.waiting.append(request)

    def abort(self, request: Request) -> None:
        """Forget a request whose client left, wherever it is. Not between schedule() and complete()."""
        if request in self.running:
            self.running.remove(request)
            self._stop(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def generated(self, request: Request) -> int:
        """Return its output tokens after the last completed step."""
        return self.step - request.anchor if request.decoding else request.generated

    @property
    def busy(self) -> bool:
        return bool(self.running or self.waiting)

    def _stop(self, request: Request) -> None:
        """Take an unfinished request and its blocks out."""
        if request.decoding:
            self._leave(request)
        else:
            self._prefilling.remove(request)
        self._release(request)

    # ---------------------------------------------------------------- one step

    def schedule(self) -> Step | None:
        """Compose the next step. None if nothing runs or can run."""
        step = Step()
        eligible = len(self.running) + len(self.waiting)
        threshold = self._threshold(eligible)
        budget = self._config.max_num_scheduled_tokens
        left = self._serve_all(step, budget, threshold)
        budget = self._serve_one_by_one(step, budget, threshold) if left is None else left
        decoding = len(self.running) - len(self._prefilling)
        decodes = decoding - step.missed
        if not step.preempted:
            self._admit(step, budget, threshold)
        step.work.decode_tokens = decodes
        step.work.decode_context_tokens = decoding * self.step + self._context_base - step.missed_context_tokens
        step.work.sampled = decodes + self._count_sampled(step)
        return step if decodes or step.chunks else None

    def complete(self, step: Step) -> Completed:
        """Account for a computed step: one token per sequence."""
        done = Completed()
        for request in self._finishing.pop(self.step, ()):
            if request.decoding and self._last_step(request) == self.step:
                self._leave(request)
                request.generated = request.output_tokens
                done.finished.append(request)
        for request, tokens in step.chunks:
            request.computed += tokens
            if request.computed < request.target:
                continue
            self._prefilling.remove(request)
            done.prefilled.append(request)
            if request.generated + 1 >= request.output_tokens:
                request.generated += 1
                done.finished.append(request)
            else:
                self._enter(request, self.step - request.generated)
        for request in done.finished:
            self.running.remove(request)
            self._release(request)
        self.step += 1
        return done

    def _threshold(self, eligible: int) -> int:
        """Return the most prompt tokens per request and step. 0 is no limit, as for a single request."""
        threshold = self._config.long_prefill_token_threshold if eligible > 1 else 0
        if threshold and self._config.long_prefill_token_threshold_adaptive:
            threshold = max(threshold, self._config.max_num_batched_tokens // eligible)
        return threshold

    @staticmethod
    def _count_sampled(step: Step) -> int:
        return sum(1 for request, tokens in step.chunks if request.computed + tokens >= request.target)

    # ---------------------------------------------------------------- running requests

    def _serve_all(self, step: Step, budget: int, threshold: int) -> int | None:
        """Serve every running request at once, regardless of order. Returns what is left of the budget.

        None, and nothing done, if tokens or blocks may not suffice for all: then the order decides who goes short.
        Prefills at the end of `running` may go short here, since only they would have been served after the others.
        """
        left = budget - (len(self.running) - len(self._prefilling))
        blocks = self._needs_block[self.step % self._block]
        chunks: list[tuple[Request, int]] = []
        for request in self._prefilling:
            wanted = min(request.target - request.computed, threshold or budget)
            tokens = min(wanted, max(left, 0))
            if tokens < wanted and self.running[-len(self._prefilling)] is not self._prefilling[0]:
                return None
            if tokens:
                chunks.append((request, tokens))
                blocks += self._blocks_for(request.computed + tokens) - self._blocks_for(request.computed)
                left -= tokens
        if left < 0 or blocks > self.pool.free:
            return None
        self.pool.allocate(blocks)
        for request, tokens in chunks:
            self._add_chunk(step, request, tokens)
        return left

    def _serve_one_by_one(self, step: Step, budget: int, threshold: int) -> int:
        """Serve running requests in vLLM's order. Returns what is left of the budget. Tokens and blocks go to the
        first requests; the last are preempted."""
        index = 0
        phase = self.step % self._block
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            if request.decoding:
                tokens = 1
                blocks = 1 if self._phase(request) == phase else 0
            else:
                tokens = min(request.target - request.computed, threshold or budget, budget)
                blocks = self._blocks_for(request.computed + tokens) - self._blocks_for(request.computed)
            if not self._make_room(step, request, blocks):
                break
            self.pool.allocate(blocks)
            if not request.decoding:
                self._add_chunk(step, request, tokens)
            budget -= tokens
            index += 1
        for request in self.running[index:]:
            if request.decoding:
                step.missed += 1
                step.missed_context_tokens += request.prompt_tokens + self.step - request.anchor
                self._leave(request)
                self._enter(request, request.anchor + 1)
        return budget

    def _make_room(self, step: Step, request: Request, blocks: int) -> bool:
        """Preempt from the end until `blocks` are free. Returns False if `request` itself had to go."""
        while blocks > self.pool.free:
            victim = self.running.pop()
            self._preempt(step, victim)
            if victim is request:
                return False
        return True

    def _preempt(self, step: Step, victim: Request) -> None:
        self._stop(victim)
        victim.computed = 0
        victim.preemptions += 1
        self.preemptions += 1
        step.preempted.append(victim)
        self.waiting.appendleft(victim)

    def _add_chunk(self, step: Step, request: Request, tokens: int) -> None:
        work = step.work
        work.prefill_tokens += tokens
        work.prefill_chunks += 1
        work.prefill_attention += tokens * (request.computed + tokens / 2)
        step.chunks.append((request, tokens))
        if self._config.enable_prefix_caching:
            self._publish_prompt(request, request.computed + tokens)

    # ---------------------------------------------------------------- waiting requests

    def _admit(self, step: Step, budget: int, threshold: int) -> None:
        config = self._config
        while self.waiting and budget > 0 and len(self.running) < config.max_num_active_seqs:
            request = self.waiting[0]
            total = request.prompt_tokens + request.generated
            hits = self._hits(request, total)
            tokens = total - hits * self._block
            if 0 < threshold < tokens:
                tokens = threshold
            if not config.enable_chunked_prefill and tokens > budget:
                break
            tokens = min(tokens, budget)
            if not self._fits(request, hits, total, hits * self._block + tokens):
                break
            self.waiting.popleft()
            self._start(step, request, hits, total, tokens)
            budget -= tokens

    def _hits(self, request: Request, total: int) -> int:
        """Count the blocks found in the prefix cache. The last token is always computed, since its output is needed."""
        if not self._config.enable_prefix_caching:
            return 0
        return self.pool.matched(self._keys(request), (total - 1) // self._block)

    def _fits(self, request: Request, hits: int, total: int, after_step: int) -> bool:
        """Return True if step and watermark have room. With reservation on, everything up to the next output token
        must fit."""
        reach = total if self._config.scheduler_reserve_full_isl else after_step
        needed = self._blocks_for(reach) - hits
        if hits:
            needed += self.pool.unheld(self._keys(request), hits)
        if self.running:
            needed += self._watermark_blocks
        return needed <= self.pool.free

    def _start(self, step: Step, request: Request, hits: int, total: int, tokens: int) -> None:
        if hits:
            keys = self._keys(request)
            self.pool.share(keys, hits)
            request.held.extend(keys[:hits])
        if not request.admitted:
            self.prefix_queries += total
            self.prefix_hits += hits * self._block
            request.admitted = True
            request.hit_tokens = hits * self._block
        step.admitted.append(request)
        request.computed = hits * self._block
        request.target = total
        self.pool.allocate(self._blocks_for(request.computed + tokens) - hits)
        self.running.append(request)
        self._prefilling.append(request)
        self._add_chunk(step, request, tokens)

    # ---------------------------------------------------------------- blocks and keys

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._block)

    def _keys(self, request: Request) -> Sequence[Hashable]:
        """Return the keys of a request's full blocks. Output blocks are private; they matter after a preemption."""
        full = (request.prompt_tokens + request.generated) // self._block
        known = len(request.keys)
        if full <= known:
            return request.keys
        return [*request.keys, *((request.name, index) for index in range(known, full))]

    def _publish_prompt(self, request: Request, computed: int) -> None:
        """Share the computed blocks in order. After the first private copy the rest stays private too."""
        full = min(computed // self._block, len(request.keys))
        for index in range(len(request.held), full):
            if not self.pool.publish(request.keys[index]):
                break
            request.held.append(request.keys[index])

    def _release(self, request: Request) -> None:
        computed = request.computed
        if computed >= request.target and request.generated:
            computed = request.prompt_tokens + request.generated - 1
        blocks = self._blocks_for(computed)
        held = request.held
        if self._config.enable_prefix_caching:
            keys = self._keys(request)
            for index in range(len(held), min(computed // self._block, len(keys))):
                if not self.pool.publish(keys[index]):
                    break
                held.append(keys[index])
        self.pool.release(held, blocks - len(held))
        request.held = []

    # ---------------------------------------------------------------- decoding as a function of the step

    def _phase(self, request: Request) -> int:
        """Return the phase of steps that open a block. Steps s ≡ phase (modulo block size) satisfy prompt + s -
        anchor - 1 ≡ 0."""
        return (request.anchor + 1 - request.prompt_tokens) % self._block

    @staticmethod
    def _last_step(request: Request) -> int:
        return request.anchor + request.output_tokens - 1

    def _enter(self, request: Request, anchor: int) -> None:
        request.anchor = anchor
        request.decoding = True
        self._needs_block[self._phase(request)] += 1
        self._context_base += request.prompt_tokens - anchor
        self._finishing.setdefault(self._last_step(request), []).append(request)

    def _leave(self, request: Request) -> None:
        request.generated = self.step - request.anchor
        request.decoding = False
        self._needs_block[self._phase(request)] -= 1
        self._context_base -= request.prompt_tokens - request.anchor
