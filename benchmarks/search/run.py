"""One run of one method: its starts, their cost, and its final choice. One JSON line each."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from tuner.candidate import Candidate
from tuner.environment import describe
from tuner.study.fleet import LocalFleet
from tuner.study.loop import Loop
from tuner.study.record import Role, TrialOutcome
from tuner.study.search import Search
from tuner.study.seeds import seeds
from tuner.study.setting import StudySetting
from tuner.study.store import Store
from tuner.vllm.defaults import vllm_defaults

from .landscapes import LANDSCAPES, VLLM, Landscape
from .machine import Machine
from .methods import method
from .table import Table

CONFIRM_STARTS = 4


@dataclass(frozen=True, slots=True)
class Rise:
    """Improvement: after `start` starts and `gpu_hours` the best candidate truly sustains `share` of the optimum."""

    start: int
    gpu_hours: float
    share: float


@dataclass(frozen=True, slots=True)
class Run:
    """Result of a run. `pick` is the rate that the chosen candidate truly sustains, as a share of the optimum.

    `claimed` is what the method says of its pick, as a share of that. None if it picked nothing that works or says
    nothing. `done` is how many of `starts` were made. Seconds and hours of GPUs include confirmation runs.
    """

    landscape: str
    method: str
    seed: int
    starts: int
    done: int
    rises: tuple[Rise, ...]
    refused: int
    refused_hours: float
    gpu_hours: float
    pick: float
    claimed: float | None

    def at(self, starts: int) -> float:
        return max((r.share for r in self.rises if r.start <= starts), default=0.0)

    def at_hours(self, hours: float) -> float:
        return max((r.share for r in self.rises if r.gpu_hours <= hours), default=0.0)

    def as_json(self) -> dict[str, object]:
        rises = [[r.start, round(r.gpu_hours, 3), round(r.share, 4)] for r in self.rises]
        rest = {k: round(v, 4) if isinstance(v, float) else v for k, v in asdict(self).items()}
        return {**rest, "rises": rises}

    @classmethod
    def from_json(cls, kept: dict[str, object]) -> Run:
        rises = kept["rises"]
        assert isinstance(rises, list)
        return cls(**{**kept, "rises": tuple(Rise(*rise) for rise in rises)})  # type: ignore[arg-type]


def run_method(landscape_name: str, method_name: str, seed: int, starts: int) -> Run:
    landscape = LANDSCAPES[landscape_name]
    folder = Path(tempfile.mkdtemp(prefix="run-"))
    try:
        runner = _ours if method_name == "ours" else _theirs
        return runner(landscape, method_name, seed, starts, folder)
    finally:
        shutil.rmtree(folder)


class _Curve:
    def __init__(self, machine: Machine, optimum: float) -> None:
        self._machine = machine
        self._optimum = optimum
        self.rises: list[Rise] = []

    def add(self, start: int, candidate: Candidate) -> None:
        share = self.share(candidate)
        if share > max((r.share for r in self.rises), default=0.0):
            self.rises.append(Rise(start, self.hours(self._machine.clock.now_ns() / 1e9), share))

    def share(self, candidate: Candidate | None) -> float:
        return 0.0 if candidate is None else self._machine.truth(candidate) / self._optimum

    def hours(self, seconds: float) -> float:
        return seconds / 3600 * self._machine.landscape.tensor_parallel

    def run(self, name: str, starts: int, done: int, refused: int, pick: Candidate | None, said: float | None) -> Run:
        machine, share = self._machine, self.share(pick)
        claimed = said / (share * self._optimum) if share and said is not None else None
        return Run(
            machine.landscape.name, name, machine.seed, starts, done, tuple(self.rises), refused,
            self.hours(machine.refused_s), self.hours(machine.clock.now_ns() / 1e9), share, claimed,
        )  # fmt: skip


def _theirs(landscape: Landscape, name: str, seed: int, starts: int, folder: Path) -> Run:
    plan = landscape.plan(folder, starts, 0, seed)
    table = Table.read(landscape.name)
    machine = Machine(landscape, table, plan, seed)
    curve, policy = _Curve(machine, table.optimum), method(name, landscape, plan, seed)
    best: tuple[float, Candidate] | None = None
    done = refused = 0
    while done < starts and (candidate := policy.ask()) is not None:
        seen = machine.measure(candidate)
        done, refused = done + 1, refused + seen.refused
        curve.add(done, candidate)
        policy.tell(seen)
        if seen.rate is not None and (best is None or seen.rate > best[0]):
            best = seen.rate, candidate
    return curve.run(name, starts, done, refused, best and best[1], best and best[0])


def _ours(landscape: Landscape, name: str, seed: int, starts: int, folder: Path) -> Run:
    plan = landscape.plan(folder, starts, CONFIRM_STARTS, seed)
    table = Table.read(landscape.name)
    machine = Machine(landscape, table, plan, seed)
    curve = _Curve(machine, table.optimum)
    store = Store(folder)
    store.create()
    store.save_plan(plan, describe(VLLM, plan.model, landscape.gpus, None))
    defaults = vllm_defaults(VLLM, landscape.gpus)
    setting = StudySetting.of(plan, defaults, landscape.gpus)
    search = Search(setting, seeds(setting))
    searched: list[TrialOutcome] = []

    def run_trial(assignment):  # type: ignore[no-untyped-def]
        record = machine.run_trial(assignment)
        if assignment.role is not Role.CONFIRM:
            searched.append(record.outcome)
            curve.add(len(searched), assignment.candidate)
        return record

    fleet = LocalFleet(plan.groups, run_trial, store)
    loop = Loop(plan=plan, store=store, search=search, fleet=fleet, clock=machine.clock)
    winner = loop.run().winner
    refused = sum(outcome is TrialOutcome.REFUSED for outcome in searched)
    said = (winner.candidate, winner.qps) if winner else (None, None)
    return curve.run(name, starts, len(searched), refused, *said)
