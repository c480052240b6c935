"""Rules learnt from refused starts: candidates that vLLM would refuse for a reason that is known already. Pure.

A rule is a corner of the space: limits on flags that a candidate must all be beyond. It comes from one refused start
and holds for what asks at least as much as that start did, in the same way:

- Out of memory: at least as many sequences, tokens a step and tokens a request, and as much memory, all else equal.
  (vLLM profiles a step of max-num-batched-tokens and gives the KV cache what is left. A larger step can thus leave a
  little more room for CUDA graphs. A start that shows it withdraws the rule.) Where the weights or the largest step
  alone are too much, the KV cache's share of the memory has no part in it.
- KV cache too small: at most as much memory, and at least as many sequences and tokens a step, which use it up.
- A bound of vLLM's own message: a length that the KV cache cannot hold is one for at most that KV cache. Memory that
  other processes hold is missing whatever else is asked for.

A rule holds for servers with as many GPUs as the refused one. The number of servers on the machine is no limit.

Faults of the machine, time limits, deaths under load (chance has a part in them) and unknown causes give no rule. A
start that succeeds although a rule forbids it withdraws the rule. Rules of an earlier study come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from tuner.candidate import Value
from tuner.study.kv_budget import KvFloor, kv_floor, of_servers
from tuner.study.record import TrialOutcome, TrialRecord
from tuner.study.rule import FlagLimit, LearntRule
from tuner.study.setting import SERVER_SIZES, StudySetting
from tuner.vllm import knobs
from tuner.vllm.cause import Bound, Fault
from tuner.vllm.refusals import CONTEXTS, TOO_LITTLE_KV, OtherFlags, RefusalContext

__all__ = ["CAPACITY", "FlagLimit", "LearntRule", "bounds", "known_rules", "rules"]

CAPACITY = "kv-capacity"
"""Cause of rules from the arithmetic of tuner/capacity.py, made exact by the log of a start that succeeded."""

_REFUSED_FOR_KV = frozenset(kind for kind, context in CONTEXTS.items() if context is TOO_LITTLE_KV)


def bounds(rules: Iterable[LearntRule], values: Mapping[str, Value]) -> list[FlagLimit]:
    """Return the limits on one flag alone, beside a server's GPUs, that `values` is beyond."""
    against = (rule for rule in rules if rule.withdrawn_by is None and rule.rules_out(values))
    own = ([limit for limit in rule.limits if limit.flag not in SERVER_SIZES] for rule in against)
    return [limits[0] for limits in own if len(limits) == 1 and limits[0].relation in ("<", ">")]


def known_rules(setting: StudySetting, records: Iterable[TrialRecord]) -> tuple[LearntRule, ...]:
    """Return the rules that a study goes by. A layout's KV arithmetic counts once vLLM itself has refused a start of it
    for the same reason: one start is its price."""
    records = sorted(records, key=lambda r: r.trial)
    refused = [r for r in records if r.start.cause is not None and r.start.cause.kind in _REFUSED_FOR_KV]
    layouts = (placed.layout for placed in setting.plan.layouts)
    floors = (kv_floor(setting, records, of) for of in layouts if of_servers(setting, refused, of))
    return rules(setting, records, [floor for floor in floors if floor is not None])


def rules(
    setting: StudySetting, records: Iterable[TrialRecord], floors: Sequence[KvFloor] = ()
) -> tuple[LearntRule, ...]:
    """Derive rules in the order of their trials, leaving out those that an earlier one implies. `floors` are what the
    calibrated arithmetic rules out. Rules of an earlier study precede them."""
    records = sorted(records, key=lambda r: r.trial)
    started = [(r.trial, values) for r in records if r.levels or r.start.facts is not None
               if setting.is_like_the_others(values := setting.values(r.candidate))]  # fmt: skip
    earlier = setting.plan.begins_with.rules if setting.plan.begins_with else ()
    own = (
        rule
        for record in records
        for rule in (*_rules_from_refusal(setting, record), *_rules_from_arithmetic(setting, record, floors))
    )
    found: list[LearntRule] = []
    for rule in (*earlier, *own):
        if not any(rule.is_implied_by(known) for known in found if known.withdrawn_by is None):
            against = next((trial for trial, values in started if rule.rules_out(values)), None)
            found.append(replace(rule, withdrawn_by=against))
    return tuple(found)


