"""Result of `tuner bench`: the value that it writes, and its table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tuner import formatting
from tuner.bench.capacity_search import Capacity, Claim, Ended
from tuner.bench.level import Level
from tuner.cli.tables import print_table
from tuner.load.reading import TrafficReading
from tuner.measurement import LoadKind
from tuner.verdict import Evidence, kept_limits


class Stops(StrEnum):
    """End of an answer: exactly the workload's length, or the model's own."""

    EXACT = "exact"
    NATURAL = "natural"


@dataclass(frozen=True, slots=True)
class BenchResult:
    """Result of a bench. `sentence` is the answer; `kept` says for each of `levels` if it kept every limit.

    `arrivals` are those of an open loop, in words. `preemptions_observed` is False if the server's /metrics does not
    count them: the limits were then kept as far as a client can see. `load_observed` is False if it does not tell how
    many requests run. `capacity` and `claim` are None if none was searched. `reading` says what was read of a traffic
    file, None for other workloads.
    """

    schema: int
    url: str
    model: str
    workload: str
    stops: Stops
    slos: tuple[str, ...]
    seed: int
    arrivals: str
    sentence: str
    preemptions_observed: bool
    kept: tuple[bool, ...]
    levels: tuple[Level, ...]
    capacity: Capacity | None = None
    claim: Claim | None = None
    load_observed: bool = True
    reading: TrafficReading | None = None


def print_result(result: BenchResult) -> None:
    heads = (
        "load",
        "QPS",
        "tokens/s",
        "P50 TTFT",
        "P99 TTFT",
        "P99 TPOT",
        "P99 E2E",
        "failed",
        "preemptions",
        "limits",
    )
    # A search first fills the server in a closed loop, which has no limits to keep.
    asked = [lv for lv in result.levels if result.capacity is None or lv.measurement.load.kind is LoadKind.OPEN]
    print_table(heads, [_row(level) for level in asked], right=heads[:-1])
    print(f"\n{result.sentence}")
    if not result.preemptions_observed:
        print("Preemptions were not observed: this server's /metrics does not count them as vLLM's does.")
    if not result.load_observed:
        print("Requests of others were not observed: this server's /metrics does not tell how many run.")
    if result.stops is Stops.NATURAL:
        print("Answers ended on their own: these figures compare only with others of --natural-stops.")
    if result.capacity is not None and result.capacity.rate is not None and result.claim is None:
        print("A search of short probes reads high by some 7 to 18 %; --claim tests what holds on fresh traffic.")


def _row(level: Level) -> tuple[str, ...]:
    m, verdict = level.measurement, level.verdict
    return (
        str(m.load),
        formatting.significant(m.qps),
        formatting.significant(m.output_tokens_per_s),
        formatting.ms(m.ttft_ms.p50 if m.ttft_ms else None),
        formatting.ms(m.ttft_ms.p99 if m.ttft_ms else None),
        formatting.ms(m.tpot_ms.p99 if m.tpot_ms else None),
        formatting.ms(m.e2e_ms.p99 if m.e2e_ms else None),
        formatting.count(m.failed_total),
        formatting.count(m.server.preemptions),
        "kept" if kept(level) else f"{verdict.outcome}: {'; '.join(map(str, verdict.reasons))}",
    )


def kept(level: Level) -> bool:
    """Tell if a level kept every limit. Preemptions may be unseen: a foreign server does not tell them."""
    return kept_limits(level.measurement, level.verdict, Evidence.ENOUGH_REQUESTS)


def sustains(capacity: Capacity, limits: str) -> str:
    at_least = "at least " if capacity.ended is Ended.NEVER_FAILED else ""
    return f"sustains {at_least}{formatting.qps(capacity.rate)} under {limits}"
