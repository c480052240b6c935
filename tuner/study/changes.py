"""Options that a study of that name was not planned with: those that only extend it are taken over."""

from __future__ import annotations

import math
import shlex
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from tuner import formatting
from tuner.load.workload import extra_body_text
from tuner.space.space import Space
from tuner.study.plan import Ladder, OpenSearch, StudyPlan
from tuner.vllm import knobs


@dataclass(frozen=True, slots=True)
class Change:
    """Option with the value that the study was planned with, and the one that was given."""

    name: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.name} was {self.old}, is {self.new}"


def extended(before: StudyPlan, asked: StudyPlan, given: Collection[str] | None) -> tuple[StudyPlan, list[Change]]:
    """Return the plan with the `given` options that only extend it, and those options. None stands for all options."""
    changes = list(_extensions(before, asked, given))
    longer = [change for change, is_longer in changes if is_longer]
    names = {change.name for change in longer}

    def of(name: str) -> StudyPlan:
        return asked if name in names else before

    plan = replace(
        before,
        starts=of("--trials").starts,
        confirm_starts=of("--confirm").confirm_starts,
        time_budget_s=of("--time-budget").time_budget_s,
        patience=of("--patience").patience,
        start_limit_s=of("--start-limit-seconds").start_limit_s,
    )
    return plan, longer


def refused(before: StudyPlan, asked: StudyPlan, given: Collection[str] | None) -> list[str]:
    """List what was asked for and would make other figures, or a shorter study."""
    found = [change for change, is_longer in _extensions(before, asked, given) if not is_longer]
    found += [change for change in _what_is_measured(before, asked) if change.old != change.new]
    found += [
        Change(f"--{flag}", old, new)
        for flag, old, new in (*_places(before, asked), *_load(before, asked))
        if old != new and _is_given(flag, given)
    ]
    changed_space = [] if _is_same(before.space, asked.space) else ["the space changed"]
    return [*map(str, found), *changed_space]


def _is_same(before: Space, asked: Space) -> bool:
    """Return True for equal spaces. Ranges of a preset may differ: by its version, and by what is free on a GPU."""
    if before.file is None and asked.file is None:
        before, asked = replace(before, parameters=()), replace(asked, parameters=())
    return before == asked


def _is_given(flag: str, given: Collection[str] | None) -> bool:
    return given is None or flag.replace("-", "_") in given


def _extensions(before: StudyPlan, asked: StudyPlan, given: Collection[str] | None) -> Iterator[tuple[Change, bool]]:
    """Yield the changed numbers of which a larger one extends the study, with True for a larger one."""
    for flag, old, new in (
        ("trials", before.starts, asked.starts),
        ("confirm", before.confirm_starts, asked.confirm_starts),
        ("time-budget", before.time_budget_s, asked.time_budget_s),
        ("patience", before.patience, asked.patience),
        ("start-limit-seconds", before.start_limit_s, asked.start_limit_s),
    ):
        if old != new and _is_given(flag, given):
            texts = (_amount(flag, value) for value in (old, new))
            yield Change(f"--{flag}", *texts), _or_endless(new) > _or_endless(old)


def _or_endless(value: float | None) -> float:
    return math.inf if value is None else value


def _amount(flag: str, value: float | None) -> str:
    if value is None:
        return "none"
    return formatting.duration(value) if flag in ("time-budget", "start-limit-seconds") else f"{value:g}"


def _what_is_measured(before: StudyPlan, asked: StudyPlan) -> Iterator[Change]:
    """Pair what every option of a search decides, given or not."""
    for name, old, new in (
        ("workload", before.workload.name, asked.workload.name),
        ("content of the workload", _digest(before), _digest(asked)),
        ("end of answers", _ends(before), _ends(asked)),
        ("extra body", extra_body_text(before.workload), extra_body_text(asked.workload)),
        ("longest request", _tokens(before), _tokens(asked)),
        ("limits", ", ".join(map(str, before.slos)), ", ".join(map(str, asked.slos))),
        ("own flags", shlex.join(before.base.extra), shlex.join(asked.base.extra)),
        ("load", f"{before.load.kind} loop", f"{asked.load.kind} loop"),
        ("rechecked study", _rechecked(before), _rechecked(asked)),
    ):
        yield Change(name, old or "none", new or "none")


def _places(before: StudyPlan, asked: StudyPlan) -> Iterator[tuple[str, str, str]]:
    """Pair the options that say what is started where."""
    yield "from", _beginning(before), _beginning(asked)
    for flag in ("gpus", "workers"):
        yield flag, _units(before), _units(asked)
    for flag in ("layouts", knobs.TENSOR_PARALLEL):
        yield flag, _layouts(before), _layouts(asked)
    yield "door", _doors(before), _doors(asked)
    yield "vllm", shlex.join(before.base.command), shlex.join(asked.base.command)
    yield "seed", str(before.seed), str(asked.seed)
    yield "storage", before.storage, asked.storage


def _load(before: StudyPlan, asked: StudyPlan) -> Iterator[tuple[str, str, str]]:
    """Pair the options of the load. Loops of two kinds have none in common but the warm-up."""
    old, new = before.load, asked.load
    yield "warm-up-seconds", f"{old.warm_up_s:g}", f"{new.warm_up_s:g}"
    if isinstance(old, Ladder) and isinstance(new, Ladder):
        yield "levels", ",".join(map(str, old.levels)), ",".join(map(str, new.levels))
        yield "level-seconds", f"{old.level_s:g}", f"{new.level_s:g}"
    if isinstance(old, OpenSearch) and isinstance(new, OpenSearch):
        yield "probe-seconds", f"{old.settings.probe_s:g}", f"{new.settings.probe_s:g}"
        yield "burstiness", str(old.arrivals), str(new.arrivals)


def _rechecked(plan: StudyPlan) -> str | None:
    return plan.rechecks.study if plan.rechecks else None


def _beginning(plan: StudyPlan) -> str:
    return plan.begins_with.study if plan.begins_with else "none"


def _units(plan: StudyPlan) -> str:
    units = plan.units or sorted({unit for group in plan.groups for unit in group.units})
    return ",".join(map(str, units)) or "none"


def _layouts(plan: StudyPlan) -> str:
    return ", ".join(str(placed.layout) for placed in plan.layouts)


def _doors(plan: StudyPlan) -> str:
    return "both" if plan.compares_doors else ", ".join(plan.doors) or "none"


def _tokens(plan: StudyPlan) -> str:
    return "not stated" if plan.length is None else f"{plan.length.tokens or 'chosen by vLLM'}"


def _digest(plan: StudyPlan) -> str | None:
    """Return the beginning of the traffic file's digest."""
    digest = plan.workload.file_sha256
    return None if digest is None else f"sha256 {digest[:8]}…"


def _ends(plan: StudyPlan) -> str:
    return "natural" if plan.workload.natural_stops else "exact"
