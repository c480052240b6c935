"""Second, much longer measurement of a study's promise, with its own start.sh and fresh traffic at the promised
rate.

    tuner search --study NAME … && python benchmarks/remeasure.py studies/NAME [--times 5] [--longer 10]

Each turn starts the winner with the study's own start.sh, warms it up, loads it once and ends it with stop.sh. The
load lasts `--longer` times a claim's trace, at the promised rate, on arrivals and prompts that no start of the study
has seen. Nothing is left out of the table.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path

from tuner import formatting
from tuner.bench.level import LevelRun
from tuner.bench.session import LiveSession
from tuner.bench.task import HoldRate
from tuner.errors import UsageError
from tuner.load.endpoint import find_endpoint
from tuner.load.prompts import Prompts
from tuner.report.tables import read_study
from tuner.study.plan import OpenSearch, StudyPlan
from tuner.telemetry.sampler import Sampler, Watched

FRESH_SEED = 1_000_000
"""Offset of the study's seed. Its searches and claims draw from the seed itself."""


def once(folder: Path, plan: StudyPlan, rate: float, seconds: float, turn: int, port: int) -> LevelRun:
    """Start the winner and load it at `rate` requests/s for `seconds`."""
    environment = {**os.environ, "PORT": str(port)}
    subprocess.run([folder / "start.sh"], env=environment, check=True, stdout=subprocess.DEVNULL)
    levels: list[LevelRun] = []
    try:
        endpoint = find_endpoint(f"http://127.0.0.1:{port}", None, None)
        seed = plan.seed + FRESH_SEED * turn
        prompts = Prompts.for_model(plan.workload, plan.model, seed, endpoint.target.base_url)
        sampler = Sampler(Watched(f"{endpoint.target.base_url}/metrics"))
        assert isinstance(plan.load, OpenSearch)
        session = LiveSession(
            endpoint.target, prompts, plan.slos, sampler, lambda: False, levels.append, plan.load.warm_up_s, seed,
        )  # fmt: skip
        session.run(HoldRate(rate, seconds, plan.load.arrivals))
    finally:
        subprocess.run([folder / "stop.sh"], env=environment, check=True, stdout=subprocess.DEVNULL)
    return levels[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder of a finished study that loaded in an open loop")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--longer", type=float, default=10.0, help="times the seconds of one trace of a claim")
    parser.add_argument("--port", type=int, default=8123)
    given = parser.parse_args()
    study = read_study(given.study)
    result, opened = study.result, study.plan.load
    if result is None or result.winner is None or not isinstance(opened, OpenSearch):
        raise UsageError(f"{given.study} promises no open-loop rate", hint="search with --load open")
    winner = result.winner
    seconds = given.longer * opened.settings.claim_seconds_at(winner.qps)
    limits = ", ".join(map(str, study.plan.slos))
    print(f"{result.sentence}\n")
    print(f"| turn | s | promised req/s | offered | QPS | P99 TTFT | over the limit | preemptions | {limits} |")
    print("|---" * 9 + "|")
    for turn in range(1, given.times + 1):
        run = once(given.study, study.plan, winner.qps, seconds, turn, given.port)
        seen, qps = run.measurement, run.measurement.qps or 0.0
        worst = max(seen.attainments, key=lambda attained: attained.violations)
        cells = (
            str(turn), f"{seconds:.0f}", f"{winner.qps:.2f}", f"{seen.sent / seconds:.2f}", f"{qps:.2f}",
            formatting.ms(worst.value_ms), f"{worst.violations} of {worst.counted}", str(seen.server.preemptions),
            run.verdict.outcome,
        )  # fmt: skip
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
