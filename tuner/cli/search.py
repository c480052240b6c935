"""Command `tuner search`: plan, print, run, write the outputs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tuner.cli.console import Console, plan_lines, print_lines, result_lines
from tuner.cli.earlier_lines import beginning_lines, recheck_lines
from tuner.cli.progress import Look, Progress, progress
from tuner.clock import RealClock
from tuner.config import ChangedEnvironment, SearchOptions, plan_study, secrets_of
from tuner.deploy.start import write_scripts
from tuner.environment import Environment, cache_folder, describe, differences
from tuner.errors import EnvironmentFaultError, InterruptedSearchError, NothingFeasibleError, UsageError
from tuner.machine import this_machine
from tuner.own_words import absolute_storage
from tuner.secrecy import mask_password
from tuner.server.abandoned import abandoned
from tuner.server.diagnosis import signal_name
from tuner.server.interrupts import ENDING, handled
from tuner.server.leftovers import end_leftovers
from tuner.study.begin import with_earlier
from tuner.study.changes import extended, refused
from tuner.study.fleet import LocalFleet
from tuner.study.kept_workload import with_kept_workload
from tuner.study.local_servers import local_trials
from tuner.study.loop import Loop
from tuner.study.optuna_storage import Patience, claim, refuse_taken
from tuner.study.own_files import located
from tuner.study.plan import StudyPlan
from tuner.study.recheck import WinnerAndDefault
from tuner.study.result import Decision, StudyResult
from tuner.study.search import Search
from tuner.study.seeds import seeds
from tuner.study.setting import StudySetting
from tuner.study.store import Store
from tuner.study.unread import settled
from tuner.telemetry.gpu import gpu_adapter
from tuner.vllm.defaults import vllm_defaults
from tuner.vllm.flags import installed_vllm


def run_search(options: SearchOptions, look: Look) -> None:
    """Run a search. Raises a TunerError if there is no winner to trust; finished trials are on disk all the same."""
    console, clock = Console(), RealClock()
    plan, environment = plan_study(options, this_machine(), clock.wall(), cache_folder(), console.say)
    store, plan = opened(plan, options.studies, is_named=options.study is not None)
    os.environ.update(secrets_of(options))
    url = absolute_storage(options.storage) if options.storage else None
    with store.locked():
        if store.exists:
            plan = _with_changes(store, plan, options, console)
            _refuse_a_mixture(plan.study, differences(store.environment(), environment), options.changed_environment)
            store.save_plan(plan, store.environment())
        else:
            refuse_taken(replace(plan, storage=url or plan.storage))
            plan = with_kept_workload(plan, store.folder)
            store.save_plan(plan, environment)
        if url is not None and mask_password(url) == plan.storage:
            store.save_storage(url)
        continue_study(store, plan, environment, look, clock)


def opened(plan: StudyPlan, studies: Path, *, is_named: bool) -> tuple[Store, StudyPlan]:
    """Make the study's folder. One that the user did not name gets a number if the name is taken."""
    store = Store(studies.absolute() / plan.study)
    number = 1
    while not store.create() and not is_named:
        number += 1
        store = Store(studies.absolute() / f"{plan.study}-{number}")
    return store, located(plan, store.folder)


def resume(folder: Path, changed: ChangedEnvironment, look: Look) -> None:
    """Continue a study to its own target, without further options."""
    clock = RealClock()
    store = Store(folder)
    plan = store.plan()
    missing = [name for name in plan.base.secret_env if name not in os.environ]
    if missing:
        raise UsageError(f"{missing[0]} is not set", hint="the study's servers need it; secrets are in no file")
    machine = this_machine()
    vllm = installed_vllm(plan.base.command, cache_folder() / "flags")
    used = {index for group in plan.groups for index in group.gpus}
    gpus = [gpu for gpu in machine.gpus if gpu.index in used]
    environment = describe(vllm.version, plan.model, gpus, machine.driver)
    with store.locked():
        _refuse_a_mixture(plan.study, differences(store.environment(), environment), changed)
        continue_study(store, plan, environment, look, clock)


def _with_changes(store: Store, asked: StudyPlan, options: SearchOptions, console: Console) -> StudyPlan:
    """Return the study's plan with the options that extend it. Raises UsageError for others."""
    before = store.plan()
    if differ := refused(before, asked, options.given):
        raise UsageError(
            f"study {before.study!r} was planned otherwise: {'; '.join(differ)}",
            hint=f"choose another name with --study, or go on with it as it is: {store.resume_command}",
        )
    plan, changes = extended(before, asked, options.given)
    for change in changes:
        console.say(f"the study goes on with more: {change}")
    return plan


def _refuse_a_mixture(study: str, differ: list[str], changed: ChangedEnvironment) -> None:
    if differ and changed is ChangedEnvironment.REFUSED:
        raise UsageError(
            f"study {study!r} was made under other conditions: {'; '.join(differ)}",
            hint="its numbers cannot be compared with new ones: choose another name with --study, "
            "or say --allow-changed-environment",
        )


