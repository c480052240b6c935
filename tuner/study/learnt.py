"""Rules that refused starts taught: which candidates vLLM would refuse for a reason that is known already. Pure.

A rule is a corner of the space: limits on flags that a candidate must all be beyond. It comes from one refused start
and holds for what asks at least as much as that start did, in the same way:

- Out of memory: at least as many sequences, tokens a step, tokens a request and as much memory, all else equal. (vLLM
  profiles a step of max-num-batched-tokens and gives the KV cache what is left, so that a larger step can leave a
  little more room for CUDA graphs. Where a start shows that, it withdraws the rule.)
- KV cache too small: at most as much memory, and at least as many sequences and tokens a step, which eat of it.
- A bound of vLLM's own message, where it holds: a length that the KV cache cannot hold is one for at most that KV
  cache; memory that others hold is missing whatever else is asked for.

Nothing is learnt from the machine's faults, from time limits, from deaths under load (chance has a part in them) and
from causes that nobody knows. A start that a rule would have ruled out and that succeeded withdraws it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from tuner.candidate import Value
from tuner.study.kv_budget import KV_BYTES, LENGTH, UTILIZATION, KvFloor, kv_floor
from tuner.study.record import TrialOutcome, TrialRecord
from tuner.study.setting import StudySetting
from tuner.vllm.cause import Bound, Fault

CAPACITY = "kv-capacity"
"""In place of a cause: the arithmetic of tuner/capacity.py, made exact by the log of a start that succeeded."""

SEQUENCES, STEP_TOKENS = "max-num-seqs", "max-num-batched-tokens"
_CAPTURED, _CHUNKED = "max-cudagraph-capture-size", "enable-chunked-prefill"

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">=": operator.ge, ">": operator.gt,
}  # fmt: skip
_SIGNS = {"<": "<", "<=": "≤", "==": "=", ">=": "≥", ">": ">"}


@dataclass(frozen=True, slots=True)
class Limit:
    """`flag` `relation` `value`; `relation` is one of < <= == >= >. Only numbers have an order."""

    flag: str
    relation: str
    value: Value

    def holds(self, value: Value | None) -> bool:
        """None, a flag that is not given and has no known default, is beyond no limit."""
        if self.relation == "==":
            return value == self.value
        mine, limit = _number(value), _number(self.value)
        return mine is not None and limit is not None and _COMPARE[self.relation](mine, limit)

    def implies(self, other: Limit) -> bool:
        """Whether every value beyond this limit is beyond `other` too."""
        if self.flag != other.flag:
            return False
        if self.relation == "==":
            return other.holds(self.value)
        same_way = self.relation[0] == other.relation[0]
        return same_way and (other.holds(self.value) or self == other)

    def __str__(self) -> str:
        return f"{self.flag} {_SIGNS[self.relation]} {_text(self.value)}"


@dataclass(frozen=True, slots=True)
class Rule:
    """What the search does not start any more. `trial` taught it, `cause` is that start's kind of cause, or CAPACITY.

    `limits` are those on searched flags. `withdrawn_by` is a start that succeeded beyond them all, None as long as the
    rule holds. `spared` counts the candidates that were not started for it.
    """

    trial: int
    cause: str
    limits: tuple[Limit, ...]
    withdrawn_by: int | None = None
    spared: int = 0

    def rules_out(self, values: Mapping[str, Value]) -> bool:
        return all(limit.holds(values.get(limit.flag)) for limit in self.limits)

    def is_implied_by(self, other: Rule) -> bool:
        """Whether `other` rules out everything that this rule does."""
        return all(any(mine.implies(limit) for mine in self.limits) for limit in other.limits)

    @property
    def words(self) -> str:
        return ", ".join(map(str, self.limits))

    def __str__(self) -> str:
        return f"{self.words} ({self.cause}, trial {self.trial:04d})"


def bounds(rules: Iterable[Rule], values: Mapping[str, Value]) -> list[Limit]:
    """What the rules say of one flag alone, whatever the others are, and `values` is beyond."""
    alone = (rule.limits[0] for rule in rules if rule.withdrawn_by is None and len(rule.limits) == 1)
    return [limit for limit in alone if limit.relation in ("<", ">") and limit.holds(values.get(limit.flag))]


class Others(Enum):
    """Flags that a context does not name: equal to the teaching start's, or of no influence."""

    EQUAL = "equal"
    ANY = "any"


