"""Finished study → plan that compares its winner with the default once more. Every fault is caught here, before a
server starts."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from tuner.config import Machine, checked_model
from tuner.deploy.recorded import Recorded, recorded_in
from tuner.doors import lacks
from tuner.environment import Environment, Gpu, describe
from tuner.errors import EnvironmentFaultError, UsageError
from tuner.flagwords import flag_names
from tuner.launch import Door, check_reachable, is_container
from tuner.own_words import absolute_command
from tuner.placement import cpus_in
from tuner.report.tables import read_study
from tuner.secret_words import Parted
from tuner.server.door import nginx_program
from tuner.study.earlier import Rechecked
from tuner.study.own_files import storage_in
from tuner.study.plan import StudyPlan
from tuner.study.result import Decision
from tuner.study.store import Store
from tuner.vllm import knobs
from tuner.vllm.flags import InstalledVllm, installed_vllm

STARTS = 2
"""Starts before the confirmation: the default and the winner, to see where their limits are today."""

USUAL_CONFIRM_STARTS = 4
"""Confirmation starts where the finished study had none."""

_NO_WINNER = {
    Decision.WINNER: "its figures are gone",
    Decision.KEEP_DEFAULT: "it kept vLLM's default",
    Decision.NOT_CONFIRMED: "nothing was confirmed",
    Decision.NOTHING_FEASIBLE: "nothing kept the limits",
}
"""Why a finished study may have no winner."""

_SUFFIX = re.compile(r"-recheck-\d{4}(-\d+)?$")


def plan_recheck(
    finished: Store, given: Parted | None, machine: Machine, now: datetime, cache: Path, say: Callable[[str], None]
) -> tuple[StudyPlan, Environment]:
    """Plan a study of its own beside the finished one. `given` is another command for vLLM, None for the same. Raises
    UsageError or EnvironmentFaultError with the first fault."""
    won = _winner(finished)
    before = won.plan
    checked_model(before.model)
    gpus = _same_gpus(before, won.environment.gpus, machine)
    _check_cores(before)
    own = frozenset(given.secrets if given else ())
    if missing := [name for name in before.base.secret_env if name not in os.environ and name not in own]:
        raise UsageError(f"{missing[0]} is not set", hint="the study's servers need it; secrets are in no file")
    command = absolute_command(given.words) if given else before.base.command
    check_reachable(command, before.given)
    say(f"asking {shlex.join(command)!r} which flags it has")
    vllm = installed_vllm(command, cache / "flags")
    _check_flags(won, vllm)
    environment = describe(vllm.version, before.model, gpus, machine.driver)
    _check_same_model(before.study, won.environment, environment)
    folder = finished.folder.parent / f"{_SUFFIX.sub('', before.study)[:80]}-recheck-{now.astimezone():%m%d}"
    secret_env = tuple(sorted(own.union(before.base.secret_env)))
    plan = replace(
        before,
        study=folder.name,
        base=replace(before.base, command=command, flags=vllm.flags, secret_env=secret_env),
        dropped=(),
        ruled_out=(),
        doors=_doors(won, command, vllm),
        compares_doors=False,
        starts=STARTS,
        confirm_starts=before.confirm_starts or USUAL_CONFIRM_STARTS,
        patience=None,
        storage=storage_in(folder),
        created_at=now.isoformat(timespec="seconds"),
        vllm_version=vllm.version,
        rechecks=_rechecked(won),
    )
    return plan, environment


def _winner(finished: Store) -> Recorded:
    """Return the winner of a finished study. Raises UsageError if there is none."""
    study = read_study(finished.folder)
    name, result = study.plan.study, study.result
    if result is None or not result.complete:
        raise UsageError(f"study {name!r} is not finished", hint=f"finish it first: {finished.resume_command}")
    if result.decision is not Decision.WINNER or result.winner is None:
        raise UsageError(
            f"study {name!r} has no winner to recheck: {_NO_WINNER[result.decision]}",
            hint=f"a new search can begin with what it found: tuner search --from {name} …",
        )
    return recorded_in(study)


def _rechecked(won: Recorded) -> Rechecked:
    figures, gain = won.result.winner, won.result.gain
    assert figures is not None
    return Rechecked(
        study=won.plan.study,
        candidate=figures.candidate,
        qps=figures.qps,
        gain=None if gain is None else (gain.low, gain.middle, gain.high),
        vllm_version=won.environment.vllm_version,
        tuner_version=won.environment.tuner_version,
        driver=won.environment.driver,
    )


def _same_gpus(plan: StudyPlan, then: Sequence[Gpu], machine: Machine) -> tuple[Gpu, ...]:
    """Return the study's GPUs as they are today. Raises EnvironmentFaultError if one is missing, or another model."""
    here = {gpu.index: gpu for gpu in machine.gpus}
    used = sorted({index for group in plan.groups for index in group.gpus})
    if missing := [index for index in used if index not in here]:
        there = ", ".join(map(str, here)) or "none"
        raise EnvironmentFaultError(
            f"GPU {missing[0]} is not there: study {plan.study!r} ran on GPUs {', '.join(map(str, used))}",
            hint=f"GPUs of this machine: {there}; for them, search again",
        )
    for gpu in then:
        if gpu.index in here and here[gpu.index].name != gpu.name:
            raise EnvironmentFaultError(
                f"GPU {gpu.index} was {gpu.name} in study {plan.study!r}, is {here[gpu.index].name}",
                hint="its winner says nothing of other GPUs: search again",
            )
    return tuple(here[index] for index in used)