def continue_study(store: Store, plan: StudyPlan, environment: Environment, look: Look, clock: RealClock) -> None:
    """Run a study to its end from where its files say it is, and print the result."""
    console = Console()
    _end_leftovers(store, console)
    for servers in abandoned():
        console.say(f"caution: {servers}; it disturbs every measurement: {servers.todo}")
    records = store.records()
    for path in store.torn_records(records):
        console.say(f"{path} cannot be read, so that trial is run again")
    if plan.rechecks:
        console.say(recheck_lines(plan, environment))
    else:
        console.say(plan_lines(plan, environment.vllm_version) + beginning_lines(plan))
    plan = replace(plan, vllm_version=environment.vllm_version)  # of this run: the user may have consented to another
    defaults = vllm_defaults(environment.vllm_version, environment.gpus)
    setting = StudySetting.of(store.with_storage(plan), defaults, environment.gpus)
    claim(setting.plan, store.folder)
    stop = threading.Event()
    paths: dict[str, str] = {}

    def write_outputs(result: StudyResult) -> None:
        """Write the outputs after every trial, so that the best so far can be used at any time."""
        from tuner.report.page import write_report  # plotly is imported only when a page is made

        outputs: dict[str, Callable[[Path], Path]] = {"report": write_report}
        if result.winner is not None:
            outputs = {"start.sh": write_scripts, **outputs}
        for name, write in outputs.items():
            try:
                paths[name] = str(write(store.folder))
            except Exception as error:  # a page that cannot be drawn must not end the search: the records are on disk
                if result.complete:
                    raise
                shown.say(f"{name} could not be written yet: {error!r}")

    with (
        _folder_kept(store),
        progress(plan, environment.vllm_version, settled(plan, records), look) as shown,
        _signals_set(stop, shown),
    ):
        patience = Patience(should_stop=stop.is_set, tell=shown.say)
        search = (
            WinnerAndDefault(plan) if plan.rechecks else Search(setting, with_earlier(plan, seeds(setting)), patience)
        )
        runner = local_trials(plan, store, clock, gpu_adapter(), shown.show, stop)
        loop = Loop(
            plan=plan,
            store=store,
            search=search,
            fleet=LocalFleet(plan.groups, runner.run, store, stop),
            clock=clock,
            emit=shown.show,
            on_result=write_outputs,
        )
        result = loop.run(records)
    print_lines(result_lines(result, loop.records, plan.baseline, paths))
    if stop.is_set():
        raise InterruptedSearchError(
            f"interrupted after {result.starts} starts; the best so far is written",
            hint=f"go on with: {store.resume_command}",
        )
    if result.decision is Decision.NOTHING_FEASIBLE:
        raise NothingFeasibleError(
            f"no candidate kept {', '.join(map(str, plan.slos))} without preemption",
            hint="read the report for what each broke; ease the limit, or shorten the workload",
        )


@contextmanager
def _folder_kept(store: Store) -> Iterator[None]:
    """Name the cause if the study's folder was renamed or deleted inside. Every file and the database fail then."""
    try:
        yield
    except (OSError, EnvironmentFaultError) as error:
        if store.exists:
            raise
        raise EnvironmentFaultError(
            f"the study's folder {store.folder} is gone: it was renamed or deleted while the search ran",
            hint="its servers are ended; a renamed study goes on with: tuner resume NEW-NAME",
        ) from error


def _end_leftovers(store: Store, console: Console) -> None:
    """End servers of this study that a killed tuner left running, and no others."""

    def tell(holders: str) -> None:
        console.say(f"waiting for GPU memory that others hold: {holders}")

    for report in end_leftovers(store.folder, gpu_memory=gpu_adapter(), on_memory_wait=tell):
        if not report.is_clean:
            raise EnvironmentFaultError(
                f"a server of an earlier run is still there: {', '.join(report.remains)}",
                hint="end it by hand (nvidia-smi names what holds GPU memory), then run this again",
            )
        console.say(f"an earlier run had left a server: ended {', '.join(report.killed) or 'it'}")


@contextmanager
def _signals_set(stop: threading.Event, shown: Progress) -> Iterator[None]:
    """Let signals that end a process only set the event. The loop acts on it, ends its servers and writes the result.
    Those that are ignored stay so: under nohup the study goes on when the terminal closes."""

    def handler(number: int, frame: object) -> None:
        if not stop.is_set():
            stop.set()
            text = f"{signal_name(number)}: ending the running servers; what finished is kept"
            # In its own thread: the interrupted one may be printing.
            threading.Thread(target=shown.say, args=(text,)).start()

    always = (signal.SIGINT, signal.SIGTERM)
    with handled(handler, (n for n in ENDING if n in always or signal.getsignal(n) is signal.SIG_DFL)):
        yield
