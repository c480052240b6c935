"""Rules by which vLLM refuses arguments before it loads anything, as named functions over a point.

Source: vllm/config/scheduler.py verify_max_model_len (0.32), the same words since 0.8.5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tuner.candidate import Value

Point = dict[str, Value]


@dataclass(frozen=True, slots=True)
class ArgumentRule:
    """Rule over a point. `changes` makes it hold, and is empty if it holds."""

    name: str
    why: str
    changes: Callable[[Mapping[str, Value]], Point]


def _number(point: Mapping[str, Value], flag: str) -> float | None:
    """Return a number that vLLM takes as it is. With a negative one, as in `--max-model-len -1`, vLLM chooses."""
    value = point.get(flag)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0:
        return None
    return float(value)


def _at_least(point: Mapping[str, Value], flag: str, other: str) -> Point:
    value, floor = _number(point, flag), _number(point, other)
    return {flag: int(floor)} if value is not None and floor is not None and value < floor else {}


def _batch_holds_every_sequence(point: Mapping[str, Value]) -> Point:
    return _at_least(point, "max-num-batched-tokens", "max-num-seqs")


def _batch_holds_a_whole_prompt(point: Mapping[str, Value]) -> Point:
    if point.get("enable-chunked-prefill") is not False:
        return {}
    return _at_least(point, "max-num-batched-tokens", "max-model-len")


def _threshold_within_length(point: Mapping[str, Value]) -> Point:
    return _at_most(point, "long-prefill-token-threshold", "max-model-len")


def _active_within_seqs(point: Mapping[str, Value]) -> Point:
    return _at_most(point, "max-num-active-seqs", "max-num-seqs")


def _long_within_partial(point: Mapping[str, Value]) -> Point:
    return _at_most(point, "max-long-partial-prefills", "max-num-partial-prefills")


def _at_most(point: Mapping[str, Value], flag: str, other: str) -> Point:
    value, ceiling = _number(point, flag), _number(point, other)
    return {flag: int(ceiling)} if value is not None and ceiling is not None and value > ceiling else {}


RULES = (
    ArgumentRule("batch-holds-every-sequence", "max-num-batched-tokens ≥ max-num-seqs", _batch_holds_every_sequence),
    ArgumentRule(
        "batch-holds-a-whole-prompt",
        "max-num-batched-tokens ≥ max-model-len when chunked prefill is off",
        _batch_holds_a_whole_prompt,
    ),
    ArgumentRule("threshold-within-length", "long-prefill-token-threshold ≤ max-model-len", _threshold_within_length),
    ArgumentRule("active-within-seqs", "max-num-active-seqs ≤ max-num-seqs", _active_within_seqs),
    ArgumentRule("long-within-partial", "max-long-partial-prefills ≤ max-num-partial-prefills", _long_within_partial),
)


def broken(point: Mapping[str, Value]) -> tuple[ArgumentRule, ...]:
    return tuple(rule for rule in RULES if rule.changes(point))


def adapted(values: Mapping[str, Value], given: Mapping[str, Value]) -> Point:
    """Change `values` that break a rule together with `given`, the flags that all candidates share.

    Only flags in `values` change. The user's own stay, and vLLM then says what is wrong with them.
    """
    point = dict(values)
    for rule in RULES:
        changes = rule.changes({**given, **point})
        point.update({flag: value for flag, value in changes.items() if flag in point})
    return point
