"""What the figures in a message teach: whose fault it is, and which bound follows from it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from tuner.vllm.cause import Bound, Fault

HELD_SHARE = 0.1
"""Of a GPU's memory. What others hold up to this share (a desktop, a small service) is always there and the candidate
has to live with it; more is somebody's job or an orphan, and will be gone another time."""
HELD_SHARE_HOST = 0.5
"""The same for host memory (CPU build), of which the system and the person's programs always hold a part."""

GIB = 2**30


@dataclass(frozen=True, slots=True)
class MessageContext:
    """What is known beside the message.

    `arguments` is vLLM's own line of non-default arguments, "" where it is missing; `held_by_others_gib` what was in
    use on the fullest GPU before the start, None where that was not observed; `first_exception` where in the text the
    first exception stands that does not merely report another, None where there is none.
    """

    arguments: str
    held_by_others_gib: float | None
    first_exception: int | None = None

    def given(self, name: str) -> float | None:
        """The value that was given for the argument `name` (with underscores), None where vLLM took its default."""
        match = re.search(rf"'{name}': ([\d.]+)", self.arguments)
        return float(match[1]) if match else None


Learn = Callable[[re.Match[str], MessageContext], tuple[Bound, ...]]
Judge = Callable[[re.Match[str], MessageContext], Fault]


def nothing(_match: re.Match[str], _context: MessageContext) -> tuple[Bound, ...]:
    return ()


def at_most(flag: str, group: str) -> Learn:
    def learn(match: re.Match[str], _context: MessageContext) -> tuple[Bound, ...]:
        return (Bound(flag, "<=", float(match[group])),) if match[group] else ()

    return learn


def at_least(flag: str, group: str) -> Learn:
    return lambda match, _context: (Bound(flag, ">=", float(match[group])),)


def more_memory_than_given(_match: re.Match[str], context: MessageContext) -> tuple[Bound, ...]:
    given = context.given("gpu_memory_utilization")
    return () if given is None else (Bound("gpu-memory-utilization", ">=", given),)


def longest_length(match: re.Match[str], context: MessageContext) -> tuple[Bound, ...]:
    if match["longest"]:
        return (Bound("max-model-len", "<=", float(match["longest"])),)
    return more_memory_than_given(match, context)


def free_share(match: re.Match[str], _context: MessageContext) -> tuple[Bound, ...]:
    # Rounded down: the message's own figures are rounded, and the memory moves by some MiB from start to start.
    share = math.floor(float(match["free"]) / float(match["total"]) * 1000) / 1000
    return (Bound("gpu-memory-utilization", "<=", share),)


def gpu_held(match: re.Match[str], context: MessageContext) -> Fault:
    total = float(match["total"])
    held = context.held_by_others_gib
    if held is None:
        held = total - float(match["free"])
    return Fault.ENVIRONMENT if held > HELD_SHARE * total else Fault.CANDIDATE


def host_held(match: re.Match[str], _context: MessageContext) -> Fault:
    total = float(match["total"])
    return Fault.ENVIRONMENT if total - float(match["free"]) > HELD_SHARE_HOST * total else Fault.CANDIDATE


def cuda_oom(match: re.Match[str], _context: MessageContext) -> Fault:
    """torch says how much of the GPU is free and how much is ours: the rest is somebody else's."""
    total, free, ours = match["total"], match["free"], match["ours"]
    if total and free and ours:
        held = float(total) - _gib(free, match["free_unit"]) - _gib(ours, match["ours_unit"])
        if held > HELD_SHARE * float(total):
            return Fault.ENVIRONMENT
    return Fault.CANDIDATE


def vanished(match: re.Match[str], context: MessageContext) -> Fault:
    """A worker that failed says why first; one that died without a word was killed, as a rule for want of memory."""
    said_why = context.first_exception is not None and context.first_exception < match.start()
    return Fault.UNKNOWN if said_why else Fault.ENVIRONMENT


def _gib(number: str, unit: str) -> float:
    return float(number) * {"GiB": 1.0, "MiB": 2.0**-10, "KiB": 2.0**-20, "bytes": 2.0**-30}[unit]


def host_kv(match: re.Match[str], _context: MessageContext) -> tuple[Bound, ...]:
    """KV budget = utilization × total - what the worker holds; it must lie between 0 and what is available."""
    total, free = float(match["total"]), float(match["free"])
    if match["budget"] is None:
        return (Bound("kv-cache-memory-bytes", "<=", free * GIB),)
    held = float(match["budget"]) - float(match["kv"])
    if float(match["kv"]) <= 0:
        return (Bound("gpu-memory-utilization", ">=", math.ceil(held / total * 1000) / 1000),)
    return (Bound("gpu-memory-utilization", "<=", math.floor((held + free) / total * 1000) / 1000),)


def fewer_sequences(match: re.Match[str], _context: MessageContext) -> tuple[Bound, ...]:
    return (Bound("max-num-seqs", "<=", float(match["seqs"]) - 1),)


def no_partial_prefills(_match: re.Match[str], _context: MessageContext) -> tuple[Bound, ...]:
    return (Bound("max-num-partial-prefills", "<=", 1), Bound("max-long-partial-prefills", "<=", 1))
