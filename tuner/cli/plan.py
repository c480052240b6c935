"""Command `tuner plan`: a search's plan without a server."""

from __future__ import annotations

import sys

from tuner.cli.console import Console, describe, plan_lines
from tuner.cli.folders import study_names
from tuner.cli.kv import kv_lines
from tuner.cli.tables import Form, print_json
from tuner.clock import RealClock
from tuner.config import SearchOptions, plan_study
from tuner.environment import Environment, differences
from tuner.errors import UsageError
from tuner.formatting import one_line
from tuner.launch import launch
from tuner.machine import cache_folder, this_machine
from tuner.model import UnknownModelError
from tuner.report.quote import shell_line
from tuner.study.kv_budget import kv_table
from tuner.study.learnt import known_rules
from tuner.study.plan import StudyPlan
from tuner.study.record import TrialRecord
from tuner.study.samplers import sampler_name
from tuner.study.seeds import seeds
from tuner.study.setting import StudySetting
from tuner.study.store import Store
from tuner.vllm.defaults import vllm_defaults


def show_plan(options: SearchOptions, form: Form) -> None:
    progress = Console()
    plan, environment = plan_study(options, this_machine(), RealClock().wall(), cache_folder(), progress.say)
    if form is Form.JSON:
        print_json(plan)
    else:
        Console(sys.stdout).say(plan_lines(plan, environment.vllm_version, sampler_name()))
        earlier = _earlier_starts(plan, environment, options)
        defaults = vllm_defaults(environment.vllm_version, environment.gpus)
        setting = StudySetting.of(plan, defaults, environment.gpus)
        lines = [*_first_starts(setting), *_kv_cache(setting, earlier), *_learnt(setting, earlier)]
        Console(sys.stdout).say("\n".join(lines))
    if plan.study in study_names(options.studies):
        progress.say(f"study {plan.study} exists already: `tuner search` would go on with it, as it was planned then")


def _first_starts(setting: StudySetting) -> list[str]:
    """List the default and the seeds, which start first. The rest depends on their results."""
    plan = setting.plan
    lines = [f"{'seeds' if i == 0 else '':<8}  {describe(c)}" for i, c in enumerate(seeds(setting))]
    first = launch(plan.base, plan.baseline, plan.placed(plan.own_layout).groups[0])
    return [*lines, f"first     {one_line(shell_line(first))}"]


def _kv_cache(setting: StudySetting, earlier: tuple[TrialRecord, ...]) -> list[str]:
    try:
        table = kv_table(setting, earlier)
    except UnknownModelError as error:
        return [f"KV cache  not known: {error}"]
    return kv_lines(table, setting.plan)


def _learnt(setting: StudySetting, earlier: tuple[TrialRecord, ...]) -> list[str]:
    """List the rules that earlier starts gave. Their counts are in `tuner status` and the report."""
    found = [rule for rule in known_rules(setting, earlier) if rule.withdrawn_by is None]
    return [f"{'learnt' if i == 0 else '':<8}  not started any more: {rule}" for i, rule in enumerate(found)]


def _earlier_starts(plan: StudyPlan, environment: Environment, options: SearchOptions) -> tuple[TrialRecord, ...]:
    """Return earlier trials whose memory facts hold for this plan."""
    store = Store(options.studies.absolute() / plan.study)
    try:
        same = not differences(store.environment(), environment) and store.plan().base.extra == plan.base.extra
    except UsageError:  # there is none, or its files cannot be read
        return ()
    return store.records() if same else ()
