"""Plans and records for tests of the study, and a made-up server whose best point is known."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.fakes import ScriptedClock, ScriptedServers, scripted_trial
from tuner.bench.level import Level, best_of
from tuner.bench.measured import Measured, outcome_of
from tuner.bench.task import RunLadder, Task
from tuner.candidate import Candidate
from tuner.launch import Door, LaunchBase
from tuner.layout import Layout, PlacedLayout
from tuner.load.workload import workload
from tuner.measurement import ClientLoad, Distribution, Load, LoadKind, Measurement, ServerLoad
from tuner.placement import GpuGroup
from tuner.server.diagnosis import Cause, Fault
from tuner.slo import parse_slo
from tuner.space.parameter import Kind, Parameter
from tuner.space.space import Space
from tuner.study.assignment import Assignment
from tuner.study.plan import Ladder, StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.verdict import Outcome, Reason, ReasonKind, Verdict
from tuner.vllm import knobs

SPACE = Space(
    "test",
    (
        Parameter("max-num-seqs", Kind.LOG_INT, 8, 1024),
        Parameter("max-num-batched-tokens", Kind.LOG_INT, 512, 32768, 64),
        Parameter("gpu-memory-utilization", Kind.FLOAT, 0.80, 0.97),
    ),
)
REFUSAL = Cause("kv-too-small", Fault.CANDIDATE, "the log's line", "not enough KV cache memory", "more memory")
MACHINE = Cause("port-in-use", Fault.ENVIRONMENT, "the log's line", "another process has the port", "end it")


def plan(folder: Path, *, starts: int = 12, confirm_starts: int = 4, groups: int = 1) -> StudyPlan:
    folder.mkdir(parents=True, exist_ok=True)
    return StudyPlan(
        study=folder.name,
        model="/models/tiny",
        slos=(parse_slo("p99 ttft <= 500ms"),),
        workload=workload("random:64,16"),
        space=SPACE,
        dropped=(),
        base=LaunchBase(("vllm", "serve"), "/models/tiny", ("shutdown-timeout",), (), (), ()),
        layouts=(
            PlacedLayout(Layout(), tuple(GpuGroup((i,)) for i in range(groups)) if groups > 1 else (GpuGroup(),)),
        ),
        load=Ladder((8, 16), 1.0, 0.0),
        starts=starts,
        confirm_starts=confirm_starts,
        time_budget_s=None,
        start_limit_s=60,
        seed=0,
        storage=f"sqlite:///{folder / 'study.db'}",
        created_at="2026-11-21T00:00:00+00:00",
    )


def layouts_plan(
    folder: Path,
    layouts: Sequence[Layout] = (Layout(4, 1), Layout(2, 2), Layout(1, 4)),
    *,
    gpus: int = 4,
    own: Layout | None = None,
    starts: int = 30,
    confirm_starts: int = 4,
    doors: tuple[Door, ...] = (Door.VLLM, Door.NGINX),
) -> StudyPlan:
    """Plan a study of layouts, as config.py does. `own` is the default's layout, the last one if left out."""
    made = replace(plan(folder, starts=starts, confirm_starts=confirm_starts), doors=doors)
    sizes = [
        Parameter(flag, Kind.CHOICE, choices=tuple(sorted(of)))
        for flag, of in (
            (knobs.TENSOR_PARALLEL, {layout.tensor_parallel for layout in layouts}),
            (knobs.PIPELINE_PARALLEL, {layout.pipeline_parallel for layout in layouts}),
        )
        if len(of) > 1
    ]
    placed = [
        PlacedLayout(layout, tuple(GpuGroup(tuple(range(i, i + n))) for i in range(0, gpus - n + 1, n)))
        for layout in layouts
        if (n := layout.ranks)
    ]
    if len(layouts) == 1:  # what all candidates share is no flag of a candidate
        fixed = tuple((flag, size) for flag, size in layouts[0].flags.items() if size != 1)
        made = replace(made, base=replace(made.base, fixed=fixed))
    space = replace(made.space, parameters=(*sizes, *made.space.parameters))
    return replace(made, space=space, layouts=tuple(placed), own_layout=own or layouts[-1])


