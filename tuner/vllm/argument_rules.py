"""Rules between arguments that vLLM checks before it loads anything.

Source: vllm/config/scheduler.py verify_max_model_len (0.32), unchanged since 0.8.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tuner.candidate import Value
from tuner.vllm import knobs


@dataclass(frozen=True, slots=True)
class ArgumentRule:
    """`flag` must be at least `other`, or at most, if both are given; some rules hold without chunked prefill only."""

    flag: str
    other: str
    at_least: bool
    only_unchunked: bool = False

    def adapted(self, point: Mapping[str, Value]) -> int | None:
        """Return the value that `flag` needs, None if the rule holds already."""
        value, bound = _number(point, self.flag), _number(point, self.other)
        is_idle = self.only_unchunked and point.get(knobs.ENABLE_CHUNKED_PREFILL) is not False
        if value is None or bound is None or is_idle:
            return None
        return int(bound) if (value < bound if self.at_least else value > bound) else None


RULES = (
    ArgumentRule(knobs.MAX_NUM_BATCHED_TOKENS, knobs.MAX_NUM_SEQS, at_least=True),
    ArgumentRule(knobs.MAX_NUM_BATCHED_TOKENS, knobs.MAX_MODEL_LEN, at_least=True, only_unchunked=True),
    ArgumentRule(knobs.LONG_PREFILL_TOKEN_THRESHOLD, knobs.MAX_MODEL_LEN, at_least=False),
    ArgumentRule(knobs.MAX_NUM_ACTIVE_SEQS, knobs.MAX_NUM_SEQS, at_least=False),
    ArgumentRule(knobs.MAX_LONG_PARTIAL_PREFILLS, knobs.MAX_NUM_PARTIAL_PREFILLS, at_least=False),
)


def adapted(values: Mapping[str, Value], given: Mapping[str, Value]) -> dict[str, Value]:
    """Return `values` within the rules beside `given`, the flags that are the same for every candidate. Only flags
    in `values` change: what the user fixed stays, and vLLM then says itself what is wrong with it."""
    point = dict(values)
    for rule in RULES:
        value = rule.adapted({**given, **point})
        if value is not None and rule.flag in point:
            point[rule.flag] = value
    return point


def _number(point: Mapping[str, Value], flag: str) -> float | None:
    """Return a number that vLLM goes by as it is; with a negative one, as in `--max-model-len -1`, vLLM chooses."""
    value = point.get(flag)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        return None
    return float(value)
