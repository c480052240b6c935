"""Pairs of blocks on a quiet machine: how far is the ratio of two candidates off the truth?

    PYTHONPATH=. python benchmarks/pairs.py [--seeds 40] [--seconds 20 --traces 1] [--load closed [--clients 32 64]]

The machine, its traffic and the truth are those of disturbed.py. Each seed starts four candidates afresh, whose speed
has a standard deviation of 1 %, and makes the product's block of each on the same traffic. It begins 5 % above the
truth, for each third seed 30 %. A closed loop keeps 32 clients for a minute, as a confirmation run. Of two numbers of
`--clients` the second and the fourth candidate get the second.

`--seconds` and `--traces` are other lengths of a block: 20 and 1 are those of a probe of the search.
"""

from __future__ import annotations

import argparse
import itertools
import os
from dataclasses import replace

if __name__ == "__main__":  # before numpy
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from disturbed import START_SD
from still_machine import LANDSCAPE, Still, started, truths
from virtual_load import VirtualServer, driving, session

from tests.fakes import ScriptedClock
from tuner.bench.capacity_search import SearchSettings
from tuner.bench.task import MeasureBlock, RunLadder, Task
from tuner.candidate import Candidate
from tuner.slo import parse_slo

CANDIDATES = {
    "default": Candidate(),
    "56 sequences": Candidate.of({"max-num-seqs": 56}),
    "40 sequences": Candidate.of({"max-num-seqs": 40}),
    "1024 tokens a step": Candidate.of(
        {"max-num-seqs": 128, "max-num-batched-tokens": 1024, "long-prefill-token-threshold": 0}
    ),
}
DEFAULT_CLIENTS, CLOSED_S = 32, 60.0
LIMITS_MS = {"open": LANDSCAPE.limit_ms, "closed": 60_000.0}


def measured(candidate: Candidate, task: Task, seed: int, number: int) -> tuple[float, float]:
    """Start a candidate and return its rate by the task, and the seconds of load. All clients of a closed loop begin at
    once, which would end it at the limit of the open one."""
    limit_ms = LIMITS_MS["closed" if isinstance(task, RunLadder) else "open"]
    slos = (parse_slo(f"p99 ttft <= {limit_ms:.0f}ms"),)
    factor = float(np.exp(np.random.default_rng([seed, number]).normal(0.0, START_SD)))
    clock = ScriptedClock()
    server = VirtualServer(
        started(candidate), LANDSCAPE.hardware, LANDSCAPE.shape, clock, 10 * seed + number, (), factor
    )
    with driving(server):
        found = session(server, LANDSCAPE.workload, slos, 2.0, 1000 * seed, DEFAULT_CLIENTS).run(task)
    rate = found.levels[0].measurement.qps if found.capacity is None else found.capacity.rate
    return rate or float("nan"), found.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--load", choices=("open", "closed"), default="open")
    parser.add_argument("--seconds", type=float, help="length of a trace. Default: a claim's")
    parser.add_argument("--clients", type=int, nargs="+", default=[DEFAULT_CLIENTS])
    parser.add_argument("--traces", type=int, default=SearchSettings().claim_traces)
    given = parser.parse_args()
    settings = replace(SearchSettings(), claim_traces=given.traces)
    if given.seconds is not None:
        settings = replace(settings, claim_s=given.seconds, claim_requests=0.0, longest_claim_s=given.seconds)
    is_open = given.load == "open"
    clients = [given.clients[i % len(given.clients)] for i in range(len(CANDIDATES))]
    each = list(zip(CANDIDATES.values(), clients, strict=True))
    true = np.array([truths("open", c)[0] if is_open else Still(c, 1.0).closed(n)[0] for c, n in each])
    rows = []
    for seed in range(1, given.seeds + 1):
        starts = true * (1.3 if seed % 3 == 0 else 1.05)
        tasks: list[Task] = [MeasureBlock(start, settings) for start in starts]
        if not is_open:
            tasks = [RunLadder((n,), CLOSED_S) for n in clients]
        pairs = zip(CANDIDATES.values(), tasks, strict=True)
        rows.append([measured(candidate, task, seed, number) for number, (candidate, task) in enumerate(pairs)])
    seen = np.array(rows)
    logs = np.log(seen[:, :, 0] / true)
    print("| candidate or pair | true req/s or ratio | bias % | sd % | s of load |\n|---|---|---|---|---|")
    for i, name in enumerate(CANDIDATES):
        print(f"| {name} | {true[i]:.2f} {_row(logs[:, i])} {np.mean(seen[:, i, 1]):.0f} |")
    for (i, one), (j, other) in itertools.combinations(enumerate(CANDIDATES), 2):
        print(f"| {other} / {one} | {true[j] / true[i]:.3f} {_row(logs[:, j] - logs[:, i])} |")


def _row(logs: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    return f"| {100 * np.nanmean(logs):+.1f} | {100 * np.nanstd(logs, ddof=1):.1f} |"


if __name__ == "__main__":
    main()
