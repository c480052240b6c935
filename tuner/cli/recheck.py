"""Command `tuner recheck`: a finished study's winner against the default, on today's software."""

from __future__ import annotations

import os
from pathlib import Path

from tuner.cli.console import Console
from tuner.cli.progress import Look
from tuner.cli.search import continue_study, opened
from tuner.clock import RealClock
from tuner.environment import cache_folder
from tuner.machine import this_machine
from tuner.recheck import plan_recheck
from tuner.secret_words import part_command
from tuner.study.kept_workload import with_kept_workload
from tuner.study.store import Store


def run_recheck(folder: Path, vllm: str | None, look: Look) -> None:
    """Run a study of its own beside the finished one, which stays as it is."""
    console, clock = Console(), RealClock()
    given = None if vllm is None else part_command(vllm)
    plan, environment = plan_recheck(Store(folder), given, this_machine(), clock.wall(), cache_folder(), console.say)
    store, plan = opened(plan, folder.parent, is_named=False)
    os.environ.update(given.secrets if given else {})
    with store.locked():
        plan = with_kept_workload(plan, store.folder)
        store.save_plan(plan, environment)
        continue_study(store, plan, environment, look, clock)
