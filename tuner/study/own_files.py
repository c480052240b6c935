"""Files of a plan that lie in its study's folder. They are saved without the folder: a study may be moved or copied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tuner.study.plan import StudyPlan
from tuner.vllm import variables

OWN_STORAGE = "sqlite:///study.db"
"""Storage in the study's own folder, as it is saved."""
CACHE = "vllm_cache"
"""Folder of vLLM's compile cache in the study's folder."""
WORKLOAD = "workload"
"""Folder of the copied traffic file in the study's folder."""


def storage_in(folder: Path) -> str:
    """Return the URL of the study's own database."""
    return f"sqlite:///{folder.absolute() / 'study.db'}"


def portable(plan: StudyPlan, folder: Path) -> StudyPlan:
    """Return the plan without its folder."""
    storage = OWN_STORAGE if plan.storage == storage_in(folder) else plan.storage
    load = plan.workload
    if load.file is not None and Path(load.file).parent == folder.absolute() / WORKLOAD:
        load = replace(load, file=f"{WORKLOAD}/{Path(load.file).name}")
    return replace(plan, storage=storage, workload=load)


def located(plan: StudyPlan, folder: Path) -> StudyPlan:
    """Return the plan with its own files in this folder, whatever it is called by now. Older plans hold the paths of
    the folder in which they were made."""
    folder = folder.absolute()
    own = plan.storage == OWN_STORAGE or plan.storage.endswith(f"/{plan.study}/study.db")
    cache = f"/{plan.study}/{CACHE}"
    env = tuple((n, v) for n, v in plan.base.env if n != variables.CACHE_ROOT or not v.endswith(cache))
    load = plan.workload
    if load.file is not None and not Path(load.file).is_absolute():
        load = replace(load, file=str(folder / load.file))
    return replace(
        plan,
        study=folder.name,
        storage=storage_in(folder) if own else plan.storage,
        workload=load,
        base=replace(plan.base, env=env),
    )
