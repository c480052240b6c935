"""Reliability of a probe's verdict, on loads that are known to be too high or low enough, in virtual time.

    python benchmarks/verdict.py [--seeds 30] [--seconds 30 60 120]

A load f times the true capacity should pass for f < 1 and fail for f > 1. The probe's rule is that of the search and
of the claim: at most one request in a hundred over the limit, counted from its due time. Each seed is one run of the
longest time, judged after each of `--seconds`.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence

import numpy as np
from simulated import REGIMES, Bench, Regime, rejected_at_s, true_capacity

SHARES = (0.90, 0.94, 0.97, 1.00, 1.03, 1.06, 1.10)


def judged(regime: Regime, rate: float, times_s: Sequence[float], seed: int) -> list[float]:
    """Return when the probe was rejected, for each of `times_s`. NaN if it passed."""
    level = Bench(regime, seed).open_level(rate, max(times_s), "verdict")
    rejected = [rejected_at_s(level, seconds, regime.slo_s) for seconds in times_s]
    return [np.nan if at_s is None else at_s for at_s in rejected]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--seconds", type=float, nargs="+", default=[30.0, 60.0, 120.0])
    parser.add_argument("--regimes", nargs="+", default=[r.name for r in REGIMES])
    given = parser.parse_args()
    shares = " | ".join(f"{share:.2f}" for share in SHARES)
    print(f"| regime | T s | {shares} | s until a {SHARES[-1]:.2f} is rejected |")
    print("|---" * (len(SHARES) + 3) + "|")
    with multiprocessing.Pool() as pool:
        for regime in (r for r in REGIMES if r.name in given.regimes):
            true = true_capacity(regime, 0.9 * Bench(regime, 0).saturate(60.0).rate, pool).rate
            tasks = [(regime, f * true, given.seconds, seed) for f in SHARES for seed in range(1, given.seeds + 1)]
            rejected_s = np.array(pool.starmap(judged, tasks, chunksize=4)).reshape(len(SHARES), given.seeds, -1)
            for number, seconds in enumerate(given.seconds):
                cells = " | ".join(f"{share:.2f}" for share in np.isnan(rejected_s[:, :, number]).mean(axis=1))
                until = rejected_s[-1, :, number]
                mean = f"{np.nanmean(until):.0f}" if not np.isnan(until).all() else "none"
                print(f"| {regime.name} | {seconds:.0f} | {cells} | {mean} |", flush=True)


if __name__ == "__main__":
    main()
