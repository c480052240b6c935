"""Command `tuner status`: a study's state from its files."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow.parquet as pq

from tuner import jsonfile
from tuner.cli.console import outcome_line
from tuner.cli.folders import State, study_folder
from tuner.cli.screen import Drawn
from tuner.cli.snapshot import GroupNow, LevelNow, Picture, whole_machine
from tuner.cli.tables import Form, print_drawn, print_json
from tuner.formatting import one_line
from tuner.jsonfile import TornFileError
from tuner.load.quantiles import order_statistic
from tuner.measurement import Load, LoadKind
from tuner.report.tables import StudyFiles, read_study
from tuner.server import proctable, running_file
from tuner.server.abandoned import abandoned
from tuner.server.running_file import Marker
from tuner.study import forecast, lock
from tuner.study.assignment import Assignment
from tuner.study.compile_cache import Cache
from tuner.study.learnt import LearntRule
from tuner.study.plan import StudyPlan
from tuner.study.result import Figures
from tuner.study.store import ASSIGNMENT

_REQUEST_COLUMNS = ["level", "kind", "due_ns", "first_ns", "last_ns"]

T = TypeVar("T")


def show_status(studies: Path, name: str, form: Form) -> None:
    picture, left = picture_of(study_folder(studies, name)), abandoned()
    if form is Form.JSON:
        print_json(_summary(picture, tuple(map(str, left))))
        return
    print_drawn(Drawn(picture))
    for servers in left:
        print(f"caution: {one_line(str(servers))}\nhint: {one_line(servers.todo)}", file=sys.stderr)


def picture_of(folder: Path) -> Picture:
    """Raises UsageError where the folder holds no readable plan. A torn record counts as unfinished."""
    study = read_study(folder)
    result = study.result
    state = State.RUNNING if lock.is_locked(folder) else State.INTERRUPTED
    if state is not State.RUNNING and result is not None and result.complete:
        state = State.COMPLETE
    return Picture(
        plan=study.plan,
        vllm_version=study.environment.vllm_version if study.environment else None,
        state=state,
        records=study.records,
        groups=_groups(study) if state is State.RUNNING else (),
        elapsed_s=_elapsed_s(study, state),
        result=result,
    )


def _elapsed_s(study: StudyFiles, state: State) -> float:
    result = study.result
    spent_s = result.elapsed_s if result else forecast.spent_s(study.plan, study.records)
    if state is not State.RUNNING:
        return spent_s
    running = [began for folder in _unfinished(study) if (began := _began_unix_s(folder)) is not None]
    written = datetime.fromisoformat(result.updated_at).timestamp() if result else None
    # After a resume the last result is older than the trial that runs: the pause in between was not spent.
    since = max((t for t in (written, min(running, default=None)) if t is not None), default=None)
    return spent_s + (max(0.0, time.time() - since) if since is not None else 0.0)


def _unfinished(study: StudyFiles) -> list[Path]:
    finished = {f"{r.trial:04d}" for r in study.records}
    return [path.parent for path in sorted(study.folder.glob(f"trials/*/{running_file.FILE_NAME}"))
            if path.parent.name not in finished]  # fmt: skip


def _began_unix_s(folder: Path) -> float | None:
    marker = _read(folder / running_file.FILE_NAME, running_file.read)
    return marker.started_unix_ns / 1e9 if marker else None


def _groups(study: StudyFiles) -> tuple[GroupNow, ...]:
    taken: list[GroupNow] = []
    for folder in _unfinished(study):
        marker = _read(folder / running_file.FILE_NAME, running_file.read)
        given = _read(folder / ASSIGNMENT, partial(jsonfile.load, kind=Assignment))
        name = given.place if given else _group_without_assignment(folder, marker, study.plan, taken)
        if marker is None or name is None:
            continue
        level = last_level(folder)
        trial_s = max(0.0, time.time() - marker.started_unix_ns / 1e9)
        is_ready = level is not None or _all_listen(folder)
        loaded = load_times_s(folder, time.monotonic_ns())
        if loaded is None and is_ready:  # nothing is written before the end of the first level
            loaded = (max(0.0, trial_s - forecast.start_s(study.records, Cache.WARM)),) * 2
        now = GroupNow(
            group=name,
            trial=int(folder.name),
            role=given.role if given else None,
            candidate=given.candidate if given else None,
            phase="under load" if is_ready else "starting",
            phase_s=trial_s,
            level=level,
            trial_s=trial_s,
            load_s=loaded[0] if loaded else None,
            attempt_s=loaded[1] if loaded else 0.0,
        )
        taken.append(replace(now, door=given.door, replicas=given.replicas) if given else now)
    return whole_machine(study.plan, taken)


def _all_listen(folder: Path) -> bool:
    """Return True if every server of a trial listens on its port."""
    markers = [_read(path, running_file.read) for path in running_file.found_below(folder)]
    return all(marker is not None and proctable.listening_inodes(marker.port) for marker in markers)


def _group_without_assignment(
    folder: Path, marker: Marker | None, plan: StudyPlan, taken: Sequence[GroupNow]
) -> str | None:
    """Find the group of an older tuner's server, by its GPUs. That tuner wrote no assignment."""
    if marker is None or (folder / ASSIGNMENT).exists():
        return None
    gpus = {gpu for gpu, _ in marker.gpu_baseline_bytes}
    idle = [group for group in plan.groups if all(now.group != group.name for now in taken)]
    return next((group.name for group in idle if not gpus or gpus == set(group.gpus)), None)


