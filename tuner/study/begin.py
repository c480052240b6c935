"""Earlier study → what a search begins with: its best candidates and its rules, in the later study's space."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tuner.candidate import Candidate, Value
from tuner.environment import Environment
from tuner.errors import UsageError
from tuner.flagwords import as_number
from tuner.layout import FLAGS, Layout
from tuner.space.axis import ParameterAxis
from tuner.space.parameter import Kind, Parameter
from tuner.study import confirm, unread
from tuner.study.earlier import BeginsWith, Differs, EarlierCandidate
from tuner.study.learnt import known_rules
from tuner.study.mechanics import COSTS
from tuner.study.plan import StudyPlan
from tuner.study.proposer import Proposer
from tuner.study.record import TrialRecord
from tuner.study.rule import FlagLimit, LearntRule
from tuner.study.setting import SERVER_SIZES, StudySetting
from tuner.study.store import Store
from tuner.vllm import knobs, variables
from tuner.vllm.defaults import vllm_defaults
from tuner.vllm.flags import UNKNOWN_VERSION

BEST = 5
"""Number of the earlier study's candidates that a search begins with."""


def begins_with(folder: Path, plan: StudyPlan, now: Environment) -> BeginsWith:
    """Read an earlier study for the search of `plan`. Raises UsageError if it is of another model or other GPUs."""
    store = Store(folder)
    before, then = store.plan(), store.environment()
    if before.study == plan.study:
        raise UsageError(f"study {plan.study!r} cannot begin with itself", hint="name the new study with --study")
    _check_same_machine(before.study, then, now)
    records = unread.settled(before, store.records())
    earlier = StudySetting.of(before, vllm_defaults(then.vllm_version, then.gpus), then.gpus)
    later = StudySetting.of(plan, vllm_defaults(now.vllm_version, now.gpus), now.gpus)
    found, without_layout = _candidates(earlier, later, records)
    rules = [rule for rule in known_rules(earlier, records) if rule.withdrawn_by is None]
    differ = tuple(_differences(earlier, later, then.vllm_version, now.vllm_version)) if rules else ()
    return BeginsWith(
        study=before.study,
        vllm_version=then.vllm_version,
        candidates=found,
        without_layout=without_layout,
        not_searched=tuple(sorted(earlier.searched - later.searched - SERVER_SIZES - {knobs.DATA_PARALLEL})),
        rules=() if differ else tuple(_here(rules, earlier, later)),
        stale_rules=len(rules) if differ else 0,
        stale_by=differ,
        constants=_constants(earlier, later, records),
    )


def with_earlier(plan: StudyPlan, seeds: Sequence[Candidate]) -> list[Candidate]:
    """Return the first candidates of each layout: the earlier study's, then as many of the seeds as leave their number
    as it was."""
    if plan.begins_with is None:
        return list(seeds)
    first = [found.candidate for found in plan.begins_with.candidates]
    own: dict[Layout, list[Candidate]] = {}
    for candidate in dict.fromkeys((*first, *seeds)):
        own.setdefault(plan.layout_of(candidate), []).append(candidate)
    planned = Counter(map(plan.layout_of, seeds))
    least = Counter(map(plan.layout_of, first))
    return [candidate for layout, mine in own.items() for candidate in mine[: max(planned[layout], least[layout])]]


def _check_same_machine(study: str, then: Environment, now: Environment) -> None:
    """Raise UsageError for another model, or for other GPUs. More or fewer of the same kind may be there."""
    digests = {then.model_digest, now.model_digest}
    if then.model != now.model if None in digests else len(digests) > 1:
        raise UsageError(
            f"study {study!r} searched another model: {then.model}",
            hint="its flags say nothing of this one: leave --from out",
        )
    was, found = (sorted({gpu.name for gpu in of.gpus}) or [of.cpu] for of in (then, now))
    if was != found:
        raise UsageError(
            f"study {study!r} ran on {', '.join(was)}, this is {', '.join(found)}",
            hint="its flags say nothing of this machine: leave --from out",
        )


def _constants(earlier: StudySetting, later: StudySetting, records: Sequence[TrialRecord]) -> tuple[float, ...]:
    """Return the constants of the earlier model's mean, as far as they hold here. Under other limits or other traffic
    only those of a full server do, and none for servers of other sizes."""
    before, now = earlier.plan, later.plan
    sizes = [{placed.layout.server for placed in plan.layouts} for plan in (before, now)]
    if before.searches_layouts != now.searches_layouts or (not now.searches_layouts and sizes[0] != sizes[1]):
        return ()
    found = Proposer(earlier, [ParameterAxis(p) for p in before.parameters]).constants(records)
    same_traffic = (before.workload.shares, before.workload.reading) == (now.workload.shares, now.workload.reading)
    if same_traffic and (before.slos, before.load) == (now.slos, now.load):
        return found
    size = len(found) // (2 if now.searches_layouts else 1)
    return tuple(known if i % size < COSTS else 0.0 for i, known in enumerate(found))


