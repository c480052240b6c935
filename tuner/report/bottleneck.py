"""Bottleneck of the winner, as far as its measurements tell."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from tuner import formatting
from tuner.candidate import Candidate
from tuner.measurement import CautionKind, Measurement
from tuner.report.tables import StudyFiles
from tuner.report.translations import Words
from tuner.study.record import TrialRecord

KV_FULL, KV_NEAR = 0.9, 0.75
CLIENT_NEAR = 0.7
HOST_NEAR = 0.95
SATURATED = 0.35
"""Growth of QPS, as a share of the load's growth, below which more load only waits."""


class Bottleneck(StrEnum):
    LOAD = "load"
    CLIENT = "client"
    KV = "kv"
    SEQUENCES = "sequences"
    TOKENS = "tokens"
    COMPUTE = "compute"


class Reading(StrEnum):
    BINDS = "binds"
    NEAR = "near"
    CLEAR = "clear"
    UNKNOWN = "unknown"


class BottleneckRow(NamedTuple):
    limit: Bottleneck
    reading: Reading
    evidence: str


class Levels(NamedTuple):
    """One trial of the winner: the level that counts, and the levels just below and above it."""

    record: TrialRecord
    below: Measurement | None
    at: Measurement
    beyond: Measurement | None

    @property
    def highest(self) -> Measurement:
        return self.beyond or self.at


def levels_of(study: StudyFiles, candidate: Candidate) -> Levels | None:
    """Choose the candidate's trial with the most levels: a confirmation run repeats only the level that won."""
    starts = [r for r in study.starts_of(candidate) if r.best is not None]
    if not starts:
        return None
    record = max(starts, key=lambda r: len(r.levels))
    assert record.best is not None
    at = record.levels[record.best].measurement
    same_kind = [m for level in record.levels if (m := level.measurement).load.kind is at.load.kind]
    loads = sorted(same_kind, key=lambda m: m.load.level)
    below = [m for m in loads if m.load.level < at.load.level]
    beyond = [m for m in loads if m.load.level > at.load.level]
    return Levels(record, below[-1] if below else None, at, beyond[0] if beyond else None)


def bottleneck_rows(levels: Levels, words: Words) -> list[BottleneckRow]:
    """Judge every possible bottleneck. One that binds makes those after it hard to read."""
    kv, sequences = _kv(levels, words), _sequences(levels, words)
    tokens = _tokens(levels, words, hidden=Reading.BINDS in (kv.reading, sequences.reading))
    rows = [_load(levels, words), _client(levels, words), kv, sequences, tokens]
    return [*rows, _compute(levels, words, hidden=any(row.reading is Reading.BINDS for row in rows))]


def binding(rows: list[BottleneckRow]) -> list[Bottleneck]:
    return [row.limit for row in rows if row.reading is Reading.BINDS]


def _load(levels: Levels, words: Words) -> BottleneckRow:
    if levels.beyond is None:
        return BottleneckRow(Bottleneck.LOAD, Reading.BINDS, words("seen-load-ended", load=words.load(levels.at.load)))
    return BottleneckRow(
        Bottleneck.LOAD, Reading.CLEAR, words("seen-load-beyond", beyond=words.load(levels.beyond.load))
    )


def _client(levels: Levels, words: Words) -> BottleneckRow:
    share = levels.at.client.cpu_share
    kinds = [caution.kind for caution in levels.at.cautions]
    if CautionKind.CLIENT_BOUND in kinds:
        return BottleneckRow(Bottleneck.CLIENT, Reading.BINDS, words("seen-client-bound"))
    if share is None:
        return BottleneckRow(Bottleneck.CLIENT, Reading.UNKNOWN, words("seen-nothing"))
    reading = Reading.NEAR if share >= CLIENT_NEAR else Reading.CLEAR
    return BottleneckRow(Bottleneck.CLIENT, reading, words("seen-client", share=formatting.share(share)))


