"""Blocks of the KV cache, free, held or shared by hash.

The unit is a block of `block_size` tokens. A block with known content (a key) outlives its request. Later prompts
can use it until its space is needed; the least recently used goes first. Blocks without a key are only counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence


class BlockPool:
    """Counts and keys of `blocks` usable blocks. vLLM's null block is not among them."""

    __slots__ = ("_blank", "_evictable", "_references", "blocks", "peak_used")

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.peak_used = 0
        self._blank = blocks
        self._references: dict[Hashable, int] = {}
        self._evictable: OrderedDict[Hashable, None] = OrderedDict()

    @property
    def free(self) -> int:
        """Return the blocks that an allocation can have."""
        return self._blank + len(self._evictable)

    @property
    def usage(self) -> float:
        """Return the held share of blocks (vllm:kv_cache_usage_perc)."""
        return 1.0 - self.free / self.blocks if self.blocks else 0.0

    def matched(self, keys: Sequence[Hashable], limit: int) -> int:
        """Count the leading cached keys, at most `limit`."""
        count = 0
        for key in keys[:limit]:
            if key not in self._references:
                break
            count += 1
        return count

    def unheld(self, keys: Sequence[Hashable], count: int) -> int:
        """Count which of the first `count` keys are free. Sharing them takes from the free blocks too."""
        return sum(1 for key in keys[:count] if not self._references[key])

    def share(self, keys: Sequence[Hashable], count: int) -> None:
        """Hold the first `count` keys, which are all cached."""
        for key in keys[:count]:
            if not self._references[key]:
                del self._evictable[key]
            self._references[key] += 1
        self._note_peak()

    def allocate(self, count: int) -> None:
        """Take `count` free blocks. The caller has checked that there are enough."""
        if not count:
            return
        blank = min(count, self._blank)
        self._blank -= blank
        for _ in range(count - blank):
            key, _ = self._evictable.popitem(last=False)
            del self._references[key]
        self._note_peak()

    def publish(self, key: Hashable) -> bool:
        """Give a held block its key. Returns False if the same content is already there: the block stays a private
        copy."""
        if key in self._references:
            return False
        self._references[key] = 1
        return True

    def release(self, keys: Sequence[Hashable], private: int) -> None:
        """Return held keys, and `private` blocks without a key. The last key is the first to be evicted."""
        self._blank += private
        for key in reversed(keys):
            self._references[key] -= 1
            if not self._references[key]:
                self._evictable[key] = None

    def forget(self) -> None:
        """Drop all content that no request holds (POST /reset_prefix_cache)."""
        for key in self._evictable:
            del self._references[key]
        self._blank += len(self._evictable)
        self._evictable.clear()

    def _note_peak(self) -> None:
        self.peak_used = max(self.peak_used, self.blocks - self.free)