@dataclass(frozen=True, slots=True)
class Context:
    """Where a refusal repeats itself: `axes` are flags, each with the direction away from the start that was refused.

    With `Others.ANY` the refusal teaches through the bounds in its message only. `beside_kv_bytes` are the axes that
    have no influence where kv-cache-memory-bytes is given.
    """

    axes: Mapping[str, str] = field(default_factory=dict)
    others: Others = Others.ANY
    beside_kv_bytes: frozenset[str] = frozenset()


_EATERS = {SEQUENCES: ">=", STEP_TOKENS: ">=", LENGTH: ">=", _CAPTURED: ">="}
_OUT_OF_MEMORY = Context(
    {UTILIZATION: ">=", KV_BYTES: ">=", **_EATERS}, Others.EQUAL, beside_kv_bytes=frozenset({UTILIZATION})
)
_TOO_LITTLE_KV = Context(
    {UTILIZATION: "<=", KV_BYTES: "<=", **_EATERS},
    Others.EQUAL,
    beside_kv_bytes=frozenset({UTILIZATION, SEQUENCES, STEP_TOKENS, _CAPTURED}),
)
_ALWAYS = Context()

CONTEXTS: Mapping[str, Context] = {
    "oom": _OUT_OF_MEMORY,
    "oom-warm-up": _OUT_OF_MEMORY,
    "oom-weights": _OUT_OF_MEMORY,
    "kv-too-small": _TOO_LITTLE_KV,
    "no-kv-memory": _TOO_LITTLE_KV,
    "mamba-blocks": _TOO_LITTLE_KV,
    "memory-wanted": _ALWAYS,
    "host-memory-wanted": _ALWAYS,
    "host-kv-memory": Context({SEQUENCES: ">=", STEP_TOKENS: ">="}),
    "len-above-model": _ALWAYS,
    "partial-prefills": _ALWAYS,
    "too-few-gpus": _ALWAYS,
    "batched-below-seqs": Context({STEP_TOKENS: "<="}),
    "batched-below-len": Context({LENGTH: ">=", _CHUNKED: "=="}),
    "active-above-seqs": Context({SEQUENCES: "<="}),
    "threshold-above-len": Context({LENGTH: "<="}),
}
"""By kind of cause (vllm/log_patterns.py). A kind that is not here teaches nothing."""

_REFUSED_FOR_KV = frozenset(kind for kind, context in CONTEXTS.items() if context is _TOO_LITTLE_KV)

INERT = frozenset({
    "long-prefill-token-threshold", "long-prefill-token-threshold-adaptive", "max-num-partial-prefills",
    "max-long-partial-prefills", "max-num-active-seqs", "max-num-scheduled-tokens", "prefill-schedule-interval",
    "scheduler-reserve-full-isl", "scheduling-policy", "watermark", "stream-interval",
})  # fmt: skip
"""Flags that the scheduler reads while it serves: they change nothing of a start's memory."""


def known_rules(setting: StudySetting, records: Iterable[TrialRecord]) -> tuple[Rule, ...]:
    """The rules that a study goes by.

    The KV arithmetic is believed once vLLM itself has refused a start for the same reason: one start is its price.
    """
    records = sorted(records, key=lambda r: r.trial)
    refused = any(r.start.cause is not None and r.start.cause.kind in _REFUSED_FOR_KV for r in records)
    return rules(setting, records, kv_floor(setting, records) if refused else None)


