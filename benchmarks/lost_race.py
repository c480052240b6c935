"""Accuracy of the capacity that the tail of a lost race indicates, on the stand-in in virtual time.

    python benchmarks/lost_race.py [--seeds 10]

The incumbent is searched cold. Candidates whose steps are slower by known factors then race against it on its trace.
The truth is the incumbent's estimate times the factor. Both are read on one trace, so that its error is in neither.
"""

from __future__ import annotations

import argparse

import numpy as np
from simulated import HOLD_OUTS, REGIMES, Bench

from tuner.bench.capacity_search import Ended, Incumbent, Saturation, search_capacity

FACTORS = (0.99, 0.97, 0.94, 0.9, 0.8, 0.65, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    given = parser.parse_args()
    print("| regime | " + " | ".join(f"{factor} of the best" for factor in FACTORS) + " |")
    print("|---" * (len(FACTORS) + 1) + "|")
    for regime in REGIMES + HOLD_OUTS[:1]:
        indicated: dict[float, list[float]] = {factor: [] for factor in FACTORS}
        for seed in range(given.seeds):
            best = Bench(regime, seed)
            found = search_capacity(best.probe, best.saturate)
            if found.rate is None:
                continue
            incumbent = Incumbent(found.rate, found.saturation, found.answer_s)
            ample = Saturation(found.saturation, found.answer_s)  # the screen is to end none of them
            for factor in FACTORS:
                probe = Bench(regime, seed, factor).probe
                raced = search_capacity(probe, lambda _, ample=ample: ample, incumbent, queue_s=regime.slo_s)
                if raced.ended is Ended.RACE_LOST and raced.likely is not None:
                    indicated[factor].append(raced.likely / (factor * found.rate))
        cells = (f"{np.mean(t):.3f} ± {np.std(t):.3f}" if t else "passes" for t in indicated.values())
        print(f"| {regime.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