def level(
    qps: float, p99_ms: float = 300.0, preemptions: int | None = 0, limit_ms: float = 500.0, concurrency: int = 8
) -> Level:
    kept = p99_ms <= limit_ms and preemptions == 0
    ttft = Distribution(1000, p99_ms / 2, p99_ms / 2, p99_ms * 0.8, p99_ms * 0.9, p99_ms, p99_ms * 1.2, None, None)
    measurement = Measurement(
        load=Load(LoadKind.CLOSED, concurrency),
        seed=0,
        planned_s=60,
        window_s=60,
        sent=1000,
        completed=1000,
        failed=(),
        qps=qps,
        output_tokens_per_s=qps * 16,
        prompt_tokens=64_000,
        output_tokens=16_000,
        ttft_ms=ttft,
        tpot_ms=None,
        itl_ms=None,
        e2e_ms=None,
        server=ServerLoad(preemptions=preemptions, kv_usage_peak=0.5),
        client=ClientLoad(0.1, 0.5, 0.5),
    )
    outcome = Outcome.FEASIBLE if kept else Outcome.INFEASIBLE
    return Level(
        measurement,
        Verdict(
            outcome, () if kept else (Reason(ReasonKind.UNANSWERED, subject="a limit"),), math.log(p99_ms / limit_ms)
        ),
    )


BASE = LaunchBase(("vllm", "serve"), "/models/tiny", (), (), (), ())


@dataclass
class Shown:
    """Session that shows the same levels whatever it is asked for."""

    levels: tuple[Level, ...]
    clock: ScriptedClock
    warm_up_s: float = 1.0
    measure_s: float = 2.0

    def run(self, task: Task) -> Measured:
        self.clock.sleep(self.warm_up_s + self.measure_s)
        outcome = outcome_of(task, self.levels, None, None, ())
        return Measured(self.levels, outcome, best_of(self.levels), self.measure_s)


def trial_of(assignment: Assignment, found: Cause | tuple[Level, ...]) -> TrialRecord:
    """Make a trial of a server that is refused or shows levels: 20 s of start, 1 of warm-up, 2 of load, 1 of stop."""
    clock = ScriptedClock(datetime(2026, 11, 21, tzinfo=UTC))
    shown = found if isinstance(found, Cause) else Shown(found, clock)
    return scripted_trial(assignment, BASE, ScriptedServers(lambda _: shown, clock))


def record(
    trial: int,
    candidate: Candidate,
    levels: tuple[Level, ...] = (),
    *,
    role: Role = Role.SEARCH,
    outcome: TrialOutcome | None = None,
    cause: Cause | None = None,
    search_trial: int | None = None,
    group: GpuGroup | None = None,
    replicas: int = 1,
) -> TrialRecord:
    """Make a record of these levels, with another outcome and cause than they have where these are given."""
    task = RunLadder((8,), 1.0)
    places = (group or GpuGroup(),)
    assignment = Assignment(trial, role, candidate, places, task, 1.0, search_trial, replicas=replicas)
    made = trial_of(assignment, levels)
    measured = TrialOutcome.INFEASIBLE if made.best is None else TrialOutcome.FEASIBLE
    return replace(with_start(made, cause=cause), outcome=outcome or measured)


def with_start(record: TrialRecord, **changes: Any) -> TrialRecord:
    """Return the record with another start."""
    return replace(record, start=replace(record.start, **changes))


def landscape(assignment: Assignment) -> TrialRecord:
    """A server with a known best: QPS peaks at 128 sequences and 4096 tokens; above 0.93 of memory nothing starts."""
    values = assignment.candidate.as_dict()
    seqs, tokens = float(values.get("max-num-seqs", 1024)), float(values.get("max-num-batched-tokens", 512))
    if float(values.get("gpu-memory-utilization", 0.9)) > 0.93:
        return trial_of(assignment, REFUSAL)
    distance = abs(math.log2(seqs / 128)) + abs(math.log2(tokens / 4096))
    return trial_of(assignment, (level(100 - 8 * distance, p99_ms=300, preemptions=0 if seqs <= 400 else 7),))
