"""Phases of every trial per GPU or worker, and the telemetry of a trial."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from tuner import formatting
from tuner.report.tables import StudyFiles, began
from tuner.report.translations import Words
from tuner.study.compile_cache import Cache, start_times_s
from tuner.study.record import TrialOutcome, TrialRecord
from tuner.study.units import units_at

POINTS = 600
"""Most points of a telemetry channel, more than a screen can show. Longer series are thinned to means."""

FEWEST_POINTS = 150
"""Points that each of many servers gets all the same."""


class TrialPhase(StrEnum):
    START = "start"
    WARM_UP = "warm-up"
    MEASURE = "measure"
    WAIT = "wait"
    STOP = "stop"
    IDLE = "idle"


class PhaseRow(NamedTuple):
    """One phase of a GPU or worker, in hours since the study's first start. `trial` is None while idle."""

    unit: str
    phase: TrialPhase
    trial: int | None
    outcome: TrialOutcome | None
    began_h: float
    length_h: float


def phase_rows(study: StudyFiles) -> list[PhaseRow]:
    """List the phases of all units, a trial over several of them once for each."""
    if not study.records:
        return []
    first = min(began(r) for r in study.records)
    rows: list[PhaseRow] = []
    free: dict[str, float] = {}
    for record in sorted(study.records, key=began):
        begin_h = (began(record) - first).total_seconds() / 3600
        for unit in units_at(study.plan, record.start.group):
            idle = begin_h - free.get(unit, 0.0)
            if idle > 0:
                rows.append(PhaseRow(unit, TrialPhase.IDLE, None, None, begin_h - idle, idle))
            rows += _phases(record, unit, begin_h)
            free[unit] = max(begin_h + record.start.phases.spent_s / 3600, free.get(unit, 0.0))
    return rows


def _phases(record: TrialRecord, unit: str, at_h: float) -> Iterator[PhaseRow]:
    phases = record.start.phases
    for phase, seconds in (
        (TrialPhase.START, phases.start_s),
        (TrialPhase.WARM_UP, phases.warm_up_s),
        (TrialPhase.MEASURE, phases.measure_s),
        (TrialPhase.WAIT, phases.wait_s),
        (TrialPhase.STOP, phases.stop_s),
    ):
        if seconds is not None:
            yield PhaseRow(unit, phase, record.trial, record.outcome, at_h, seconds / 3600)
            at_h += seconds / 3600


def phase_shares(rows: Sequence[PhaseRow]) -> dict[TrialPhase, float]:
    """Compute the share of the time of all units in each phase."""
    total = sum(row.length_h for row in rows)
    return {p: sum(r.length_h for r in rows if r.phase is p) / total for p in TrialPhase} if total else {}


def start_times(study: StudyFiles, words: Words) -> str:
    """Say the median time until a server was ready, by the state of vLLM's compile cache. Empty before the first."""
    times = start_times_s(study.records)
    texts = [
        words(key, time=formatting.duration(statistics.median(seconds)), n=len(seconds))
        for cache, key in ((Cache.COLD, "start-cold"), (Cache.WARM, "start-warm"), (None, "start-other"))
        if (seconds := times.get(cache))
    ]
    return "; ".join(texts)


class Channel(NamedTuple):
    """One telemetry figure: its name, its column, and the factor from the column's unit to its own. `over_gpus` joins
    the GPUs of a server. A channel of the host has one line for all servers."""

    name: str
    column: str
    factor: float
    over_gpus: str
    of_host: bool = False


CHANNELS = (
    Channel("kv", "kv_usage", 100, "max"),
    Channel("running", "running", 1, "max"),
    Channel("waiting", "waiting", 1, "max"),
    Channel("prefix", "prefix_hit_share", 100, "max"),
    Channel("gpu-util", "gpu_utilization", 100, "mean"),
    Channel("gpu-memory", "gpu_memory_used_bytes", 2**-30, "sum"),
    Channel("gpu-power", "gpu_power_w", 1, "sum"),
    Channel("gpu-temperature", "gpu_temperature_c", 1, "max"),
    Channel("host-cpu", "host_cpu_share", 100, "max", of_host=True),
    Channel("server-cores", "server_cores", 1, "max", of_host=True),
    Channel("client-cores", "client_cores", 1, "max", of_host=True),
)


class Series(NamedTuple):
    """A telemetry line of one server over seconds since the trial's first sample. A value is None if nothing was
    observed."""

    channel: str
    seconds: tuple[float, ...]
    values: tuple[float | None, ...]
    server: int = 0


def telemetry(path: Path) -> list[Series]:
    """Read the `CHANNELS` of a trial's telemetry.parquet, a line for each server. Empty if there is no readable
    file."""
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError):  # pyarrow's errors are ValueErrors
        return []
    if "at_ns" not in frame or frame.empty:
        return []
    if "server" not in frame:  # a file of a tuner that knew one server
        frame = frame.assign(server=0)
    first_ns, servers = int(frame["at_ns"].min()), frame["server"].nunique()
    points = max(FEWEST_POINTS, POINTS // servers)
    lines = []
    for index, server in enumerate(sorted(map(int, frame["server"].unique()))):
        rows = _with_prefix_share(frame[frame["server"] == server])
        for channel in CHANNELS:
            if channel.of_host and index > 0:
                continue
            if (column := _column(rows, channel)) is not None:
                seconds = [(int(at) - first_ns) / 1e9 for at in column.index]
                lines.append(_thinned(channel.name, server, seconds, column * channel.factor, points))
    return lines


def _column(rows: pd.DataFrame, channel: Channel) -> pd.Series[float] | None:
    """Return a channel of one server by moment. None if it was never observed."""
    if channel.column not in rows or not rows[channel.column].notna().any():
        return None
    values = pd.to_numeric(rows[channel.column], errors="coerce").groupby(rows["at_ns"], sort=True)
    # A sum of nothing is 0: min_count keeps it "not observed".
    return values.sum(min_count=1) if channel.over_gpus == "sum" else values.agg(channel.over_gpus)


def _with_prefix_share(frame: pd.DataFrame) -> pd.DataFrame:
    """Add the share of prompt tokens that a server's prefix cache had, from sample to sample."""
    names = ("prefix_hits", "prefix_queries")
    if not all(name in frame for name in names):
        return frame
    hits, asked = (frame.groupby("at_ns")[name].max().diff() for name in names)
    share = (hits / asked).where((asked > 0) & (hits >= 0))
    return frame.assign(prefix_hit_share=frame["at_ns"].map(share))


def _thinned(channel: str, server: int, seconds: Sequence[float], column: pd.Series[float], points: int) -> Series:
    step = -(-len(column) // points)
    at = pd.Series(list(seconds))
    values = column.reset_index(drop=True)
    if step > 1:
        at, values = at.groupby(at.index // step).mean(), values.groupby(values.index // step).mean()
    return Series(
        channel,
        tuple(round(float(s), 2) for s in at),
        tuple(None if pd.isna(v) else round(float(v), 3) for v in values),
        server,
    )