def _rules_from_refusal(setting: StudySetting, record: TrialRecord) -> Iterator[LearntRule]:
    cause = record.start.cause
    if record.outcome is not TrialOutcome.REFUSED or cause is None or cause.fault is not Fault.CANDIDATE:
        return
    context = CONTEXTS.get(cause.kind)
    if context is None:
        return
    values = setting.values(record.candidate)
    idle = context.idle | (context.beside_kv_bytes if knobs.KV_CACHE_MEMORY_BYTES in values else frozenset())
    corner = _corner(context, setting, values, idle)
    # Of a flag that is not given, every candidate has the refused start's value: a bound on it separates nothing.
    named = [b for b in cause.bounds if b.flag not in idle and b.flag in (setting.searched | setting.constant.keys())]
    corners = [_moved(corner, bound) for bound in named]
    if context.others is OtherFlags.EQUAL and not corners:
        corners = [corner]
    for limits in corners:
        if (rule := _rule(setting, record.trial, cause.kind, limits)) is not None:
            yield rule


def _rules_from_arithmetic(
    setting: StudySetting, record: TrialRecord, floors: Sequence[KvFloor]
) -> Iterator[LearntRule]:
    """Yield the floors' rules. They hold for what uses at least as much memory as the start that they come from."""
    given = knobs.KV_CACHE_MEMORY_BYTES in setting.values(record.candidate)
    idle = {knobs.MAX_MODEL_LEN} | (TOO_LITTLE_KV.beside_kv_bytes if given else frozenset())
    for floor in floors:
        if floor.trial != record.trial:
            continue
        corner = _corner(TOO_LITTLE_KV, setting, setting.values(record.candidate), frozenset(idle))
        limit = FlagLimit(floor.flag, "<", floor.least)
        if (rule := _rule(setting, record.trial, CAPACITY, {**corner, floor.flag: limit})) is not None:
            yield rule


def _rule(setting: StudySetting, trial: int, cause: str, limits: Mapping[str, FlagLimit | None]) -> LearntRule | None:
    """Build a rule. None if a limit is unknown, or no limit is on a searched flag. Also None if the study's constant
    flags are not beyond one of the limits."""
    own: list[FlagLimit] = []
    for flag, limit in limits.items():
        if limit is None or (flag not in setting.searched and not limit.holds(setting.constant.get(flag))):
            return None
        if flag in setting.searched:
            own.append(limit)
    return LearntRule(trial, cause, tuple(own)) if own else None


def _corner(
    context: RefusalContext, setting: StudySetting, values: Mapping[str, Value], idle: frozenset[str]
) -> dict[str, FlagLimit | None]:
    """Return the limits that the refused start itself sets, by flag; None if its value is not known."""
    corner: dict[str, FlagLimit | None] = {}
    for flag in sorted((setting.searched | setting.constant.keys()) - idle):
        relation = context.axes.get(flag)
        if (
            relation is None
            and flag not in SERVER_SIZES
            and (context.others is OtherFlags.IRRELEVANT or flag in knobs.ONLY_SERVING)
        ):
            continue
        value = values.get(flag)
        corner[flag] = None if value is None else FlagLimit(flag, relation or "==", value)
    return corner


def _moved(corner: Mapping[str, FlagLimit | None], bound: Bound) -> dict[str, FlagLimit | None]:
    """Return the corner with the limit that a message names, if that rules out more than the start's own value."""
    named = FlagLimit(bound.flag, ">" if bound.relation == "<=" else "<", bound.limit)
    own = corner.get(bound.flag)
    return {**corner, bound.flag: named if own is None or own.implies(named) else own}
