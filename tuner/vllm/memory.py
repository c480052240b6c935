"""Figures of an out-of-memory message, and whose memory was missing. One way for CUDA, HIP, XPU and NCCL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

HELD_SHARE = 0.1
"""Share of a GPU's memory that others may hold permanently (a desktop, a small service). A candidate must live with
it. More is another job or an orphan, and will be gone another time."""
HELD_GIB = 1.5
"""Memory that others may hold permanently on a GPU of any size."""
HELD_SHARE_UNIFIED = 0.2
"""The same share of memory that CPU and GPU have in common. Of a GB10's, 16 % are in use on an idle machine."""
HELD_SHARE_HOST = 0.5
"""The same share of host memory (CPU build), part of which the system and other programs always hold."""

_UNIFIED_GIB = (105.0, 132.0)
"""Sizes that no discrete card has, but GB10, Jetson Thor and Strix Halo."""
_ROOM_FACTOR, _ROOM_GIB = 1.5, 0.5
"""A request was refused for another reason than want of memory if this much more was free."""

BESIDE_TORCH_GIB = 3.0
"""Most memory that a server of ours holds beside torch's allocator: contexts, graphs, NCCL."""

OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|Error: [^\n]*\bout of memory\b|(?:CUDA|HIP)(?: driver)? [Ee]rror: out of memory"
    r"|\b[A-Z]{3,4} out of memory|RESOURCE_EXHAUSTED|insufficient memory to allocate"
    r"|torch_call_dispatcher\(\s*\"aten::empty"
    r"|NVML_SUCCESS == \w+ INTERNAL ASSERT FAILED at [^\n]*CachingAllocator"
    r"|hipErrorOutOfMemory|CUDA_ERROR_OUT_OF_MEMORY|BLAS_STATUS_ALLOC_FAILED|OUT_OF_DEVICE_MEMORY"
    r"|(?i:(?:cuda|hip) failure (?:2 )?'?out of memory)"
)
_GIB = {"GiB": 1.0, "MiB": 2.0**-10, "KiB": 2.0**-20, "bytes": 2.0**-30}


class Shortage(Enum):
    """Meaning of an out-of-memory message."""

    OWN = "the server asked for more than its GPU has"
    HELD = "others held the memory"
    REFUSED = "there was room, and the driver refused"


@dataclass(frozen=True, slots=True)
class MemoryFigures:
    """Figures of torch's message in GiB, None if it does not name them.

    `ours` is what the process holds by the driver's count, which is 0 or absurd in some containers. `by_torch` is what
    its allocator holds.
    """

    wanted: float | None
    total: float | None
    free: float | None
    ours: float | None
    by_torch: float | None
    has_limit: bool

    def held_by_others(self) -> float | None:
        """Return what neither is free nor ours. None if the message does not say enough."""
        if self.total is None or self.free is None:
            return None
        used = self.total - self.free
        by_torch = self.by_torch or 0.0
        if self.ours is not None and by_torch <= self.ours <= self.total:
            return max(0.0, used - self.ours)
        return None  # a container counts wrongly: what torch does not hold may be ours too


def memory_figures(text: str) -> MemoryFigures:
    """Read the figures of torch's message, in its spellings since 2.0."""
    allocated = _figure(text, r"(?P<n>[\d.]+) (?P<unit>\w+) (?:is allocated by PyTorch|already allocated)")
    reserved = _figure(text, r"(?P<n>[\d.]+) (?P<unit>\w+) is reserved by PyTorch")
    return MemoryFigures(
        wanted=_figure(text, r"Tried to allocate (?P<n>[\d.]+) (?P<unit>\w+)"),
        total=_figure(text, r"capaci?ty of (?P<n>[\d.]+) (?P<unit>\w+)|(?P<n2>[\d.]+) (?P<unit2>\w+) total capacity"),
        free=_figure(text, r"of which (?P<n>[\d.]+) (?P<unit>\w+) is free|; (?P<n2>[\d.]+) (?P<unit2>\w+) free"),
        ours=_figure(text, r"this process has (?P<n>[\d.]+) (?P<unit>\w+) memory in use"),
        by_torch=None if allocated is None else allocated + (reserved or 0.0),
        has_limit=re.search(r"[\d.]+ \w+ allowed", text) is not None,
    )


def may_be_held(total_gib: float) -> float:
    """Return the memory that others may hold for good on a GPU of this size."""
    if is_unified(total_gib):
        return HELD_SHARE_UNIFIED * total_gib
    return max(HELD_SHARE * total_gib, HELD_GIB)


def is_unified(total_gib: float) -> bool:
    """Return True for memory that CPU and GPU have in common, as far as its size tells."""
    return _UNIFIED_GIB[0] <= total_gib <= _UNIFIED_GIB[1]


def shortage(figures: MemoryFigures, held_before_gib: float | None, *, nothing_of_ours: bool) -> Shortage:
    """Decide whose memory was missing.

    `held_before_gib` was in use before the start, None if unknown. With `nothing_of_ours` the server had not loaded
    anything yet.
    """
    if figures.wanted is not None and figures.free is not None and not figures.has_limit:
        room = figures.free - figures.wanted
        if figures.free >= _ROOM_FACTOR * figures.wanted and room >= _ROOM_GIB:
            return Shortage.REFUSED
    held = figures.held_by_others()
    if held is None:
        held = held_before_gib
    if held is None:
        held = _unaccounted(figures)
    if held is None or figures.total is None:
        return Shortage.HELD if nothing_of_ours else Shortage.OWN
    return Shortage.HELD if held > may_be_held(figures.total) else Shortage.OWN


def _unaccounted(figures: MemoryFigures) -> float | None:
    """Return what torch neither has free nor holds. None if that proves nothing: the driver's count of our process is
    wrong, and graphs and libraries hold memory beside torch."""
    if figures.total is None or figures.free is None or figures.by_torch is None:
        return None
    rest = figures.total - figures.free - figures.by_torch
    return rest if rest > may_be_held(figures.total) + BESIDE_TORCH_GIB else None


def _figure(text: str, pattern: str) -> float | None:
    """Return a figure in GiB. None if the text has none."""
    match = re.search(pattern, text)
    if match is None:
        return None
    groups = match.groupdict()
    number, unit = groups["n"] or groups.get("n2"), groups["unit"] or groups.get("unit2")
    factor = _GIB.get(unit or "")
    return None if number is None or factor is None else float(number) * factor
