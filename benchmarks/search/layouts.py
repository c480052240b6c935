"""Benchmark of layouts: four machines × three models, the true best layout against the one that is found.

    python -m benchmarks.search.layouts [--machines NAME …] [--seeds 0-2] [--starts 40]
    python -m benchmarks.search.layouts --tabulate [--machines NAME …]

Two tables: what is found, and the truth of every layout.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

if __name__ == "__main__":  # before numpy; tests that import this module keep their environment
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from tuner.candidate import Candidate
from tuner.environment import describe
from tuner.layout import Layout
from tuner.study.kv_budget import fullest
from tuner.study.record import Role
from tuner.study.search import Search
from tuner.study.seeds import seeds
from tuner.study.setting import StudySetting
from tuner.study.store import Store
from tuner.vllm.defaults import vllm_defaults

from .landscapes import VLLM
from .machines import COARSE, MACHINES, MachineLandscape
from .run import CONFIRM_STARTS
from .table import Table, is_tabulated, share_refused, tabulate
from .whole_machine import VirtualFleet, VirtualLoop, WholeMachine


@dataclass(frozen=True, slots=True)
class Found:
    """Result of one search. `truth` is what the winner's machine sustains, `share` that of the best layout's."""

    layout: Layout | None
    truth: float
    share: float
    claimed: float | None
    starts: int
    gpu_hours: float
    hours: float


@dataclass(frozen=True, slots=True)
class Truth:
    """Requests/s of the whole machine in one layout: at best, with vLLM's default, and with a full KV cache."""

    layout: Layout
    optimum: float
    default: float
    fill: float

    @property
    def headroom(self) -> float | None:
        """Return how far the best lies above the better of the two. None if neither holds the limits."""
        first = max(self.default, self.fill)
        return self.optimum / first if first else None


def search_machine(whole: MachineLandscape, seed: int, starts: int) -> Found:
    """Search a machine with the product's own search, confirmation included."""
    folder = Path(tempfile.mkdtemp(prefix="layouts-"))
    try:
        machine = _machine(whole, folder, seed, starts)
        return _searched(machine, folder)
    finally:
        shutil.rmtree(folder)


def truths(whole: MachineLandscape) -> list[Truth]:
    """Return the truth of each layout that is searched."""
    folder = Path(tempfile.mkdtemp(prefix="layouts-"))
    try:
        machine = _machine(whole, folder, 0, 1)
        return [_truth(machine, placed.layout) for placed in machine.plan.layouts]
    finally:
        shutil.rmtree(folder)


def _machine(whole: MachineLandscape, folder: Path, seed: int, starts: int) -> WholeMachine:
    plan = whole.plan(folder, starts, CONFIRM_STARTS, seed)
    tables = [name for placed in plan.layouts if is_tabulated(name := whole.server(placed.layout).name)]
    return WholeMachine(whole.one_gpu, Table.read(tables[0]), plan, seed, whole=whole)


def _searched(machine: WholeMachine, folder: Path) -> Found:
    whole, plan = machine.whole, machine.plan
    store = Store(folder)
    store.create()
    store.save_plan(plan, describe(VLLM, plan.model, whole.gpus, None))
    setting = StudySetting.of(plan, vllm_defaults(VLLM, whole.gpus), whole.gpus)
    fleet = VirtualFleet(machine, store)
    search = Search(setting, seeds(setting))
    loop = VirtualLoop(plan=plan, store=store, search=search, fleet=fleet, clock=fleet.clock)
    winner = loop.run().winner
    best = max(machine.optimum(placed.layout) for placed in plan.layouts)
    truth = machine.truth(winner.candidate) if winner else 0.0
    searched = sum(record.role not in (Role.CONFIRM, Role.CHECK) for record in store.records())
    return Found(
        layout=plan.layout_of(winner.candidate) if winner else None,
        truth=truth,
        share=truth / best,
        claimed=winner.qps / truth if winner and truth else None,
        starts=searched,
        gpu_hours=fleet.gpu_s / 3600,
        hours=fleet.clock.now_ns() / 3.6e12,
    )


