"""Sample study folders, made up but plausible: a 32B model on one H100 each in two groups, P99 TTFT limit 500 ms.

Deterministic: the same arguments write the same bytes. `python -m tests.report.studies FOLDER` writes one to look at,
and one with layouts of four H100s.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd

from tests.fakes import ScriptedClock, ScriptedServers, scripted_trial
from tests.report.surface import LAYOUTS_PLAN, ONE_FOUR, PARAMETERS, PLAN, Server, refusal
from tests.study.builders import Shown, with_start
from tuner import jsonfile
from tuner.bench.level import Level
from tuner.bench.measured import Remark
from tuner.bench.task import RunLadder
from tuner.candidate import Candidate, Value
from tuner.environment import Environment, Gpu
from tuner.launch import Door
from tuner.measurement import Caution, CautionKind
from tuner.study.assignment import Assignment, confirm_task, search_task
from tuner.study.confirm import Confirmation
from tuner.study.layout_race import standing
from tuner.study.plan import Ladder, StudyPlan
from tuner.study.record import Role, TrialRecord
from tuner.study.result import StudyResult
from tuner.study.sentence import result_of
from tuner.verdict import Outcome
from tuner.vllm.facts import StartFacts

START = datetime(2026, 11, 20, 21, 30, tzinfo=UTC)
ENVIRONMENT = Environment(
    tuner_version="0.1.0",
    vllm_version="0.32.0",
    python_version="3.12.11",
    model=PLAN.model,
    model_digest="9f2b6a0d" * 8,
    gpus=(
        Gpu(0, "NVIDIA H100 80GB HBM3", 79.6, "GPU-5f1c"),
        Gpu(1, "NVIDIA H100 80GB HBM3", 79.6, "GPU-77aa"),
    ),
    driver="570.124.06",
    host="gpu-host-3",
    cpu="AMD EPYC 9554 64-Core Processor",
    cpu_count=128,
    memory_gib=1007.5,
    kernel="6.8.0-60-generic",
)
FOUR_GPUS = dataclasses.replace(
    ENVIRONMENT, gpus=tuple(Gpu(i, "NVIDIA H100 80GB HBM3", 79.6, f"GPU-{i}") for i in range(4))
)


@dataclass(frozen=True, slots=True)
class Study:
    """Written study: the folder and the values in it."""

    folder: Path
    plan: StudyPlan
    environment: Environment
    records: tuple[TrialRecord, ...]
    result: StudyResult | None


def build_study(
    studies: Path,
    *,
    trials: int = 61,
    confirm: int = 3,
    seed: int = 0,
    plan: StudyPlan = PLAN,
    environment: Environment = ENVIRONMENT,
    telemetry: bool = True,
    best_speed: float = 1.0,
) -> Study:
    """A study of `trials` starts, `confirm` fresh ones for each of winner and default among them."""
    rng = random.Random(seed)
    folder = studies / plan.study
    folder.mkdir(parents=True)
    records: list[TrialRecord] = []
    machine = Machine(plan, rng, best_speed)
    fresh = confirm if trials > 4 * confirm else 0
    for number in range(trials - 2 * fresh):
        role = _role(number, plan)
        records.append(machine.search(number, role, _candidate(number, plan, rng)))
    chosen = _chosen(records)
    for number in range(trials - 2 * fresh, trials):
        candidate = plan.baseline if chosen is None or number % 2 else chosen
        found = next(r for r in records if r.candidate == candidate)
        records.append(machine.confirm(number, found))
    result = _result(plan, tuple(records), complete=fresh > 0) if records else None
    jsonfile.dump(folder / "plan.json", plan)
    jsonfile.dump(folder / "environment.json", environment)
    if result is not None:
        jsonfile.dump(folder / "result.json", result)
    for record in records:
        trial = folder / "trials" / f"{record.trial:04d}"
        trial.mkdir(parents=True)
        (trial / "record.json").write_text(jsonfile.dumps(record), encoding="utf-8")
    if telemetry and result is not None:
        for figures in (result.winner, result.default):
            for number in figures.trials[:1] if figures else ():
                frame = _telemetry(records[number], rng)
                frame.to_parquet(folder / "trials" / f"{number:04d}" / "telemetry.parquet")
    return Study(folder, plan, environment, tuple(records), result)


def build_layouts_study(studies: Path, *, trials: int = 61, telemetry: bool = True) -> Study:
    """A study of three layouts of four GPUs. One of them is dropped early; the winner is confirmed behind nginx."""
    return build_study(studies, trials=trials, plan=LAYOUTS_PLAN, environment=FOUR_GPUS, telemetry=telemetry)


def replace_record(study: Study, record: TrialRecord) -> None:
    jsonfile.dump(study.folder / "trials" / f"{record.trial:04d}" / "record.json", record)


def _role(number: int, plan: StudyPlan) -> Role:
    """Every layout's default comes first, then a seed of each."""
    if number < len(plan.layouts):
        return Role.DEFAULT
    return Role.SEED if plan.searches_layouts and number < 2 * len(plan.layouts) else Role.SEARCH


