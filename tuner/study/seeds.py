"""The first candidates, before any model of the search exists: what an engineer would try by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tuner.candidate import Candidate, Value
from tuner.space.parameter import Parameter
from tuner.study.plan import StudyPlan


def seeds(plan: StudyPlan, defaults: Mapping[str, Value]) -> list[Candidate]:
    """A large token budget; as many sequences as the load has, with all the KV memory; a conservative point."""
    ranges = {p.flag: p for p in plan.parameters}
    given = {**dict(plan.space.always), **dict(plan.given)}
    start = {f: p.decode(p.encode(defaults[f])) for f, p in ranges.items() if f in defaults}
    start |= {f: v for f, v in plan.baseline.values if f in ranges}
    variants = (
        {"max-num-batched-tokens": 8192},
        {"max-num-seqs": plan.load.most_concurrent, "max-num-batched-tokens": 4096, "kv-cache-memory-bytes": math.inf},
        {"max-num-seqs": 64, "max-num-batched-tokens": 2048, "gpu-memory-utilization": 0.85},
    )
    found = [
        plan.space.candidate({**start, **_within(ranges, variant)}, given)
        for variant in variants
        if all(flag in start or flag in variant for flag in ranges)
    ]
    return list(dict.fromkeys(found))


def _within(ranges: Mapping[str, Parameter], values: Mapping[str, float]) -> dict[str, Value]:
    return {f: ranges[f].decode(ranges[f].encode(v)) for f, v in values.items() if f in ranges}