def _candidates(
    earlier: StudySetting, later: StudySetting, records: tuple[TrialRecord, ...]
) -> tuple[tuple[EarlierCandidate, ...], tuple[int, ...]]:
    """Return the best candidates in the later space, and the trials of those whose layout it lacks. The default is
    none of them: every study starts it."""
    found: dict[Candidate, EarlierCandidate] = {}
    without_layout: list[int] = []
    seen: set[Candidate] = {earlier.plan.baseline}
    for record in confirm.finalists(earlier.plan, records):
        if record.candidate in seen or len(found) + len(without_layout) == BEST:
            continue
        seen.add(record.candidate)
        values = _with_layout(earlier, later, record.candidate)
        if values is None:
            without_layout.append(record.trial)
            continue
        candidate = later.candidate(_within(later, values))
        changed = tuple(_changes(later.plan, values, candidate))
        qps = confirm.worth(earlier.plan, records, record)
        if candidate != later.plan.baseline:
            found.setdefault(candidate, EarlierCandidate(candidate, record.trial, qps, changed))
    return tuple(found.values()), tuple(without_layout)


def _with_layout(earlier: StudySetting, later: StudySetting, candidate: Candidate) -> dict[str, Value] | None:
    """Return a candidate's known values with the later study's layout of such servers. None if there is none."""
    server = earlier.plan.layout_of(candidate).server
    layout = next((p.layout for p in later.plan.layouts if p.layout.server == server), None)
    if layout is None:
        return None
    values = {flag: value for flag, value in earlier.values(candidate).items() if flag not in FLAGS}
    return {**values, **later.on(layout)}


def _within(later: StudySetting, values: Mapping[str, Value]) -> dict[str, Value]:
    """Return a value of each later parameter: the nearest to the earlier one, else to vLLM's default."""
    of_layout = {flag: value for flag, value in values.items() if flag in FLAGS}
    ranges = (p for p in later.plan.parameters if p.flag not in FLAGS)
    known = {p.flag: _nearest(p, values.get(p.flag, later.base.get(p.flag))) for p in ranges}
    return {**known, **of_layout}


def _changes(plan: StudyPlan, values: Mapping[str, Value], candidate: Candidate) -> Iterator[Differs]:
    """Yield the values that had to move: out of a parameter's range, or against vLLM's argument rules beside others."""
    for parameter in plan.parameters:
        value, now = values.get(parameter.flag), candidate.as_dict().get(parameter.flag)
        if parameter.flag in FLAGS or value is None:
            continue
        if not _has(parameter, value) or now != _nearest(parameter, value):
            yield Differs(parameter.flag, value, now)


def _has(parameter: Parameter, value: Value) -> bool:
    if parameter.kind is Kind.CHOICE:
        return value in parameter.choices
    number = as_number(value)
    return parameter.kind is Kind.FLAG or (number is not None and parameter.low <= number <= parameter.high)


def _nearest(parameter: Parameter, value: Value | None) -> Value:
    """Return the value of a parameter that is nearest to `value`: its middle if that is no number."""
    number = as_number(value)
    if parameter.kind is Kind.CHOICE and value not in parameter.choices and number is not None:
        numbers = [choice for choice in parameter.choices if as_number(choice) is not None]
        return min(numbers, key=lambda choice: abs(float(choice) - number), default=parameter.choices[0])
    if parameter.kind in (Kind.CHOICE, Kind.FLAG):
        return parameter.decode(0 if value is None else parameter.encode(value))
    return parameter.decode(sum(parameter.axis) / 2 if number is None else parameter.encode(number))


def _differences(earlier: StudySetting, later: StudySetting, was: str, now: str) -> Iterator[Differs]:
    """Yield what differs between all starts of the two studies and may change what vLLM refuses."""
    if was != now or now == UNKNOWN_VERSION:
        yield Differs("vLLM", was, now)
    searched = earlier.searched | later.searched | SERVER_SIZES | knobs.ONLY_SERVING
    for flag in sorted((earlier.constant.keys() | later.constant.keys()) - searched):
        one, other = earlier.constant.get(flag), later.constant.get(flag)
        if one != other:
            yield Differs(flag, one, other)
    before, after = (
        {name: value for name, value in setting.plan.base.env if name != variables.CACHE_ROOT}
        for setting in (earlier, later)
    )
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) != after.get(name):
            yield Differs(name, before.get(name), after.get(name))


def _here(rules: list[LearntRule], earlier: StudySetting, later: StudySetting) -> Iterator[LearntRule]:
    """Yield the rules as limits on what the later study searches. One that no candidate of it can break is left out,
    and so is one that would hold on the strength of a value that is not known."""
    new = sorted(later.searched - earlier.searched - knobs.ONLY_SERVING)
    for rule in rules:
        limits = [limit for limit in rule.limits if limit.flag in later.searched]
        others = [limit for limit in rule.limits if limit.flag not in later.searched]
        held = [(flag, _constant(earlier, flag)) for flag in new]
        if any(value is None for _, value in held):
            continue
        limits += [FlagLimit(flag, "==", value) for flag, value in held if value is not None]
        if limits and all(limit.holds(_constant(later, limit.flag)) for limit in others):
            yield replace(rule, limits=tuple(limits), saved=0, study=rule.study or earlier.plan.study)


def _constant(setting: StudySetting, flag: str) -> Value | None:
    """Return the value that all servers of a study share. Without a size, they have one GPU."""
    return setting.constant.get(flag, 1 if flag in SERVER_SIZES else None)