def _check_cores(plan: StudyPlan) -> None:
    """Raise EnvironmentFaultError if servers were bound to CPU cores that are not here."""
    bound = {cpu for group in plan.groups for cores in group.cores for cpu in cpus_in(cores)}
    if missing := sorted(bound - os.sched_getaffinity(0)):
        raise EnvironmentFaultError(
            f"CPU core {missing[0]} is not there: servers of study {plan.study!r} were bound to it",
            hint="run it on the machine of the study, or search again",
        )


def _check_flags(won: Recorded, vllm: InstalledVllm) -> None:
    """Raise EnvironmentFaultError if this vLLM lacks a flag of the winner's or the default's launch."""
    base = won.plan.base
    own = flag_names(base.extra, short=knobs.SHORT_OPTIONS)
    needed = {flag for flag, _ in (*base.fixed, *won.plan.baseline.values, *won.record.candidate.values)}
    needed |= {flag for flag in own if flag in base.flags}
    if lacking := sorted(needed - {*vllm.flags, knobs.DATA_PARALLEL}):
        raise EnvironmentFaultError(
            f"vLLM {vllm.version} has no --{lacking[0]}, which study {won.plan.study!r} launched with",
            hint="its winner cannot start there: search again with this vLLM, or name another with --vllm",
        )


def _check_same_model(study: str, then: Environment, now: Environment) -> None:
    if None not in (then.model_digest, now.model_digest) and then.model_digest != now.model_digest:
        raise UsageError(
            f"the model's config.json has changed since study {study!r}",
            hint="its winner says nothing of another model: search again",
        )


def _doors(won: Recorded, command: tuple[str, ...], vllm: InstalledVllm) -> tuple[Door, ...]:
    """Return the doors of the study that are here, the quoted one first. Raises EnvironmentFaultError if winner or
    default has several servers, and none is left."""
    plan = won.plan
    several = any(plan.layout_of(of).replicas > 1 for of in (plan.baseline, won.record.candidate))
    if not several:
        return ()
    in_container, has_nginx = is_container(command), nginx_program() is not None
    lacking = lacks(vllm.flags, has_experts=False, in_container=in_container, has_nginx=has_nginx)
    quoted = [found.door for found in won.result.doors if found.is_quoted]
    found = tuple(door for door in dict.fromkeys((*quoted, *plan.doors)) if door not in lacking)
    if not found:
        why = "; ".join(lacking[door] for door in plan.doors)
        raise EnvironmentFaultError(f"the study's servers need a door: {why}", hint="install nginx")
    return found