def _candidate(number: int, plan: StudyPlan, rng: random.Random) -> Candidate:
    """The search leaves the slowest layout alone after a few trials."""
    layouts = [plan.own_layout, *(p.layout for p in plan.layouts if p.layout != plan.own_layout)]
    if number < len(layouts):
        return plan.default_of(layouts[number])
    if plan.searches_layouts and number < 2 * len(layouts):
        seed = {"gpu-memory-utilization": 0.94, "max-num-seqs": 256, "max-num-batched-tokens": 4096}
        return Candidate.of({**seed, **layouts[number - len(layouts)].flags})
    if plan.searches_layouts and number < 2 * len(layouts) + 3:
        return Candidate.of({"max-num-seqs": 128 * (number - 4), "max-num-batched-tokens": 4096, **ONE_FOUR.flags})
    values: dict[str, Value] = {}
    for parameter in PARAMETERS:
        if parameter.choices:
            values[parameter.flag] = rng.choice(parameter.choices)
        elif parameter.flag == "gpu-memory-utilization":
            values[parameter.flag] = round(rng.uniform(parameter.low, parameter.high), 3)
        elif parameter.flag == "enable-chunked-prefill":
            values[parameter.flag] = rng.random() < 0.8
        else:
            low, high = parameter.low, parameter.high
            exact = low * (high / low) ** rng.random()
            values[parameter.flag] = max(int(low), round(exact / parameter.multiple_of) * parameter.multiple_of)
    if plan.searches_layouts:
        values |= rng.choice([layout for layout in layouts if layout != ONE_FOUR]).flags
    return Candidate.of(values)


class Machine:
    """GPUs of a plan. Each trial starts where its layout's servers are free first."""

    def __init__(self, plan: StudyPlan, rng: random.Random, speed: float) -> None:
        self._plan, self._rng, self._speed = plan, rng, speed
        self._free = {unit: START for group in plan.groups for unit in group.units}

    def search(self, number: int, role: Role, candidate: Candidate) -> TrialRecord:
        """One server on one place."""
        placed = self._plan.placed(self._plan.layout_of(candidate))
        group = min(placed.groups, key=lambda group: max(self._free[unit] for unit in group.units))
        task = search_task(self._plan.load, None)
        replicas = placed.layout.replicas
        assert isinstance(self._plan.load, Ladder)
        return self._start(
            Assignment(number, role, candidate, (group,), task, self._plan.load.warm_up_s, None, replicas=replicas),
            self._plan.load.levels,
        )

    def confirm(self, number: int, found: TrialRecord) -> TrialRecord:
        """All servers of the layout. A study of one server a place repeats its search trial instead."""
        layout = self._plan.layout_of(found.candidate)
        if not self._plan.searches_layouts or found.best is None:
            return self.search(number, Role.CONFIRM, found.candidate)
        groups = self._plan.placed(layout).machine
        task = confirm_task(self._plan.load, Confirmation(found, Door.SERVER), [])
        assert isinstance(task, RunLadder)
        door = Door.NGINX if layout.replicas > 1 else Door.SERVER
        warm_up_s = self._plan.load.warm_up_s
        assignment = Assignment(number, Role.CONFIRM, found.candidate, groups, task, warm_up_s, None, door=door)
        return self._start(assignment, task.levels)

    def _start(self, assignment: Assignment, clients: tuple[int, ...]) -> TrialRecord:
        rng, plan, candidate = self._rng, self._plan, assignment.candidate
        started = max(self._free[unit] for unit in assignment.units) + timedelta(seconds=rng.uniform(1, 6))
        cause = refusal(candidate)
        server = Server(candidate, rng.gauss(1, 0.012), self._speed, len(assignment.groups))
        levels: list[Level] = []
        if cause is None:
            for concurrency in clients:
                levels.append(server.level(concurrency, plan, rng))
                if levels[-1].verdict.outcome is Outcome.INFEASIBLE:
                    break
        start_s, stop_s = (rng.uniform(18, 31), 0.0) if cause else (rng.uniform(62, 95), rng.uniform(6, 12))
        facts = StartFacts(vllm_version="0.32.0", kv_tokens=server.kv_tokens, weights_gib=61.5, engine_init_s=21.4)
        scripted = ScriptedClock(started)
        spent_s = sum(level.measurement.planned_s + 4 for level in levels)
        shown = cause or Shown(tuple(levels), scripted, plan.load.warm_up_s, spent_s)
        servers = ScriptedServers(lambda _: shown, scripted, start_s, stop_s, facts)
        record = scripted_trial(assignment, plan.base, servers)
        self._free |= dict.fromkeys(assignment.units, scripted.wall())
        return record


