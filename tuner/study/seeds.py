"""First candidates, as an engineer would choose them."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tuner.candidate import Candidate, Value
from tuner.layout import Layout
from tuner.space.parameter import Parameter
from tuner.study.compile_cache import neighbours
from tuner.study.kv_budget import KV_BYTES, fullest, most_sequences
from tuner.study.plan import StudyPlan
from tuner.study.setting import StudySetting
from tuner.vllm import knobs

THRESHOLD = knobs.LONG_PREFILL_TOKEN_THRESHOLD
SEQUENCES, TOKENS = knobs.MAX_NUM_SEQS, knobs.MAX_NUM_BATCHED_TOKENS
LARGE_BUDGET = 8192
"""Tokens of a large budget. A GPU for which vLLM chooses as many gets twice its default."""


def order_of_layouts(plan: StudyPlan) -> list[Layout]:
    """Return the planned layouts in the order of their first starts.

    Servers of as many GPUs as the default's come first, then ever smaller ones: places of one size are used side by
    side, and none waits for a larger one.
    """
    own = plan.own_layout
    planned = (placed.layout for placed in plan.layouts)
    return sorted(planned, key=lambda of: (of.ranks != own.ranks, -of.ranks, -of.tensor_parallel))


def seeds(setting: StudySetting) -> list[Candidate]:
    """Return the first candidates in the order of their starts. Of several layouts they are those of each layout, the
    one that fills its KV cache first."""
    plan = setting.plan
    if not plan.searches_layouts:
        return neighbours(_of_layout(setting, plan.own_layout))
    found: list[Candidate] = []
    for layout in order_of_layouts(plan):
        mine = _of_layout(setting, layout, filling_first=True)
        found += [*mine[:1], *neighbours(mine[1:])]  # the second of two with the same compiled code starts sooner
    return found


def _of_layout(setting: StudySetting, layout: Layout, *, filling_first: bool = False) -> list[Candidate]:
    """Return at most seven candidates around the ridge: as many sequences as the largest KV cache that is likely to
    start nearly always holds while they are served. If that is not known, they are those of the load.

    - The ridge, with the token budget of vLLM's default, and with a large one.
    - Half and twice as many sequences, with the least budget, whose memory goes to the KV cache.
    - As many sequences as the load has, with vLLM's default memory.
    - Half as many sequences with a cap on long prompts.
    """
    plan, defaults = setting.plan, setting.base
    ranges = {p.flag: p for p in plan.parameters}
    start = {f: p.decode(p.encode(defaults[f])) for f, p in ranges.items() if f in defaults}
    start |= {f: v for f, v in plan.default_of(layout).values if f in ranges}
    loads_own: dict[str, float] = {SEQUENCES: plan.load.most_concurrent, KV_BYTES: math.inf}
    ridge = fullest(setting, layout) or loads_own
    fewer, more = ({**ridge, SEQUENCES: share * ridge[SEQUENCES]} for share in (0.5, 2.0))
    variants: list[Mapping[str, float]] = [
        ridge, {**fewer, TOKENS: 0}, {**ridge, **_large_budget(defaults)}, {**more, TOKENS: 0}, loads_own
    ]  # fmt: skip
    if (threshold := ranges.get(THRESHOLD)) is not None:
        variants.append({**fewer, THRESHOLD: float(threshold.decode(sum(threshold.axis) / 2))})
    if filling_first:
        variants.sort(key=lambda variant: variant is not ridge)
    found = [
        setting.candidate(_holdable(setting, {**start, **sets}))
        for variant in variants
        if (sets := _within(ranges, variant)) and all(flag in start or flag in sets for flag in ranges)
    ]
    return list(dict.fromkeys(found))


def _holdable(setting: StudySetting, values: dict[str, Value]) -> dict[str, Value]:
    """Return the values with no more sequences than vLLM's blocks can hold. The range of the space comes first."""
    most = most_sequences(setting, {**setting.base, **values, **setting.given})
    parameter = next((p for p in setting.plan.parameters if p.flag == SEQUENCES), None)
    asked = values.get(SEQUENCES)
    if most is None or parameter is None or not isinstance(asked, (int, float)) or asked <= most:
        return values
    return {**values, SEQUENCES: parameter.decode(parameter.encode(most))}


def _large_budget(defaults: Mapping[str, Value]) -> dict[str, float]:
    return {TOKENS: max(LARGE_BUDGET, 2 * float(defaults.get(TOKENS, 0)))}


def _within(ranges: Mapping[str, Parameter], values: Mapping[str, float]) -> dict[str, Value]:
    return {f: ranges[f].decode(ranges[f].encode(v)) for f, v in values.items() if f in ranges}
