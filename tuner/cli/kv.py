"""KV calculator of a plan: what fits, and how sure."""

from __future__ import annotations

import math

from tuner import formatting
from tuner.capacity import GIB, KvRoom, Span
from tuner.study.kv_budget import KV_BYTES, KvTable
from tuner.study.plan import StudyPlan

INDENT = " " * 10


def kv_lines(table: KvTable, plan: StudyPlan) -> list[str]:
    memory = table.memory
    weights = ""
    if memory.weights_bytes is not None:
        weights = f", weights {formatting.gib(memory.weights_bytes / GIB)} from {memory.weights_from}"
    each = f", on each of {len(plan.groups[0].gpus)} GPUs" if len(plan.groups[0].gpus) > 1 else ""
    lines = [f"KV cache  {memory.kv_bytes_per_token:,.0f} bytes a token{weights}{each}"]
    if table.why_empty is not None:
        return [*lines, f"{INDENT}no table: {table.why_empty}", *_not_modelled(table)]
    longest, mean = plan.workload.longest, math.ceil(plan.workload.mean)
    heads = (table.flag, "KV GiB", "KV tokens", f"requests of {longest:,}", f"of {mean:,}")
    cells = [heads, *((_value(table.flag, v), *_fits(room, longest, mean)) for v, room in table.rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    lines += [INDENT + "  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    shared = "; a shared prefix is counted in each" if any(s.shared_prefix for s in plan.workload.shares) else ""
    lines.append(
        f"{INDENT}requests: how many of the workload's longest and mean fit without preemption, chat template aside"
        f"{shared}"
    )
    return [*lines, *_certainty(table), *_not_modelled(table)]


def _value(flag: str, value: float) -> str:
    return f"{value:.0f}" if flag == KV_BYTES else f"{value:.3f}".removesuffix("0")


def _fits(room: KvRoom, longest: int, mean: int) -> tuple[str, ...]:
    low, high = (formatting.significant(b / GIB) for b in (room.kv_bytes.low, room.kv_bytes.high))
    return (
        low if low == high else f"{low}-{high}",
        _span(room.kv_tokens),
        _span(room.sequences(longest)),
        _span(room.sequences(mean)),
    )


def _span(span: Span) -> str:
    return formatting.span(span.low, span.high)


def _certainty(table: KvTable) -> list[str]:
    if table.calibrated_by is not None:
        budget = "" if table.flag == KV_BYTES else " at the token budget it had"
        return [f"{INDENT}calibrated by the log of trial {table.calibrated_by:04d}: exact to a block{budget}"]
    if table.flag == KV_BYTES:
        return []
    low, high = table.memory.overhead_bytes.low / GIB, table.memory.overhead_bytes.high / GIB
    return [
        f"{INDENT}about: activations, CUDA graphs and the like are estimated at {formatting.significant(low, 2)} to "
        f"{formatting.significant(high, 2)} GiB; the first start's log makes it exact"
    ]


def _not_modelled(table: KvTable) -> list[str]:
    return [f"{INDENT}not modelled: {what}" for what in table.memory.not_modelled]