def _read(path: Path, read: Callable[[Path], T]) -> T | None:
    """Read a file of a trial under way; None if it is gone by now, or torn."""
    try:
        return read(path)
    except (OSError, TornFileError):
        return None


def last_level(folder: Path) -> LevelNow | None:
    """Read the tables that a trial writes after every level. QPS counts answers while requests were being sent, ramp
    included: slightly less than the record will say."""
    try:
        requests = pq.read_table(folder / "requests.parquet", columns=_REQUEST_COLUMNS)
        telemetry = pq.read_table(folder / "telemetry.parquet", columns=["level", "at_ns", "kv_usage"])
    except (OSError, ValueError, KeyError):
        return None
    all_rows = requests.to_pylist()
    if not all_rows:
        return None
    last = all_rows[-1]
    rows = list(takewhile(lambda r: (r["kind"], r["level"]) == (last["kind"], last["level"]), reversed(all_rows)))
    began, ended = min(r["due_ns"] for r in rows), max(r["due_ns"] for r in rows)
    answered = [r for r in rows if r["first_ns"] is not None and r["last_ns"] is not None]
    ttft_ms = np.sort(np.asarray([(r["first_ns"] - r["due_ns"]) / 1e6 for r in answered], dtype=np.float64))
    kv = [r["kv_usage"] for r in telemetry.to_pylist() if r["at_ns"] >= began and r["kv_usage"] is not None]
    in_time = sum(r["last_ns"] <= ended for r in answered)
    return LevelNow(
        load=str(Load(LoadKind(last["kind"]), last["level"])),
        qps=in_time * 1e9 / (ended - began) if ended > began else None,
        p99_ttft_ms=order_statistic(ttft_ms, 0.99) if len(ttft_ms) else None,
        kv_usage_peak=max(kv, default=None),
    )


def load_times_s(folder: Path, now_ns: int) -> tuple[float, float] | None:
    """Return the seconds since a trial's first request was due, and since its last load began. None before the end of
    its first level."""
    try:
        rows = pq.read_table(folder / "requests.parquet", columns=["level", "kind", "due_ns"]).to_pylist()
    except (OSError, ValueError, KeyError):
        return None
    if not rows:
        return None
    last = rows[-1]
    same = takewhile(lambda r: (r["kind"], r["level"]) == (last["kind"], last["level"]), reversed(rows))
    first_ns, began_ns = (min(row["due_ns"] for row in of) for of in (rows, same))
    return max(0, now_ns - first_ns) / 1e9, max(0, now_ns - began_ns) / 1e9


@dataclass(frozen=True, slots=True)
class _Outcome:
    trial: int
    role: str
    outcome: str
    words: str


@dataclass(frozen=True, slots=True)
class _Summary:
    """Output of --json. Seconds; None is not known or not observed."""

    study: str
    model: str
    state: State
    starts: int
    starts_planned: int
    elapsed_s: float
    left_s: float | None
    groups: tuple[GroupNow, ...]
    best: Figures | None
    default: Figures | None
    default_keeps_limits: bool
    last: tuple[_Outcome, ...]
    sentence: str | None
    learnt: tuple[LearntRule, ...]
    left_servers: tuple[str, ...]
    schema: int = 1


def _summary(p: Picture, left: tuple[str, ...]) -> _Summary:
    return _Summary(
        study=p.plan.study,
        model=p.plan.model,
        state=p.state,
        starts=p.done,
        starts_planned=p.planned,
        elapsed_s=p.elapsed_s,
        left_s=p.left_s,
        groups=p.groups,
        best=p.best,
        default=p.default,
        default_keeps_limits=p.default_keeps,
        last=tuple(_Outcome(r.trial, str(r.role), str(r.outcome), outcome_line(r)) for r in p.last),
        sentence=p.result.sentence if p.result else None,
        learnt=p.result.learnt if p.result else (),
        left_servers=left,
    )
