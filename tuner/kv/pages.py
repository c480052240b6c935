"""Blocks of vLLM's KV cache: how large one is, and how many a request holds.

Layers with the same need form groups of equal size, and each group takes blocks from one pool. Source: vLLM 0.32,
v1/core/kv_cache_utils.py get_kv_cache_groups and platforms/interface.py _align_hybrid_block_size.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tuner.kv.layers import LayerCache

LATENT_BLOCK_TOKENS = 128
"""Tokens of which an attention block of MLA is a multiple beside states."""


@dataclass(frozen=True, slots=True)
class PagingRules:
    """Choices of a server that decide its blocks.

    Attributes:
        block_tokens: Tokens of a block as the flags say.
        step_tokens: Tokens of one step, --max-num-batched-tokens.
        steps_in_flight: Steps whose tokens vLLM reserves for each window: 2 with asynchronous scheduling, since 0.25.
        blocks_a_state: Blocks of one request's state: 2 with prefix caching.
        by_kind: False if all layers are kept whole, as without the hybrid KV cache manager.
        draft_tokens: Tokens that speculation drafts in a step. Each has a state of its own.
    """

    block_tokens: int
    step_tokens: int
    steps_in_flight: int = 2
    blocks_a_state: int = 2
    by_kind: bool = True
    draft_tokens: int = 0


@dataclass(frozen=True, slots=True)
class BlockGroup:
    """So many groups of layers with the same need. Their block has `block_tokens`; 0 means a state.

    `window` None keeps every token.
    """

    count: int
    block_tokens: int
    window: int | None = None


@dataclass(frozen=True, slots=True)
class Paging:
    """Blocks of a server: bytes of one on the fullest GPU, and the groups that draw on them."""

    block_bytes: float
    groups: tuple[BlockGroup, ...]
    rules: PagingRules

    @property
    def block_tokens(self) -> int:
        """Tokens of a block of the layers that keep most."""
        return max((group.block_tokens for group in self.groups if group.window is None), default=0) or max(
            group.block_tokens for group in self.groups
        )

    @property
    def has_states(self) -> bool:
        return any(not group.block_tokens for group in self.groups)

    @property
    def is_linear(self) -> bool:
        """True if each token costs the same, whatever the length of its request."""
        return (
            len(self.groups) == 1
            and self.groups[0].count == 1
            and self.groups[0].window is None
            and not self.has_states
        )

    def blocks(self, tokens: int) -> int:
        """Return the blocks that a request of so many tokens holds while it is served."""
        return sum(self._held(group, tokens, 1) for group in self.groups)

    def reserved(self, tokens: int) -> int:
        """Return the blocks that vLLM counts for a request at start-up: a window has the steps in flight beside it."""
        return sum(
            self._held(group, tokens, self.rules.steps_in_flight * self.rules.step_tokens) for group in self.groups
        )

    def bytes_per_token(self, tokens: int) -> float:
        """Return the bytes of a token of so long a request, as vLLM's log counts."""
        if self.is_linear:
            return self.block_bytes / self.groups[0].block_tokens
        return self.reserved(tokens) * self.block_bytes / tokens

    def logged_tokens(self, blocks: int, longest: int) -> int:
        """Return the tokens that vLLM logs ("KV cache size") for a pool."""
        if self.is_linear:
            return blocks * self.groups[0].block_tokens
        return int(blocks / self.reserved(longest) * longest)

    def mean_blocks(self, tokens: float) -> float:
        """Return the blocks of a request of a mean length. The last of each group is half empty."""
        return sum(
            group.count * (tokens / group.block_tokens + 0.5)
            if group.block_tokens and (group.window is None or tokens < group.window)
            else self._held(group, math.ceil(tokens), 1)
            for group in self.groups
        )

    def with_block_tokens(self, tokens: int) -> Paging:
        """Return the same layers with so many tokens in an attention block, as a start's log says."""
        ratio = tokens / self.block_tokens
        groups = tuple(replace(group, block_tokens=round(group.block_tokens * ratio)) for group in self.groups)
        return replace(self, block_bytes=self.block_bytes * ratio, groups=groups)

    def with_steps_of(self, tokens: int | None) -> Paging:
        """Return the paging of a server with another --max-num-batched-tokens; None is the same one."""
        return self if tokens is None else replace(self, rules=replace(self.rules, step_tokens=tokens))

    @property
    def ways_to_count(self) -> tuple[Paging, ...]:
        """The paging as vLLM's releases count it: one or two steps in flight, one or two blocks a state."""
        if self.is_linear:
            return (self,)
        others = (
            replace(self, rules=replace(self.rules, steps_in_flight=steps, blocks_a_state=states))
            for steps in (1, 2)
            for states in (1, 2)
        )
        return (self, *others)

    def _held(self, group: BlockGroup, tokens: int, more: int) -> int:
        if not group.block_tokens:
            return group.count * (self.rules.blocks_a_state + self.rules.draft_tokens)
        kept = tokens if group.window is None else min(group.window - 1 + more, tokens)
        return group.count * (math.ceil(kept / group.block_tokens) + (group.window is not None))