def _kv(levels: Levels, words: Words) -> BottleneckRow:
    at, highest = levels.at.server, levels.highest.server
    peak = formatting.share(highest.kv_usage_peak)
    if highest.preemptions:
        seen = words("seen-kv-preempted", n=highest.preemptions, load=words.load(levels.highest.load), peak=peak)
        return BottleneckRow(Bottleneck.KV, Reading.BINDS, seen)
    if at.kv_usage_peak is None:
        return BottleneckRow(Bottleneck.KV, Reading.UNKNOWN, words("seen-nothing"))
    full = at.kv_usage_peak
    reading = Reading.BINDS if full >= KV_FULL else Reading.NEAR if full >= KV_NEAR else Reading.CLEAR
    return BottleneckRow(
        Bottleneck.KV, reading, words("seen-kv", peak=formatting.share(full), load=words.load(levels.at.load))
    )


def _sequences(levels: Levels, words: Words) -> BottleneckRow:
    server, load = levels.highest.server, levels.highest.load
    limit, servers = levels.record.start.launch.max_num_seqs, levels.record.start.servers
    if server.running_peak is None:
        return BottleneckRow(Bottleneck.SEQUENCES, Reading.UNKNOWN, words("seen-nothing"))
    running = formatting.count(server.running_peak)
    if limit is None:
        return BottleneckRow(
            Bottleneck.SEQUENCES,
            Reading.UNKNOWN,
            words("seen-sequences-default", running=running, load=words.load(load)),
        )
    limit *= servers
    waiting = server.waiting_mean or 0.0
    full = server.running_peak >= limit
    near = server.running_peak >= 0.8 * limit
    reading = Reading.BINDS if full and waiting >= 1 else Reading.NEAR if near else Reading.CLEAR
    seen = words(
        "seen-sequences", running=running, limit=limit, waiting=_mean(server.waiting_mean), load=words.load(load)
    )
    return BottleneckRow(Bottleneck.SEQUENCES, reading, seen)


def _tokens(levels: Levels, words: Words, *, hidden: bool) -> BottleneckRow:
    waiting, load = levels.highest.server.waiting_mean, levels.highest.load
    if waiting is None:
        return BottleneckRow(Bottleneck.TOKENS, Reading.UNKNOWN, words("seen-nothing"))
    if waiting < 1:
        return BottleneckRow(
            Bottleneck.TOKENS, Reading.CLEAR, words("seen-tokens-clear", waiting=_mean(waiting), load=words.load(load))
        )
    if hidden:
        return BottleneckRow(
            Bottleneck.TOKENS,
            Reading.UNKNOWN,
            words("seen-tokens-other", waiting=_mean(waiting), load=words.load(load)),
        )
    return BottleneckRow(
        Bottleneck.TOKENS, Reading.BINDS, words("seen-tokens", waiting=_mean(waiting), load=words.load(load))
    )


def _compute(levels: Levels, words: Words, *, hidden: bool) -> BottleneckRow:
    """Judge compute: throughput stopped rising while load rose, with no other bottleneck. NVML's utilisation is
    shown, not judged: it says how often some kernel ran, not how full the GPU was."""
    host = levels.highest.client.host_cpu_share
    busy = _busy(levels.highest, words)
    pair = [(m, m.qps) for m in (levels.below, levels.at, levels.beyond) if m is not None]
    measured = [(m, qps) for m, qps in pair if qps]
    if len(measured) < 2:
        return BottleneckRow(Bottleneck.COMPUTE, Reading.UNKNOWN, words("seen-compute-one", busy=busy))
    (before, slower), (after, faster) = measured[-2:]
    more = after.load.level / before.load.level - 1
    gain = faster / slower - 1
    flat = gain < SATURATED * more
    seen = words(
        "seen-compute",
        before=words.load(before.load),
        load=words.load(after.load),
        more=formatting.change(after.load.level, before.load.level),
        gain=formatting.change(faster, slower),
        busy=busy,
    )
    if flat:
        return BottleneckRow(Bottleneck.COMPUTE, Reading.UNKNOWN if hidden else Reading.BINDS, seen)
    # Without a GPU the processor is the host's: nearly all of it in use is near, whatever uses it.
    near = levels.highest.gpu is None and host is not None and host >= HOST_NEAR
    return BottleneckRow(Bottleneck.COMPUTE, Reading.NEAR if near else Reading.CLEAR, seen)


def _busy(level: Measurement, words: Words) -> str:
    if level.gpu is not None:
        return words("busy-gpu", share=formatting.share(level.gpu.utilization_mean))
    return words("busy-host", share=formatting.share(level.client.host_cpu_share))


def _mean(value: float | None) -> str:
    return formatting.NOT_OBSERVED if value is None else f"{value:.1f}"
