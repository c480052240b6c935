"""Bias, spread and cost of the capacity search on the stand-in in virtual time, beside a naive ladder and plain
bisection.

    python benchmarks/capacity.py [--seeds 30] [--regimes chat sequences ...] [--policies "warm step search" ...]

Errors are against the true capacity of the regime (long Poisson runs). `sd of B/A` compares a candidate with one
that is 2 % faster, each measured once with the same seeds. Seconds are seconds of load, without a probe's overhead.
The claim follows a cold search, whose seconds are not counted. The promise is the lower of two starts' claims. The
second start claims downwards from the first one's rate, on traffic of its own, as in a study.
"""

from __future__ import annotations

import argparse
import multiprocessing
import multiprocessing.pool
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from simulated import HOLD_OUTS, REGIMES, Bench, Regime, true_capacity

from tuner.bench.capacity_search import Incumbent, SearchSettings, Steps, Stop, claim, search_capacity

LADDER = (10, 30, 64, 128, 200, 256)
GAIN = 1.02
INCUMBENT = 0.97
SECOND_START = 10_000
"""Offset of the seed for a second start's traffic."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one pair: candidate A, and B, which is `GAIN` faster. Rates per second, None if a policy found
    nothing."""

    policy: str
    seed: int
    rate_a: float | None
    rate_b: float | None
    seconds: float


def warm(bench: Bench) -> float | None:
    """Search by steps alone, without screen and race: losers get an estimate too.

    The incumbent is a third candidate that is 3 % slower. Its own cold search is not counted here.
    """
    slower = Bench(bench.regime, bench.seed, INCUMBENT)
    before = search_capacity(slower.probe, slower.saturate)
    if before.rate is None:
        return None
    incumbent = Incumbent(before.rate, before.saturation, before.answer_s)
    steps = Steps.of_full_server(bench.probe, bench.saturate, SearchSettings(), incumbent)
    return steps.search(steps.saturation.rate * incumbent.rate / incumbent.saturation, widen=1.0).rate


def cold(bench: Bench) -> float | None:
    return search_capacity(bench.probe, bench.saturate).rate


def ladder(bench: Bench) -> float | None:
    """Climb a closed loop, 30 s a rung, and take the best QPS whose P99 keeps the limit."""
    best = None
    for clients in LADDER:
        level = bench.closed_level(clients, 30.0, 5.0)
        bench.spent_s += 30.0
        value = level.ttft_percentile_ms(99)
        if value is None or value > bench.regime.slo_s * 1000:
            break
        best = max(best or 0.0, level.qps)
    return best


def bisection(bench: Bench) -> float | None:
    """Bisect from saturation with 30 s probes on fresh traffic until the interval is 2.5 % wide (Sarathi's rule)."""
    saturation = bench.saturate(15.0).rate
    low, high = 0.4 * saturation, 1.1 * saturation
    number = 0
    while high / low > 1.025:
        number += 1
        middle = (low + high) / 2
        result = bench.probe(middle, 30.0, f"bisection-{number}-{bench.seed}-{bench.spent_s}", Stop.AT_REJECTION)
        low, high = (middle, high) if result.passed else (low, middle)
    return float((low * high) ** 0.5)


POLICIES: dict[str, Callable[[Bench], float | None]] = {
    "warm step search": warm,
    "cold search": cold,
    "naive ladder": ladder,
    "plain bisection": bisection,
}


def compare(task: tuple[Regime, str, int]) -> Outcome:
    regime, policy, seed = task
    a, b = Bench(regime, seed), Bench(regime, seed, GAIN)
    rates = [POLICIES[policy](bench) for bench in (a, b)]
    return Outcome(policy, seed, rates[0], rates[1], (a.spent_s + b.spent_s) / 2)


def claimed(task: tuple[Regime, int]) -> tuple[float | None, float | None, float]:
    """Return the claim after a cold search, what a second start holds of it, and the first one's seconds."""
    regime, seed = task
    bench, again = Bench(regime, seed), Bench(regime, SECOND_START + seed)
    found = search_capacity(bench.probe, bench.saturate)
    if found.rate is None:
        return None, None, 0.0
    made = claim(bench.probe, found.rate, queue_s=regime.slo_s)
    held = made.rate and claim(again.probe, made.rate, queue_s=regime.slo_s).rate
    return made.rate, held, made.seconds


def report(regime: Regime, policies: Sequence[str], seeds: Sequence[int], pool: multiprocessing.pool.Pool) -> str:
    """Print a row for each policy and return the row of the claims."""
    saturation = Bench(regime, 0).saturate(60.0).rate
    truth = true_capacity(regime, 0.9 * saturation, pool)
    claims = pool.map(claimed, [(regime, seed) for seed in seeds], chunksize=1)
    shares = np.array([rate / truth.rate for rate, _, _ in claims if rate is not None])
    held = np.array([rate / truth.rate for _, rate, _ in claims if rate is not None])
    row = (
        f"| {regime.name} | {truth.rate:.2f} ± {truth.error:.1%} | {truth.rate / saturation:.2f} | {_spread(shares)} "
        f"| {_spread(held)} | {np.mean([spent for *_, spent in claims]):.0f} | {len(held)}/{len(seeds)} |"
    )
    for policy in policies:
        found = pool.map(compare, [(regime, policy, seed) for seed in seeds], chunksize=1)
        errors = np.array([o.rate_a / truth.rate - 1 for o in found if o.rate_a is not None])
        ratios = np.array([np.log(o.rate_b / o.rate_a) for o in found if o.rate_a and o.rate_b])
        print(
            f"| {regime.name} | {policy} | {100 * errors.mean():+.1f} "
            f"| {100 * errors.std(ddof=1):.1f} | {100 * ratios.mean():+.2f} | {100 * ratios.std(ddof=1):.2f} "
            f"| {np.mean([o.seconds for o in found]):.0f} | {len(ratios)}/{len(seeds)} |",
            flush=True,
        )
    return row


def _spread(shares: NDArray[np.float64]) -> str:
    over = f"{(shares > 1.03).mean():.0%}"
    return f"{shares.mean():.3f} | {shares.std(ddof=1):.3f} | {shares.min():.2f} to {shares.max():.2f} | {over}"


def main() -> None:
    regimes = {regime.name: regime for regime in REGIMES + HOLD_OUTS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--regimes", nargs="+", choices=list(regimes), default=list(regimes))
    parser.add_argument("--policies", nargs="*", choices=list(POLICIES), default=list(POLICIES))
    given = parser.parse_args()
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    print("| regime | policy | bias % | sd % | mean B/A % | sd of B/A % | load s | found |")
    print("|---|---|---|---|---|---|---|---|")
    with multiprocessing.Pool() as pool:
        rows = [report(regimes[name], given.policies, seeds, pool) for name in given.regimes]
    print("\n| regime | true rate | of saturation | one claim, of true | sd | range | over 1.03 "
          "| promise, of true | sd | range | over 1.03 | load s | found |")  # fmt: skip
    print("|---" * 13 + "|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