def _chosen(records: list[TrialRecord]) -> Candidate | None:
    feasible = [(r.qps, -r.trial) for r in records if r.qps is not None]
    return records[-max(feasible)[1]].candidate if feasible else None


def _result(plan: StudyPlan, records: tuple[TrialRecord, ...], *, complete: bool) -> StudyResult:
    last = max(datetime.fromisoformat(r.start.started_at) for r in records) + timedelta(minutes=4)
    return result_of(
        plan,
        records,
        layouts=standing(plan, records) if plan.searches_layouts else (),
        elapsed_s=(last - START).total_seconds(),
        updated_at=last.isoformat(),
        complete=complete,
    )


def _telemetry(record: TrialRecord, rng: random.Random) -> pd.DataFrame:
    """A sample every half second over the levels of one start, in the columns of telemetry/sampler.py. That of one
    server on one GPU has no column `server`, as older files have none."""
    rows: list[dict[str, float | str | None]] = []
    launches = record.start.launches
    is_older = len(record.start.gpus) == 1
    queries, hits = [0.0] * len(launches), [0.0] * len(launches)
    for index, level in enumerate(record.levels):
        server = level.measurement.server
        for step in range(int(level.measurement.planned_s * 2)):
            for number, launch in enumerate(launches):
                running = round((server.running_mean or 0) / len(launches) * rng.uniform(0.94, 1.04))
                queries[number] += running * 120
                hits[number] += running * 120 * rng.uniform(0.09, 0.13)
                kv_usage = min(1.0, (server.kv_usage_mean or 0) * rng.uniform(0.92, 1.06))
                waiting = float(round((server.waiting_mean or 0) / len(launches) * rng.uniform(0.7, 1.4)))
                for gpu in launch.gpus:
                    row: dict[str, float | str | None] = {
                        "level": level.measurement.load.level,
                        "at_ns": 10**12 + int((index * (level.measurement.planned_s + 4) + step / 2) * 1e9),
                        "kv_usage": kv_usage,
                        "running": float(running),
                        "waiting": waiting,
                        "prefix_queries": queries[number],
                        "prefix_hits": hits[number],
                        "gpu": gpu,
                        "gpu_utilization": min(1.0, 0.7 + running / 250),
                        "gpu_memory_used_bytes": 75.1 * 2**30,
                        "gpu_power_w": 430.0 + running * 2 + rng.uniform(-9, 9),
                        "gpu_temperature_c": 55.0 + min(9, step // 12) + gpu,
                        "host_cpu_share": 0.07,
                        "client_cores": 0.2,
                        "server_cores": None,
                    }
                    rows.append(row if is_older else {**row, "server": number})
    return pd.DataFrame(rows)


def hostile(text: str, studies: Path) -> Study:
    """A study in which every text that comes from outside holds `text`."""
    plan = dataclasses.replace(
        PLAN,
        study="hostile",
        model=text,
        base=dataclasses.replace(PLAN.base, model=text, extra=("--served-model-name", text)),
        workload=dataclasses.replace(PLAN.workload, name=text, source=text),
    )
    environment = dataclasses.replace(ENVIRONMENT, host=text, cpu=text, model=text, gpus=(Gpu(0, text, 80.0, "u"),))
    study = build_study(studies, trials=24, plan=plan, environment=environment)
    caution = Caution(CautionKind.CLIENT_BOUND, recorded=text)
    for record in study.records:
        found = record.start.cause
        cause = found and dataclasses.replace(found, kind=text, line=text, explanation=text, hint=text)
        levels = tuple(
            dataclasses.replace(level, measurement=dataclasses.replace(level.measurement, cautions=(caution,)))
            for level in record.levels
        )
        replace_record(
            study, dataclasses.replace(with_start(record, cause=cause), levels=levels, notes=(Remark(text),))
        )
    assert study.result is not None
    jsonfile.dump(study.folder / "result.json", dataclasses.replace(study.result, sentence=text))
    return study


if __name__ == "__main__":
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 61
    build_study(Path(sys.argv[1]), trials=count)
    build_layouts_study(Path(sys.argv[1]), trials=count)
