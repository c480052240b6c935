"""Command `tuner bench --self-check`: this client's own limit."""

from __future__ import annotations

from collections.abc import Sequence

from tuner import formatting
from tuner.cli.console import Console
from tuner.cli.tables import Form, print_json, print_table
from tuner.errors import EnvironmentFaultError, InterruptedSearchError, UsageError
from tuner.load.self_check import RATES, CheckedRate, SelfCheck, self_check

SCHEMA = 1
SECONDS = 5.0
LONGEST_S = 600.0


def check_client(form: Form, seconds: float = SECONDS, rates: Sequence[float] = RATES) -> None:
    if not 0.1 <= seconds <= LONGEST_S:
        raise UsageError(f"--level-seconds {seconds:g} is out of range", hint=f"0.1 to {LONGEST_S:g} at each rate")
    console = Console()
    console.say(f"a server of known times on this machine, {seconds:g} s at each rate, all streams emitting together")
    try:
        checked = self_check(rates, seconds, lambda rate: console.say(f"    {rate_line(rate)}"))
    except KeyboardInterrupt:
        raise InterruptedSearchError("interrupted", hint="run it again: it takes less than a minute") from None
    if form is Form.JSON:
        print_json({"schema": SCHEMA, "safe_chunks_per_s": checked.safe_chunks_per_s, "rates": checked.rates})
    else:
        show(checked)
    if checked.safe_chunks_per_s is None:
        raise EnvironmentFaultError(
            f"not even {formatting.count(checked.rates[0].offered)} chunks/s can be timed here",
            hint="end what else runs on this machine, or give it another core",
        )


def rate_line(rate: CheckedRate) -> str:
    safe = "safe" if rate.safe else "not safe"
    return (
        f"{formatting.count(rate.offered):>7} chunks/s  P99 TTFT +{formatting.ms(rate.inflation_p99_ms)}  "
        f"lag {formatting.ms(rate.lag_p99_ms)}  CPU {formatting.share(rate.cpu_share)}  {safe}"
    )


def show(checked: SelfCheck) -> None:
    heads = ("chunks/s", "streams", "achieved", "P50 TTFT +", "P99 TTFT +", "lag P99", "CPU", "us/chunk", "")
    rows = [
        (
            formatting.count(rate.offered),
            formatting.count(rate.streams),
            formatting.count(rate.chunks_per_s),
            formatting.ms(rate.inflation_p50_ms),
            formatting.ms(rate.inflation_p99_ms),
            formatting.ms(rate.lag_p99_ms),
            formatting.share(rate.cpu_share),
            formatting.significant(rate.cpu_us_per_chunk),
            "safe" if rate.safe else "not safe",
        )
        for rate in checked.rates
    ]
    print_table(heads, rows, right=heads[:-1])
    print(f"\n{sentence(checked)}")


def sentence(checked: SelfCheck) -> str:
    """State the safe rate, and what happens above it. A chunk is one token of one stream, so this is output
    tokens/s."""
    safe, last = checked.safe_chunks_per_s, checked.rates[-1]
    upto = "No rate that was tried is safe." if safe is None else f"Safe up to {formatting.count(safe)} chunks/s."
    if last.safe:
        return f"{upto} Nothing faster was tried."
    return (
        f"{upto} At {formatting.count(last.offered)} the client adds {formatting.ms(last.inflation_p99_ms)} to a P99 "
        f"TTFT, is {formatting.ms(last.lag_p99_ms)} late at P99, on {formatting.share(last.cpu_share)} of its core."
    )
