"""Options of `tuner bench` and the checks that need no server."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from tuner.bench.capacity_search import SearchSettings
from tuner.cli.bench_result import Stops
from tuner.errors import UsageError
from tuner.load.workload import Workload, with_body, workload

LEVEL_SECONDS = 60.0
"""Seconds of a ladder's level and of a held rate, unless the user says otherwise."""

MOST_REQUESTS = 1_000_000


class Claiming(StrEnum):
    SKIPPED = "skipped"
    TESTED = "tested"


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """Flags as given. Without `rate` and `levels` the rate is searched. None means the default."""

    url: str
    slos: tuple[str, ...]
    model: str | None = None
    tokenizer: str | None = None
    workload: str = "chat"
    rate: float | None = None
    levels: str | None = None
    level_seconds: float | None = None
    probe_seconds: float | None = None
    warm_up_seconds: float = 15.0
    seed: int = 0
    burstiness: float | None = None
    stops: Stops = Stops.EXACT
    extra_body: str | None = None
    claiming: Claiming = Claiming.SKIPPED
    out: Path | None = None
    metrics_urls: tuple[str, ...] = ()
    insecure: bool = False


def chosen_workload(options: BenchOptions) -> Workload:
    """Return the workload with the bodies that were asked for."""
    natural = options.stops is Stops.NATURAL
    return with_body(workload(options.workload), natural_stops=natural, extra_body=options.extra_body)


def chosen_settings(seconds: float | None) -> SearchSettings:
    """Scale the probes. The claim stays at its two minutes unless more was requested."""
    usual = SearchSettings()
    if seconds is None:
        return usual
    return replace(
        usual,
        saturation_s=min(usual.saturation_s, seconds),
        probe_s=seconds,
        longest_probe_s=max(usual.longest_probe_s, seconds),
    )


def check_options(options: BenchOptions) -> None:
    """Raise UsageError for options that exclude each other, and for numbers out of range."""
    if options.rate is not None and options.levels is not None:
        raise UsageError("--rate and --levels exclude each other", hint="one open-loop rate, or a closed-loop ladder")
    if options.claiming is Claiming.TESTED and (options.rate is not None or options.levels is not None):
        raise UsageError("--claim belongs to the search", hint="leave out --rate and --levels")
    if options.levels is not None and options.burstiness is not None:
        raise UsageError("--burstiness has no meaning in a closed loop", hint="leave it out, or give --rate")
    for name, value, least in (
        ("--rate", options.rate, 0.001),
        ("--level-seconds", options.level_seconds, 1),
        ("--probe-seconds", options.probe_seconds, 1),
        ("--warm-up-seconds", options.warm_up_seconds, 0.1),
        ("--seed", options.seed, 0),
    ):
        if value is not None and not (math.isfinite(value) and value >= least):
            raise UsageError(f"{name} {value:g}", hint=f"at least {least:g}")
    longest_s = max(options.level_seconds or LEVEL_SECONDS, options.probe_seconds or 0.0, options.warm_up_seconds)
    if longest_s * (options.rate or 1.0) > MOST_REQUESTS:
        raise UsageError(
            f"that is more than {MOST_REQUESTS:,} requests or seconds at once",
            hint="give a lower --rate or --level-seconds",
        )


def output_folder(out: Path | None) -> Path | None:
    """Make the folder of --out; None without one. Raises UsageError if it holds a measurement already."""
    if out is None:
        return None
    if (out / "bench.json").exists():
        raise UsageError(f"{out} holds a measurement already", hint="give --out another folder")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", hint="give --out a folder")
    out.mkdir(parents=True, exist_ok=True)
    return out
