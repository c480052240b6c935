"""Comparison of our search, auto_tune's grid and TPE with FAIL on a real vLLM with tight KV memory, in equal time.

    python -m benchmarks.search.real MODEL [--minutes 6] [--repetitions 3] [--folder .cache/against]

MODEL comes from scripts/make_tiny_model.py; vLLM is the CPU build. Every start of every method is launched, warmed
up and loaded by the same code on the same ladder. Only the choice of candidates differs. Ours is `tuner search` as a
user runs it, with its confirmation runs inside the time. The others choose the best that they measured. The methods
take turns, each repetition in another order. In the end all winners are started again, one after the other, in
rounds, at the level that they won at. That traffic is new to every search. Nothing is left out of the tables.
"""

from __future__ import annotations

import argparse
import subprocess
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

from tuner import formatting
from tuner.bench.task import RunLadder
from tuner.candidate import Candidate
from tuner.clock import RealClock
from tuner.config import SearchOptions, plan_study
from tuner.environment import cache_folder
from tuner.machine import this_machine
from tuner.study.assignment import Assignment
from tuner.study.local_servers import local_trials
from tuner.study.plan import Ladder, StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.store import Store
from tuner.telemetry.gpu import gpu_adapter

from .machine import Seen
from .methods import AutoTune, Method, TpeFail

MIB = 2**20
SPACE = """description: The tiny model on a CPU; 24 MiB of KV cache are refused, and 96 MiB hold some 60 requests.
parameters:
  kv-cache-memory-bytes: {log-int: [16777216, 100663296], multiple-of: 1048576}
  max-num-seqs: {log-int: [4, 128]}
  max-num-batched-tokens: {log-int: [128, 4096], multiple-of: 32}
  long-prefill-token-threshold: {choice: [64, 128, 256, 0]}
baseline:
  kv-cache-memory-bytes: 50331648
env:
  VLLM_ENABLE_V1_MULTIPROCESSING: "0"
  OMP_NUM_THREADS: "1"
  HF_HUB_OFFLINE: "1"
  VLLM_NO_USAGE_STATS: "1"
"""
GRID = ("kv-cache-memory-bytes", tuple(m * MIB for m in (96, 64, 48, 32)), (16, 32, 64, 128), (512, 1024, 2048, 4096))
"""Grid of auto_tune, with KV bytes in the place of the share of a GPU's memory."""

METHODS = ("ours", "auto_tune", "tpe-fail")
LONGER = 3
"""Factor on the seconds of a level, for the winners at the end."""

ROUNDS = 2


@dataclass(frozen=True, slots=True)
class RealRun:
    """Result of a run. `winner` is None if nothing kept the limits. It won at the concurrency `level`, and says
    `qps`."""

    method: str
    repetition: int
    starts: int
    refused: int
    minutes: float
    winner: Candidate | None
    level: int
    qps: float


def options(model: str, folder: Path, name: str, minutes: float, seed: int) -> SearchOptions:
    space = folder / "tight.yaml"
    space.write_text(SPACE)
    return SearchOptions(
        model=model, space=str(space), workload="random:32-96,32-64", slos=("p99 ttft <= 1000ms",), levels="32,64",
        level_seconds=8.0, warm_up_seconds=3.0, trials=60, confirm=2, time_budget=f"{minutes * 60:.0f}s", seed=seed,
        studies=folder, study=name, extra=("--enforce-eager", "--load-format", "dummy", "--dtype", "float32"),
    )  # fmt: skip


def ours(asked: SearchOptions) -> None:
    """Run the command as a user types it."""
    words = [
        "tuner", "search", "--model", asked.model, "--space", asked.space, "--workload", asked.workload,
        "--slo", asked.slos[0], "--levels", str(asked.levels), "--level-seconds", str(asked.level_seconds),
        "--warm-up-seconds", str(asked.warm_up_seconds), "--trials", str(asked.trials), "--confirm", str(asked.confirm),
        "--time-budget", asked.time_budget, "--seed", str(asked.seed), "--studies", str(asked.studies),
        "--study", str(asked.study), "--", *asked.extra,
    ]  # fmt: skip
    subprocess.run(words, check=False, stdout=subprocess.DEVNULL)


