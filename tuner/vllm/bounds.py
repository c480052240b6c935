"""Meaning of the figures in a message: whose fault it is, and which bound follows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from tuner.vllm.cause import Bound, Fault

HELD_SHARE = 0.1
"""Share of a GPU's memory that others may hold permanently (a desktop, a small service). A candidate must live with
it. More is another job or an orphan, and will be gone another time."""
HELD_SHARE_HOST = 0.5
"""The same share of host memory (CPU build), part of which the system and other programs always hold."""

GIB = 2**30


@dataclass(frozen=True, slots=True)
class MessageContext:
    """Facts beside the message. `arguments` is vLLM's own line of non-default arguments, "" if missing.

    `held_by_others_gib` was in use on the fullest GPU before the start, None if not observed. `first_exception` is
    the position of the first exception that does not merely report another, None if there is none.
    """

    arguments: str
    held_by_others_gib: float | None
    first_exception: int | None = None

    def given(self, name: str) -> float | None:
        """Return the given value of an argument (with underscores). None if vLLM took its default."""
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
    """Blame by torch's figures: what is neither free nor ours belongs to others."""
    total, free, ours = match["total"], match["free"], match["ours"]
    if total and free and ours:
        held = float(total) - _gib(free, match["free_unit"]) - _gib(ours, match["ours_unit"])
        if held > HELD_SHARE * float(total):
            return Fault.ENVIRONMENT
    return Fault.CANDIDATE


def vanished(match: re.Match[str], context: MessageContext) -> Fault:
    """Blame a worker's death. One that failed says why first; one without a word was killed, mostly for want of
    memory."""
    said_why = context.first_exception is not None and context.first_exception < match.start()
    return Fault.UNKNOWN if said_why else Fault.ENVIRONMENT


def _gib(number: str, unit: str) -> float:
    return float(number) * {"GiB": 1.0, "MiB": 2.0**-10, "KiB": 2.0**-20, "bytes": 2.0**-30}[unit]


def host_kv(match: re.Match[str], _context: MessageContext) -> tuple[Bound, ...]:
    """Derive the bound from KV budget = utilization × total - what the worker holds. It lies between 0 and what is
    available."""
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
