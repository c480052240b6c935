"""Command `tuner plan`: a search's plan without a server."""

from __future__ import annotations

import sys

from tuner.cli.console import Console, describe, plan_lines
from tuner.cli.earlier_lines import beginning_lines
from tuner.cli.folders import study_names
from tuner.cli.kv import kv_lines, layouts_lines
from tuner.cli.tables import Form, print_json
from tuner.clock import RealClock
from tuner.config import SearchOptions, plan_study
from tuner.environment import Environment, cache_folder, differences
from tuner.errors import UsageError
from tuner.formatting import one_line
from tuner.kv.config_json import UnknownModelError
from tuner.launch import launch
from tuner.machine import this_machine
from tuner.report.quote import shell_line
from tuner.study.begin import with_earlier
from tuner.study.kv_budget import kv_table
from tuner.study.learnt import known_rules
from tuner.study.plan import StudyPlan
from tuner.study.record import TrialRecord
from tuner.study.seeds import order_of_layouts, seeds
from tuner.study.setting import StudySetting
from tuner.study.store import Store
from tuner.vllm.defaults import vllm_defaults


def show_plan(options: SearchOptions, form: Form) -> None:
    progress = Console()
    plan, environment = plan_study(options, this_machine(), RealClock().wall(), cache_folder(), progress.say)
    if form is Form.JSON:
        print_json(plan)
    else:
        Console(sys.stdout).say(plan_lines(plan, environment.vllm_version) + beginning_lines(plan))
        earlier = _earlier_starts(plan, environment, options)
        defaults = vllm_defaults(environment.vllm_version, environment.gpus)
        setting = StudySetting.of(plan, defaults, environment.gpus)
        lines = [*_first_starts(setting), *_kv_cache(setting, earlier), *_learnt(setting, earlier)]
        Console(sys.stdout).say("\n".join(lines))
    if plan.study in study_names(options.studies):
        progress.say(f"study {plan.study} exists already: `tuner search` would go on with it, as it was planned then")


def _first_starts(setting: StudySetting) -> list[str]:
    """List the seeds, which start after the default; of several layouts the first of each. The rest depends on
    results."""
    plan = setting.plan
    found = with_earlier(plan, seeds(setting))
    if plan.searches_layouts:
        found = list({plan.layout_of(candidate): candidate for candidate in reversed(found)}.values())[::-1]
    lines = [f"{'seeds' if i == 0 else '':<8}  {describe(c)}" for i, c in enumerate(found)]
    first = launch(plan.base, plan.baseline, plan.placed(plan.own_layout).groups[0])
    return [*lines, f"first     {one_line(shell_line(first))}"]


def _kv_cache(setting: StudySetting, earlier: tuple[TrialRecord, ...]) -> list[str]:
    try:
        tables = [(of, kv_table(setting, earlier, of)) for of in order_of_layouts(setting.plan)]
    except UnknownModelError as error:
        return [f"KV cache  not known: {error}"]
    return layouts_lines(tables, setting.plan) if len(tables) > 1 else kv_lines(tables[0][1], setting.plan)


def _learnt(setting: StudySetting, earlier: tuple[TrialRecord, ...]) -> list[str]:
    """List the rules that earlier starts gave. Their counts are in `tuner status` and the report."""
    found = [rule for rule in known_rules(setting, earlier) if rule.withdrawn_by is None and not rule.study]
    return [f"{'learnt' if i == 0 else '':<8}  not started any more: {rule}" for i, rule in enumerate(found)]


def _earlier_starts(plan: StudyPlan, environment: Environment, options: SearchOptions) -> tuple[TrialRecord, ...]:
    """Return earlier trials whose memory facts hold for this plan."""
    store = Store(options.studies.absolute() / plan.study)
    try:
        same = not differences(store.environment(), environment) and store.plan().base.extra == plan.base.extra
    except UsageError:  # there is none, or its files cannot be read
        return ()
    return store.records() if same else ()
