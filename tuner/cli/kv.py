"""KV calculator of a plan: what fits, and how sure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tuner import formatting
from tuner.capacity import GIB, KvRoom, ModelMemory, Span
from tuner.layout import Layout
from tuner.study.kv_budget import KV_BYTES, KvTable
from tuner.study.plan import StudyPlan
from tuner.vllm import knobs

INDENT = " " * 10


def kv_lines(table: KvTable, plan: StudyPlan) -> list[str]:
    memory = table.memory
    weights = ""
    if memory.weights_bytes is not None:
        weights = f", weights {formatting.gib(memory.weights_bytes / GIB)} from {memory.weights_from}"
    each = f", on each of {len(plan.groups[0].gpus)} GPUs" if len(plan.groups[0].gpus) > 1 else ""
    if memory.paging is None:
        return [f"KV cache  not known before the first start: {table.why_empty}"]
    lines = [f"KV cache  {_per_token(memory)} bytes a token{_of_length(memory)}{weights}{each}"]
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
    return [*lines, *_states(table), *_certainty(table), *_not_modelled(table)]


def layouts_lines(tables: Sequence[tuple[Layout, KvTable]], plan: StudyPlan) -> list[str]:
    """Show one server of each layout, with the largest KV cache that is likely to start."""
    longest, mean = plan.workload.longest, math.ceil(plan.workload.mean)
    flag = tables[0][1].flag
    heads = (
        "layout",
        "weights GiB",
        "bytes a token",
        flag,
        "KV GiB",
        "KV tokens",
        f"requests of {longest:,}",
        f"of {mean:,}",
    )
    cells = [heads, *(_layout_row(layout, table, longest, mean) for layout, table in tables)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
    rows = ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines = [f"{'' if i else 'KV cache':<8}  {row}" for i, row in enumerate(rows)]
    lines.append(f"{INDENT}of one server; weights, bytes a token and KV GiB are each of its GPUs'")
    known = [(layout, table.calibrated_by) for layout, table in tables if table.calibrated_by is not None]
    lines += [f"{INDENT}{layout}: calibrated by the log of trial {trial:04d}" for layout, trial in known]
    if len(known) < len(tables) and flag != KV_BYTES:
        lines.append(f"{INDENT}about: what is no weight is estimated; the log of a layout's first start makes it exact")
    untold = [f"{INDENT}not known: {table.why_empty}" for _, table in tables if table.why_empty is not None]
    return [
        *lines,
        *dict.fromkeys(untold),
        *dict.fromkeys(line for _, table in tables for line in _not_modelled(table)),
    ]


def _layout_row(layout: Layout, table: KvTable, longest: int, mean: int) -> tuple[str, ...]:
    memory = table.memory
    weights = "?" if memory.weights_bytes is None else formatting.significant(memory.weights_bytes / GIB)
    known = (str(layout), weights, _per_token(memory))
    row = table.likely
    if row is None:
        return (*known, "?", "?", "?", "?", "?")
    return (*known, _value(table.flag, row[0]), *_fits(row[1], longest, mean))


def _per_token(memory: ModelMemory) -> str:
    return "?" if memory.kv_bytes_per_token is None else f"{memory.kv_bytes_per_token:,.0f}"


def _of_length(memory: ModelMemory) -> str:
    linear = memory.paging is None or memory.paging.is_linear
    return "" if linear else f" of a request of {memory.longest:,}"


def _states(table: KvTable) -> list[str]:
    pages = table.memory.paging
    if pages is None or not pages.has_states or table.likely is None:
        return []
    value, room = table.likely
    return [
        f"{INDENT}a request holds at least {pages.blocks(1)} blocks of {pages.block_bytes / GIB:.3g} GiB: at most "
        f"{_span(room.blocks)} of {knobs.MAX_NUM_SEQS} at {_value(table.flag, value)}"
    ]


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