class Starts:
    """Starts that another method chose, kept on disk as a study is."""

    def __init__(self, asked: SearchOptions) -> None:
        clock = RealClock()
        self.plan, environment = plan_study(asked, this_machine(), clock.wall(), cache_folder(), lambda text: None)
        self.store = Store(asked.studies.absolute() / self.plan.study)
        self.store.create()
        self.store.save_plan(self.plan, environment)
        self._runner = local_trials(self.plan, self.store, clock, gpu_adapter(), lambda event: None, threading.Event())

    @property
    def levels(self) -> tuple[int, ...]:
        assert isinstance(self.plan.load, Ladder)
        return self.plan.load.levels

    def start(self, candidate: Candidate, levels: tuple[int, ...], longer: int = 1, fresh: int = 0) -> TrialRecord:
        load = self.plan.load
        assert isinstance(load, Ladder)
        task = RunLadder(levels, load.level_s * longer)
        trial = self.store.new_trial()
        group = self.plan.groups[0]
        record = self._runner.run(
            Assignment(trial, Role.SEARCH, candidate, (group,), task, load.warm_up_s, trial, traffic=fresh)
        )
        self.store.save_record(record)
        return record


def theirs(asked: SearchOptions, method: str, minutes: float) -> None:
    """Start candidates as long as one more of the longest so far ends in time."""
    starts = Starts(asked)
    policy = _policy(method, starts.plan)
    began, longest = time.monotonic(), 0.0
    while time.monotonic() - began + longest <= minutes * 60 and (candidate := policy.ask()) is not None:
        start_began = time.monotonic()
        record = starts.start(candidate, starts.levels)
        refused = record.outcome in (TrialOutcome.REFUSED, TrialOutcome.DIED)
        policy.tell(Seen(record.qps, None if refused else 1.0))
        longest = max(longest, time.monotonic() - start_began)


def _policy(method: str, plan: StudyPlan) -> Method:
    return AutoTune(*GRID) if method == "auto_tune" else TpeFail(plan, plan.seed)


def run_method(model: str, folder: Path, method: str, repetition: int, minutes: float) -> RealRun:
    """Execute a run, or read it if it was made before."""
    asked = options(model, folder, f"{method}-{repetition}", minutes, repetition)
    took = folder / f"{method}-{repetition}.minutes"
    if not took.is_file():
        began = time.monotonic()
        if method == "ours":
            ours(asked)
        else:
            theirs(asked, method, minutes)
        took.write_text(f"{(time.monotonic() - began) / 60:.2f}")
    store = Store(folder.absolute() / f"{method}-{repetition}")
    records = store.records()
    best = max((r for r in records if r.qps is not None and r.role is not Role.CONFIRM), key=lambda r: r.qps or 0.0,
               default=None)  # fmt: skip
    winner, qps = (best.candidate, best.qps) if best else (None, None)
    if method == "ours":
        figures = store.result().winner
        winner, qps = (figures.candidate, figures.qps) if figures else (None, None)
        best = next((r for r in records if r.qps is not None and r.candidate == winner), None)
    level = best.best_level.load.level if best and best.best_level else 0
    refused = sum(r.outcome in (TrialOutcome.REFUSED, TrialOutcome.DIED) for r in records)
    return RealRun(method, repetition, len(records), refused, float(took.read_text()), winner, int(level), qps or 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(".cache/against"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    runs = []
    for repetition in range(given.repetitions):
        turn = repetition % len(METHODS)
        for method in (*METHODS[turn:], *METHODS[:turn]):
            runs.append(run_method(given.model, given.folder, method, repetition, given.minutes))
            print(runs[-1], flush=True)
    again = measured_again(given.model, given.folder, runs)
    print("\n| method | run | starts | refused | minutes | says, req/s | measured again | verdicts | winner |")
    print("|---" * 9 + "|")
    for n in sorted(runs, key=lambda n: METHODS.index(n.method)):
        records = again.get((n.method, n.repetition), [])
        seen = [r.best_level or r.levels[0].measurement for r in records if r.levels]
        rates = ", ".join(formatting.qps(m.qps or 0.0) for m in seen)
        verdicts = ", ".join(str(r.outcome) for r in records)
        cells = (n.method, str(n.repetition + 1), str(n.starts), str(n.refused), f"{n.minutes:.1f}",
                 formatting.qps(n.qps), rates, verdicts, _text(n))  # fmt: skip
        print(f"| {' | '.join(cells)} |")


def measured_again(model: str, folder: Path, runs: list[RealRun]) -> dict[tuple[str, int], list[TrialRecord]]:
    """Start every winner once a round, all on the same traffic."""
    starts = Starts(replace(options(model, folder, f"again-{time.time():.0f}", 60, 0), seed=100))
    found: dict[tuple[str, int], list[TrialRecord]] = {}
    for turn in range(ROUNDS):
        for n in runs:
            if n.winner is not None:
                record = starts.start(n.winner, (n.level,), LONGER, fresh=1 + turn)
                found.setdefault((n.method, n.repetition), []).append(record)
                print(n.method, n.repetition, record.outcome, record.qps, flush=True)
    return found


def _text(run: RealRun) -> str:
    if run.winner is None:
        return "none"
    return f"{' '.join(f'{flag}={value}' for flag, value in run.winner.values)} at {run.level}"


if __name__ == "__main__":
    main()