def _truth(machine: WholeMachine, layout: Layout) -> Truth:
    server = machine.whole.server(layout)
    folder = Path(tempfile.mkdtemp(prefix="layouts-"))
    try:
        plan = server.plan(folder, 1, 0, 0)
        setting = StudySetting.of(plan, vllm_defaults(VLLM, server.gpus), server.gpus)
        full = _full(setting)
    finally:
        shutil.rmtree(folder)
    flags = layout.flags
    default = machine.truth(machine.plan.default_of(layout))
    fill = machine.truth(Candidate.of({**full.as_dict(), **flags})) if full is not None else 0.0
    return Truth(layout, machine.optimum(layout), default, fill)


def _full(setting: StudySetting) -> Candidate | None:
    """Return the seed that fills the KV cache. None if its size is not known."""
    ranges = {p.flag: p for p in setting.plan.parameters}
    values = {flag: p.decode(p.encode(setting.base[flag])) for flag, p in ranges.items() if flag in setting.base}
    full = {flag: ranges[flag].decode(ranges[flag].encode(v)) for flag, v in fullest(setting).items() if flag in ranges}
    return setting.candidate({**values, **full}) if full else None


def found_table(machines: Iterable[MachineLandscape], seed_range: Sequence[int], starts: int) -> Iterable[str]:
    """Render what is found, one line a machine, as soon as it is."""
    yield "| machine, model | best layout (truth) | found | share of it | claimed | starts | GPU-hours | hours |"
    yield "|---|---|---|---|---|---|---|---|"
    for whole in machines:
        best = max(truths(whole), key=lambda truth: truth.optimum)
        runs = [search_machine(whole, seed, starts) for seed in seed_range]
        claims = [run.claimed for run in runs if run.claimed is not None]
        shares = [run.share for run in runs]
        yield (
            f"| {whole.name} | {best.layout}, {best.optimum:.1f}/s | {_layouts(runs)} "
            f"| {np.median(shares):.3f} ({min(shares):.3f}) | {np.mean(claims) - 1 if claims else 0:+.1%} "
            f"| {np.median([run.starts for run in runs]):.0f} | {np.median([run.gpu_hours for run in runs]):.1f} "
            f"| {np.median([run.hours for run in runs]):.1f} |"
        )


def _layouts(runs: Sequence[Found]) -> str:
    names = [str(run.layout) if run.layout else "nothing" for run in runs]
    return ", ".join(f"{name} {names.count(name)}×" for name in sorted(set(names), key=names.index))


def truth_table(machines: Iterable[MachineLandscape]) -> Iterable[str]:
    """Render the truth of every layout, in requests/s of the whole machine."""
    yield "| machine, model | layout | best | default | full KV cache | best / better of the two |"
    yield "|---|---|---|---|---|---|"
    for whole in machines:
        for truth in truths(whole):
            above = "–" if truth.headroom is None else f"{truth.headroom:.2f}"
            yield (
                f"| {whole.name} | {truth.layout} | {truth.optimum:.1f} | {truth.default:.1f} "
                f"| {truth.fill:.1f} | {above} |"
            )


def _tabulate(machines: Iterable[MachineLandscape]) -> None:
    """Tabulate the layouts that have no table yet. One that never starts gets none."""
    for whole in machines:
        folder = Path(tempfile.mkdtemp(prefix="layouts-"))
        for placed in whole.choice(folder).layouts:
            server = whole.server(placed.layout)
            plan = server.plan(folder, 1, 0, 0)
            if not is_tabulated(server.name) and share_refused(server, plan) < 1:
                tabulate(server, plan, COARSE).write(server.name)
        shutil.rmtree(folder)


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", nargs="+", choices=list(MACHINES), default=list(MACHINES))
    parser.add_argument("--seeds", type=_seeds, default=_seeds("0-2"))
    parser.add_argument("--starts", type=int, default=40)
    parser.add_argument("--tabulate", action="store_true", help="tabulate what has no table yet, and nothing else")
    given = parser.parse_args()
    machines = [MACHINES[name] for name in given.machines]
    if given.tabulate:
        _tabulate(machines)
        return
    for line in chain(truth_table(machines), [""], found_table(machines, given.seeds, given.starts)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
