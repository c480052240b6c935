"""Whole study on the stand-in, with one fault a start, and observations after each start."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from tests.faults import acts
from tests.faults.moments import OPEN_LOOP, OPEN_RULES, Hooks, Moment, short_limits
from tests.faults.table import Learnt, Row, Servers
from tests.server.support import bystander, eventually, listens, runs, session
from tests.study import builders
from tuner import launch as launching
from tuner.candidate import Candidate
from tuner.clock import RealClock
from tuner.environment import describe
from tuner.launch import Door, LaunchBase, LaunchSpec, launch
from tuner.layout import Layout, PlacedLayout
from tuner.load.workload import workload
from tuner.placement import GpuGroup
from tuner.server import door, proctable, running_file, start
from tuner.server.ports import fresh_port
from tuner.sim import held_bytes
from tuner.slo import parse_slo
from tuner.space.parameter import Kind, Parameter
from tuner.space.space import Space
from tuner.study.doors import REFUTED
from tuner.study.events import Event, TrialFinished, TrialStarted
from tuner.study.fleet import LocalFleet
from tuner.study.local_servers import local_trials
from tuner.study.loop import Loop
from tuner.study.plan import Ladder, OpenSearch, StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import StudyResult
from tuner.study.search import Search
from tuner.study.setting import StudySetting
from tuner.study.store import Store
from tuner.telemetry.gpu import NoGpu
from tuner.vllm import knobs
from tuner.vllm.defaults import vllm_defaults

UNEXPLAINED = {"ended", "engine-died", "gpu-crash", "hung", "start-limit"}
"""Causes that name no fault."""

COMMAND = (sys.executable, "-m", "tuner.sim", "serve")
TWO_GPUS = (GpuGroup((0,)), GpuGroup((1,)))
ROOM = {Moment.STARTING: ("slow-start:2",), Moment.DRAINING: ("stall:3",)}
"""Faults that make a moment last for an act. Requests that stall are in flight when the level's time is over."""


@dataclass(frozen=True)
class Seen:
    """State right after a start: what the record says, what the search learnt, and what is left."""

    record: TrialRecord
    learnt: str
    struck: bool
    lost_or_changed: tuple[str, ...]
    left: tuple[str, ...]
    bystander_lives: bool


