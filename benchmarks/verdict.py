"""How often a probe's verdict is right: loads that are known to be too high or low enough, in virtual time.

    python benchmarks/verdict.py [--seeds 100] [--seconds 30 60 120]

A load f times the true capacity should pass for f < 1 and fail for f > 1. The probe's rule is that of the search and of
the claim: at most one request in a hundred over the limit, counted from when it was due.
"""

from __future__ import annotations

import argparse
import multiprocessing

import numpy as np
from simulated import REGIMES, Bench, Regime, true_capacity

from tuner.load.capacity_search import Stop

SHARES = (0.90, 0.94, 0.97, 1.00, 1.03, 1.06, 1.10)


def probe(task: tuple[Regime, float, float, int]) -> tuple[bool, float]:
    regime, rate, seconds, seed = task
    result = Bench(regime, seed).probe(rate, seconds, "verdict", Stop.AT_REJECTION)
    return result.passed, result.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--seconds", type=float, nargs="+", default=[30.0, 60.0, 120.0])
    parser.add_argument("--regimes", nargs="+", default=[r.name for r in REGIMES])
    given = parser.parse_args()
    print("| regime | T s | " + " | ".join(f"{share:.2f}" for share in SHARES) + " | s until a 1.10 is rejected |")
    print("|---" * (len(SHARES) + 3) + "|")
    with multiprocessing.Pool() as pool:
        for regime in (r for r in REGIMES if r.name in given.regimes):
            true = true_capacity(regime, 0.9 * Bench(regime, 0).saturate(60.0).rate, pool).rate
            for seconds in given.seconds:
                cells, rejected_s = [], 0.0
                for share in SHARES:
                    tasks = [(regime, share * true, seconds, seed) for seed in range(1, given.seeds + 1)]
                    found = pool.map(probe, tasks, chunksize=4)
                    cells.append(f"{np.mean([passed for passed, _ in found]):.2f}")
                    rejected_s = float(np.mean([spent for passed, spent in found if not passed] or [np.nan]))
                print(f"| {regime.name} | {seconds:.0f} | " + " | ".join(cells) + f" | {rejected_s:.0f} |", flush=True)


if __name__ == "__main__":
    main()
