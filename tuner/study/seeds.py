"""The first candidates, before any model of the search exists: what an engineer would try by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tuner.candidate import Candidate, Value
from tuner.environment import Gpu
from tuner.space.parameter import Parameter
from tuner.study.compiled import neighbours
from tuner.study.memory import KV_BYTES, UTILIZATION, fullest
from tuner.study.plan import StudyPlan

THRESHOLD = "long-prefill-token-threshold"


def seeds(plan: StudyPlan, defaults: Mapping[str, Value], gpus: tuple[Gpu, ...] = ()) -> list[Candidate]:
    """At most five: a large token budget; as many sequences as the largest KV cache holds mean requests of the
    workload; as many as the load has, with all the KV memory; many sequences with a cap on long prompts; a conservative
    point. `gpus` are those of the servers, none on a CPU."""
    ranges = {p.flag: p for p in plan.parameters}
    given = {**dict(plan.space.always), **dict(plan.given)}
    start = {f: p.decode(p.encode(defaults[f])) for f, p in ranges.items() if f in defaults}
    start |= {f: v for f, v in plan.baseline.values if f in ranges}
    many: dict[str, float] = {"max-num-seqs": plan.load.most_concurrent, "max-num-batched-tokens": 4096}
    variants: list[Mapping[str, float]] = [{"max-num-batched-tokens": 8192}, {**many, KV_BYTES: math.inf}]
    if full := fullest(plan, gpus, defaults):
        many = full
        variants.insert(1, full)
    if (threshold := ranges.get(THRESHOLD)) is not None:
        variants.append({**many, THRESHOLD: float(threshold.decode(sum(threshold.axis) / 2))})
    variants.append({"max-num-seqs": 64, "max-num-batched-tokens": 2048, UTILIZATION: 0.85})
    found = [
        plan.space.candidate({**start, **_within(ranges, variant)}, given)
        for variant in variants
        if all(flag in start or flag in variant for flag in ranges)
    ]
    return neighbours(dict.fromkeys(found))  # the second of two with the same compiled code starts sooner


def _within(ranges: Mapping[str, Parameter], values: Mapping[str, float]) -> dict[str, Value]:
    return {f: ranges[f].decode(ranges[f].encode(v)) for f, v in values.items() if f in ranges}