class SimGpu(NoGpu):
    """Memory of the stand-in's GPUs, as NVML would tell it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def used_bytes(self, gpus: tuple[int, ...]) -> dict[int, int] | None:
        return {gpu: held_bytes(self._folder, gpu) for gpu in gpus}


def make_plan(
    folder: Path, model: str, *, starts: int, confirm_starts: int, groups: tuple[GpuGroup, ...] = (GpuGroup(),)
) -> StudyPlan:
    """Plan a study whose default runs one sequence at a time. Anything else beats it, so there is something to
    confirm."""
    sequences = Parameter("max-num-seqs", Kind.INT, 4, 64)
    env = {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "TUNER_SIM_GPU_DIR": str(folder / "gpu"),
        "TUNER_SIM_NOISE": "0",
        "TUNER_SIM_PROFILE": "rtx4090",
        "TUNER_SIM_SPEED": "4",
        "TUNER_SIM_STARTUP_S": "0.6",
        "VLLM_CACHE_ROOT": str(folder / "vllm_cache"),
    }
    return replace(
        builders.plan(folder, starts=starts, confirm_starts=confirm_starts),
        model=model,
        slos=(parse_slo("p99 ttft <= 10s"),),
        workload=workload("random:8,6"),
        space=Space("faults", (sequences,), baseline=(("max-num-seqs", 1),)),
        base=LaunchBase(
            COMMAND, model, ("shutdown-timeout",), (), ("--max-model-len", "2048"), tuple(env.items()),
            shutdown_timeout_s=1,
        ),
        layouts=(PlacedLayout(Layout(), groups),),
        load=Ladder((4,), 0.8, 0.3),
    )  # fmt: skip


def open_plan(folder: Path, model: str, *, starts: int, confirm_starts: int) -> StudyPlan:
    """Plan an open loop at loads that a busy machine can offer. Nothing is late within a minute, so rates pass."""
    plan = make_plan(folder, model, starts=starts, confirm_starts=confirm_starts)
    return replace(
        plan,
        slos=(parse_slo("p99 ttft <= 60s"),),
        space=replace(plan.space, parameters=(Parameter("max-num-seqs", Kind.INT, 2, 4),)),
        load=OpenSearch(0.3, OPEN_RULES),
    )


def several_plan(
    folder: Path, model: str, *, starts: int, confirm_starts: int, made_by: Door = Door.NGINX
) -> StudyPlan:
    """Plan a study of one layout, two servers on a GPU each. They are confirmed behind their door."""
    plan = make_plan(folder, model, starts=starts, confirm_starts=confirm_starts)
    layout = Layout(2)
    base = replace(
        plan.base,
        flags=(*plan.base.flags, knobs.DATA_PARALLEL),
        fixed=((knobs.DATA_PARALLEL, 2),),
        env=(*plan.base.env, ("TUNER_SIM_GPUS", "2")),
    )
    layouts = (PlacedLayout(layout, TWO_GPUS),)
    return replace(
        plan,
        base=base,
        layouts=layouts,
        own_layout=layout,
        doors=(made_by,),
        load=Ladder((2,), 0.8, 0.3),  # as much on the whole machine as on one server elsewhere
        start_limit_s=12,
    )


def searched(plan: StudyPlan, store: Store, emit: Callable[[Event], None]) -> StudyResult:
    """Run a study to its end."""
    stop, clock = threading.Event(), RealClock()
    runner = local_trials(plan, store, clock, SimGpu(store.folder / "gpu"), emit, stop)
    search = Search(StudySetting.of(plan, vllm_defaults("0.32.0", ())), ())
    fleet = LocalFleet(plan.groups, runner.run, store, stop)
    return Loop(plan=plan, store=store, search=search, fleet=fleet, clock=clock, emit=emit).run()


def order_of(rows: Sequence[Row]) -> list[Row | None]:
    """Order the faults by start, None for a healthy one.

    Never three failed starts in a row, after which the run would wait, and never more than two of one candidate. Two
    of one candidate that its log does not explain would bring an experiment.
    """
    failed = [row for row in rows if row.learnt in (Learnt.AGAIN, Learnt.NOTHING)]
    others: list[Row | None] = [row for row in rows if row not in failed]
    order: list[Row | None] = []
    while failed or others:
        first = failed.pop(0) if failed else None
        second = next((row for row in failed if first and not {first.cause, row.cause} <= UNEXPLAINED), None)
        order += [row for row in (first, second) if row is not None]
        if second is not None:
            failed.remove(second)
        if first is not None or others:
            order.append(others.pop(0) if others else None)
    return order


@dataclass
class StudyRun:
    """One study in this process. `seen` has an entry for every row; `result` or `ended_by` tells how it ended."""

    folder: Path
    model: str
    rows: tuple[Row, ...]
    confirming: bool = False
    seen: dict[Row, Seen] = field(default_factory=dict)
    every: list[Seen] = field(default_factory=list)
    result: StudyResult | None = None
    ended_by: BaseException | None = None

    def __post_init__(self) -> None:
        self._checks = [row for row in self.rows if row.servers is Servers.SIDE_BY_SIDE]
        self._order = order_of([row for row in self.rows if row not in self._checks])
        self._several = self.rows[0].servers is not Servers.ONE
        if not self._several:
            first: list[Row | None] = [None, None] if self.confirming else [None]
            self._order = first + self._order
        self._next = iter(self._order)
        self._row: Row | None = None
        self._trial = -1
        self._row_of: dict[int, Row] = {}
        self._struck: set[int] = set()
        self._running = 0
        self._undo: list[acts.Undo] = []
        self._bytes: dict[str, bytes] = {}
        self._shared_memory: set[Path] = set()
        self._scratch: set[Path] = set()
        self._ports: set[int] = set()
        self._bystander = 0

    def run(self) -> None:
        plan = self._plan()
        self.store = Store(self.folder)
        self.store.create()
        self.store.save_plan(plan, describe("0.32.0", plan.model, (), None))
        self.plan = plan
        with pytest.MonkeyPatch.context() as patch:
            short_limits(patch)
            self._hooks = Hooks(self._strike, self.folder)
            self._hooks.install(patch)
            patch.setattr(launching, "launch", self._launch)
            fresh = fresh_port
            patch.setattr(start, "fresh_port", lambda: self._port("foreign listener") or fresh())
            patch.setattr(door, "fresh_port", lambda: self._port("door's port taken") or fresh())
            with bystander(*COMMAND[1:], self.model, "--max-model-len", "2048") as self._bystander:
                self._run(plan)

    def _plan(self) -> StudyPlan:
        if self._several:
            # Each candidate that a fault refutes takes one of the search's with it.
            refuted = sum(row is not None and row.learnt is Learnt.REFUTED for row in self._order)
            counted = sum(row is None or row.learnt is Learnt.UNAFFECTED or not row.cause for row in self._order)
            made_by = Door.VLLM if self.rows[0].servers is Servers.ENGINES else Door.NGINX
            runs = 2 * -(-max(2, counted) // 2) + refuted
            return several_plan(self.folder, self.model, starts=2 + refuted, confirm_starts=runs, made_by=made_by)
        failed = sum(row is not None and row.learnt is Learnt.AGAIN for row in self._order)
        starts = 2 if self.confirming else len(self._order) - failed
        make = open_plan if self.rows[0].moment in OPEN_LOOP else make_plan
        return make(self.folder, self.model, starts=starts, confirm_starts=2 if self.confirming else 0)

    def _run(self, plan: StudyPlan) -> None:
        try:
            self.result = searched(plan, self.store, self._emit)
        except Exception as error:  # each row's test shows it
            self.ended_by = error

    # ── what happens at a start

    def _row_for(self, event: TrialStarted) -> Row | None:
        """Choose the fault of a start. Of several servers only those that run at once are struck."""
        if not self._several or event.role is Role.CONFIRM:
            return next(self._next, None)
        return self._checks.pop() if event.role is Role.CHECK and event.group == "gpu1" and self._checks else None

    def _launch(self, base: LaunchBase, candidate: Candidate, group: GpuGroup, replicas: int = 1) -> LaunchSpec:
        """Launch at the very beginning of a trial, after TrialStarted."""
        spec, row = launch(base, candidate, group, replicas), self._row
        if row is None:
            return spec
        is_struck = not self._several or acts.REPLICA in group.gpus
        if not is_struck:
            # The other one is still starting when the struck one is ready.
            faults = ["slow-start:3"] if row.moment is Moment.ONE_IS_READY else []
            return replace(spec, env=(*spec.env, ("TUNER_SIM_FAULTS", ",".join(faults))))
        if row.fault == "command is gone":
            self._struck.add(self._trial)
            return replace(spec, command=("/nowhere/vllm", "serve"))
        if row.fault in acts.ARGUMENTS:
            self._struck.add(self._trial)
            return replace(spec, arguments=(*spec.arguments, *acts.ARGUMENTS[row.fault]), flags=())
        faults = list(ROOM.get(row.moment, ())) if row.fault in acts.ACTS else []
        if row.fault in acts.WORKS_WITH:
            faults.append(acts.WORKS_WITH[row.fault])
        if row.fault not in acts.ACTS and re.fullmatch(r"[a-z-]+(:[\d.]+)?(%engine1)?", row.fault):
            self._struck.add(self._trial)
            faults.append(row.fault)
        return replace(spec, env=(*spec.env, ("TUNER_SIM_FAULTS", ",".join(faults))))

    def _port(self, fault: str) -> int | None:
        if self._row is None or self._row.fault != fault or self._trial in self._struck:
            return None
        port, taken = acts.listener()
        self._struck.add(self._trial)
        self._undo.append(taken.close)
        return port

    def _strike(self, moment: Moment, folder: Path) -> None:
        row, trial = self._row_of.get(int(folder.name)), int(folder.name)
        for path in running_file.found_below(folder):
            self._remember(running_file.read(path))
        if row is None or trial in self._struck or row.fault not in acts.ACTS:
            return
        if moment is (Moment.BEFORE_START if row.fault in acts.BEFORE_START else row.moment):
            self._struck.add(trial)
            if (undo := acts.ACTS[row.fault](folder)) is not None:
                self._undo.append(undo)

    def _remember(self, record: running_file.Marker) -> None:
        """Note what must be gone later. Once its owner is dead, its ownership cannot be proved."""
        self._scratch.add(Path(record.scratch))
        self._ports.add(record.port)
        for process in session(record.pid):
            self._shared_memory |= proctable.shared_memory_files(process.pid)

    def _emit(self, event: Event) -> None:
        if isinstance(event, TrialFinished):
            self._running -= 1
            self._look(event.record)
            return
        if isinstance(event, TrialStarted):
            self._running += 1
            self._trial, self._row = event.trial, self._row_for(event)
            if self._row is not None:
                self._row_of[event.trial] = self._row
        self._hooks.see(event)

    # ── what is seen after it

    def _look(self, record: TrialRecord) -> None:
        while self._undo:
            self._undo.pop()()
        folder = self.folder / "trials" / f"{record.trial:04d}"
        changed = self._changed()
        alone = self._running == 0
        seen = Seen(
            record,
            self._told(record),
            record.trial in self._struck,
            changed,
            (*left_of(folder), *(self._left(folder) if alone else ())),
            runs(self._bystander),
        )
        self.every.append(seen)
        if (row := self._row_of.get(record.trial)) is not None:
            self.seen[row] = seen
        if alone:
            self._shared_memory.clear()
            self._scratch.clear()
            self._ports.clear()

    def _changed(self) -> tuple[str, ...]:
        """List finished records that have changed, and take note of the new one."""
        now = records_of(self.folder)
        changed = tuple(name for name, data in self._bytes.items() if now.get(name) != data)
        self._bytes = now
        return changed

    def _left(self, folder: Path) -> list[str]:
        files = [*self._shared_memory, *self._scratch, *running_file.found_below(folder)]
        mine = [p for p in proctable.table().values() if p.ppid == os.getpid() and p.pid != self._bystander]
        processes = [str(p) for p in mine if p.name.startswith(("VLLM", "python", "nginx"))]
        ports = [f"port {port}" for port in self._ports if stays_open(port)]
        memory = [f"memory of GPU {gpu}" for gpu in (0, 1) if held_bytes(self.folder / "gpu", gpu)]
        return [*(str(f) for f in files if f.exists()), *processes, *ports, *memory]

    def _told(self, record: TrialRecord) -> str:
        if record.search_trial is None:
            if record.outcome is TrialOutcome.FEASIBLE:
                return Learnt.UNAFFECTED
            if record.outcome in REFUTED:
                return Learnt.REFUTED
            return Learnt.NOT_AGAIN if record.role is Role.CHECK else Learnt.NOTHING
        return learnt_of(self.plan.storage, self.plan.study, record)


def learnt_of(storage: str, study: str, record: TrialRecord) -> str:
    """Describe what Optuna has of a start, in the words of the matrix."""
    assert record.search_trial is not None
    trials = optuna.load_study(study_name=study, storage=storage).trials
    one = trials[record.search_trial]
    if one.state is TrialState.FAIL:
        later = [t for t in trials if t.number > one.number and _fixed(t) == one.params and t.user_attrs.get("again")]
        return Learnt.AGAIN if later else "FAIL, and forgotten"
    if one.state is not TrialState.COMPLETE:
        return str(one.state)
    constraints = one.constraints
    if constraints["start"] > 0:
        return Learnt.VIOLATED if one.user_attrs["imputed"] else "violated, and a value that was not measured"
    return Learnt.UNAFFECTED if all(value <= 0 for value in constraints.values()) else Learnt.MEASURED


def _fixed(one: Any) -> dict[str, float]:
    return dict(one.system_attrs.get("fixed_params", {}))


def records_of(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted((folder / "trials").glob("*/record.json"))}


def stays_open(port: int) -> bool:
    """Return True if somebody listens there for a minute. Tests that run beside these draw from the same ports, and
    none of their servers lives as long as one that was left."""
    return not eventually(lambda: not listens(port), 60.0)


def left_of(folder: Path) -> list[str]:
    """Processes that write to one of the trial's logs, and its ports if somebody still listens there."""
    left: list[str] = []
    for log in folder.glob("*.log"):
        identity = proctable.file_id(log)
        writers = [p for p in proctable.table().values() if proctable.writes_to(p.pid, identity) and runs(p.pid)]
        ports = {int(port) for port in re.findall(r"'port': (\d+)", log.read_text(errors="replace")[:20_000])}
        left += [str(p) for p in writers] + [f"port {port}" for port in sorted(ports) if stays_open(port)]
    return left