def paging(caches: Sequence[LayerCache], stages: Sequence[int], rules: PagingRules) -> Paging:
    """Lay out the blocks of layers that pipeline `stages` share, so many layers each."""
    if not rules.by_kind and not any(cache.state_bytes for cache in caches):
        caches = [replace(cache, window=None) for cache in caches]
    if len({(cache.window, bool(cache.state_bytes)) for cache in caches}) == 1:
        return _one_group(caches, stages, rules)
    block = _grown_block(caches, rules)
    page = max(max(cache.state_bytes, cache.token_bytes * block) for cache in caches)
    kinds = Counter((cache.window, bool(cache.state_bytes), cache.token_bytes) for cache in caches)
    size = min(kinds.values())
    if max(kinds.values()) < 1.5 * size:
        size = max(kinds.values())
    groups = []
    on_stages = [0] * len(stages)
    for (window, is_state, token_bytes), number in kinds.items():
        count = math.ceil(number / size)
        own = 0 if is_state else block * (page // (token_bytes * block) if page % (token_bytes * block) == 0 else 1)
        groups.append(BlockGroup(count, own, window))
        layers = [
            c.layer for c in caches if (c.window, bool(c.state_bytes), c.token_bytes) == (window, is_state, token_bytes)
        ]
        for first in range(count):
            on_stages = [max(*both) for both in zip(on_stages, _by_stage(layers[first::count], stages), strict=True)]
    widest = size if len(stages) == 1 else max(on_stages)
    return Paging(widest * page, tuple(groups), rules)


def linear_paging(token_bytes: float, block_tokens: int) -> Paging:
    """Return the paging of a model of which only the bytes of a token are known."""
    return Paging(token_bytes * block_tokens, (BlockGroup(1, block_tokens),), PagingRules(block_tokens, 0))


def _one_group(caches: Sequence[LayerCache], stages: Sequence[int], rules: PagingRules) -> Paging:
    """Lay out layers of one kind. Their widths may differ: all of them share one block."""
    if caches[0].state_bytes:
        widest = max(_by_stage([cache.layer for cache in caches], stages))
        return Paging(widest * caches[0].state_bytes, (BlockGroup(1, 0),), replace(rules, blocks_a_state=1))
    bounds = [sum(stages[: i + 1]) for i in range(len(stages))]
    token = max(
        sum(cache.token_bytes for cache in caches if bound - own <= cache.layer < bound)
        for bound, own in zip(bounds, stages, strict=True)
    )
    return Paging(token * rules.block_tokens, (BlockGroup(1, rules.block_tokens, caches[0].window),), rules)


def _grown_block(caches: Sequence[LayerCache], rules: PagingRules) -> int:
    """Return the tokens of an attention block: as many as a state needs."""
    state = max(cache.state_bytes for cache in caches)
    token = max(cache.token_bytes for cache in caches)
    step = rules.block_tokens
    if any(cache.latent for cache in caches):
        step = max(step, LATENT_BLOCK_TOKENS)
    return step * math.ceil(state / (step * token)) if state else rules.block_tokens


def _by_stage(layers: Sequence[int], stages: Sequence[int]) -> list[int]:
    """Count which of the layers each pipeline stage has."""
    ends = [sum(stages[: i + 1]) for i in range(len(stages))]
    return [sum(end - own <= layer < end for layer in layers) for end, own in zip(ends, stages, strict=True)]
