"""Meaning of the figures in a message: whose fault it is, and which bound follows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from tuner.vllm import knobs
from tuner.vllm.cause import Bound, Fault
from tuner.vllm.log_lines import StartPhase
from tuner.vllm.memory import (
    BESIDE_TORCH_GIB,
    HELD_SHARE_HOST,
    MemoryFigures,
    Shortage,
    is_unified,
    may_be_held,
    shortage,
)

GIB = 2**30


@dataclass(frozen=True, slots=True)
class MessageContext:
    """Facts beside the message. `arguments` is vLLM's own line of non-default arguments, "" if missing.

    `held_by_others_gib` was in use on the fullest GPU before the start, None if not observed. `phase` is that of the
    failure, None if the log does not tell. `figures` are those of an out-of-memory message.
    """

    arguments: str
    held_by_others_gib: float | None
    phase: StartPhase | None = None
    figures: MemoryFigures | None = None

    def given(self, name: str) -> float | None:
        """Return the given value of an argument (with underscores). None if vLLM took its default."""
        match = re.search(rf"'{name}': ([\d.]+)", self.arguments)
        return float(match[1]) if match else None


Learn = Callable[[re.Match[str], MessageContext], tuple[Bound, ...]]
Judge = Callable[[re.Match[str], MessageContext], Fault]


def nothing(_match: re.Match[str], _context: MessageContext) -> tuple[Bound, ...]:
    return ()


def at_most(flag: str, group: str) -> Learn:
    return lambda match, _context: (Bound(flag, "<=", float(match[group])),)


def at_least(flag: str, group: str) -> Learn:
    return lambda match, _context: (Bound(flag, ">=", float(match[group])),)


def more_memory_than_given(_match: re.Match[str], context: MessageContext) -> tuple[Bound, ...]:
    given = context.given("gpu_memory_utilization")
    return () if given is None else (Bound("gpu-memory-utilization", ">=", given),)


def longest_length(match: re.Match[str], context: MessageContext) -> tuple[Bound, ...]:
    if match["longest"]:
        return (Bound("max-model-len", "<=", float(match["longest"])),)
    return more_memory_than_given(match, context)


def length_of_model(match: re.Match[str], _context: MessageContext) -> tuple[Bound, ...]:
    """Derive the longest length that vLLM accepts: the greater one of the two that a model may state."""
    lengths = [float(match[name]) for name in ("longest", "other") if match[name]]
    return (Bound("max-model-len", "<=", max(lengths)),) if lengths else ()


def free_share(match: re.Match[str], _context: MessageContext) -> tuple[Bound, ...]:
    # Rounded down: the message's own figures are rounded, and the memory moves by some MiB from start to start.
    share = math.floor(float(match["free"]) / float(match["total"]) * 1000) / 1000
    return (Bound("gpu-memory-utilization", "<=", share),)


def gpu_held(match: re.Match[str], context: MessageContext) -> Fault:
    """Blame a start that finds too little memory free. What came after the count of others is no lasting holder.

    Contexts and NCCL's buffers of our own are in use by then. On unified memory the page cache is too, so the count
    says nothing there.
    """
    total, before = float(match["total"]), context.held_by_others_gib
    held = total - float(match["free"])
    has_grown = before is not None and not is_unified(total) and held > before + BESIDE_TORCH_GIB
    return Fault.ENVIRONMENT if has_grown or held > may_be_held(total) else Fault.CANDIDATE


def host_held(match: re.Match[str], _context: MessageContext) -> Fault:
    total = float(match["total"])
    return Fault.ENVIRONMENT if total - float(match["free"]) > HELD_SHARE_HOST * total else Fault.CANDIDATE


def memory_held(_match: re.Match[str], context: MessageContext) -> Fault:
    """Blame an out-of-memory message by its figures."""
    if context.figures is None:
        return Fault.CANDIDATE
    return Fault.CANDIDATE if short_of_memory(context.figures, context) is Shortage.OWN else Fault.ENVIRONMENT


def short_of_memory(figures: MemoryFigures, context: MessageContext) -> Shortage:
    """Decide whose memory was missing."""
    nothing_of_ours = context.phase is StartPhase.BEGINNING
    return shortage(figures, context.held_by_others_gib, nothing_of_ours=nothing_of_ours)


def of_the_arguments(match: re.Match[str], _context: MessageContext) -> Fault:
    """Blame a refused argument by the flag that the message names, before pydantic's dump of all values."""
    named = knobs.NAMES_SEARCHED.search(match[0].split("[type=")[0])
    return Fault.STUDY if named is None else Fault.CANDIDATE


def of_the_device(_match: re.Match[str], context: MessageContext) -> Fault:
    """Blame an error of the GPU's runtime. Before the model is loaded nothing but the machine can cause it."""
    return Fault.ENVIRONMENT if context.phase is StartPhase.BEGINNING else Fault.UNKNOWN


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