def rules(setting: StudySetting, records: Iterable[TrialRecord], floor: KvFloor | None = None) -> tuple[Rule, ...]:
    """In the order of the trials that taught them, each only where it says more than those before it that hold.

    `floor` is what the calibrated arithmetic rules out, None where it cannot say.
    """
    records = sorted(records, key=lambda r: r.trial)
    started = [(r.trial, values) for r in records if r.levels or r.start.facts is not None
               if setting.is_like_the_others(values := setting.values(r.candidate))]  # fmt: skip
    found: list[Rule] = []
    for record in records:
        for rule in (*_rules_from_refusal(setting, record), *_rule_from_arithmetic(setting, record, floor)):
            if not any(rule.is_implied_by(known) for known in found if known.withdrawn_by is None):
                against = next((trial for trial, values in started if rule.rules_out(values)), None)
                found.append(replace(rule, withdrawn_by=against))
    return tuple(found)


def _rules_from_refusal(setting: StudySetting, record: TrialRecord) -> Iterator[Rule]:
    cause = record.start.cause
    if record.outcome is not TrialOutcome.REFUSED or cause is None or cause.fault is not Fault.CANDIDATE:
        return
    context = CONTEXTS.get(cause.kind)
    if context is None:
        return
    values = setting.values(record.candidate)
    idle = context.beside_kv_bytes if KV_BYTES in values else frozenset()
    corner = _corner(context, setting, values, idle)
    # Of a flag that nobody gives, every candidate has the refused start's value: a bound on it tells nobody apart.
    told = [b for b in cause.bounds if b.flag not in idle and b.flag in (setting.searched | setting.constant.keys())]
    corners = [_moved(corner, bound) for bound in told]
    if context.others is Others.EQUAL and not corners:
        corners = [corner]
    for limits in corners:
        if (rule := _rule(setting, record.trial, cause.kind, limits)) is not None:
            yield rule


def _rule_from_arithmetic(setting: StudySetting, record: TrialRecord, floor: KvFloor | None) -> Iterator[Rule]:
    """The floor holds for what eats at least as much memory as the start that it was reckoned from."""
    if floor is None or floor.trial != record.trial:
        return
    values = setting.values(record.candidate)
    idle = {LENGTH} | (_TOO_LITTLE_KV.beside_kv_bytes if KV_BYTES in values else frozenset())
    corner = _corner(_TOO_LITTLE_KV, setting, values, frozenset(idle))
    rule = _rule(setting, record.trial, CAPACITY, {**corner, floor.flag: Limit(floor.flag, "<", floor.least)})
    if rule is not None:
        yield rule


def _rule(setting: StudySetting, trial: int, cause: str, limits: Mapping[str, Limit | None]) -> Rule | None:
    """None where a limit is not known, where none is on a searched flag (a rule against the whole study: vLLM says that
    itself), and where what the other candidates have in common keeps them within."""
    own: list[Limit] = []
    for flag, limit in limits.items():
        if limit is None or (flag not in setting.searched and not limit.holds(setting.constant.get(flag))):
            return None
        if flag in setting.searched:
            own.append(limit)
    return Rule(trial, cause, tuple(own)) if own else None


def _corner(
    context: Context, setting: StudySetting, values: Mapping[str, Value], idle: frozenset[str]
) -> dict[str, Limit | None]:
    """The limits that the refused start itself sets, by flag; None where its value is not known."""
    corner: dict[str, Limit | None] = {}
    for flag in sorted((setting.searched | setting.constant.keys()) - idle):
        relation = context.axes.get(flag)
        if relation is None and (context.others is Others.ANY or flag in INERT):
            continue
        value = values.get(flag)
        corner[flag] = None if value is None else Limit(flag, relation or "==", value)
    return corner


def _moved(corner: Mapping[str, Limit | None], bound: Bound) -> dict[str, Limit | None]:
    """The corner with the limit that a message names, where that rules out more than the start's own value."""
    told = Limit(bound.flag, ">" if bound.relation == "<=" else "<", bound.limit)
    own = corner.get(bound.flag)
    return {**corner, bound.flag: told if own is None or own.implies(told) else own}


def _number(value: Value | None) -> float | None:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.3f}".rstrip("0") if abs(value) < 100 else f"{value:.0f}"
    return f"{value:,.0f}" if isinstance(value, (int, float)) else value
