"""Signs that make a level's numbers less sure, as values. The report puts them into words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from tuner.load.drive import Samples
from tuner.load.quantiles import confidence_above
from tuner.slo import Metric, Slo
from tuner.telemetry.sampler import Telemetry

LAG_LIMIT_MS = 2.0
"""P99 lateness of the client's ticker that needs no caution. P99 TTFT is then inflated by 1.8 ms in the median
(docs/measuring.md)."""

CLIENT_CPU_LIMIT = 0.8
"""Share of its core above which the load generator counts as the bottleneck."""

FOREIGN_CORES_LIMIT = 0.25
"""Cores that other processes may use on average before the host counts as busy."""

FEW_REQUESTS = 368
"""Requests from which a P99 has a 95 % upper bound."""

DRIFT_LIMIT = 0.10
"""Relative change of the median TTFT between the halves of a level that counts as drift, if it is significant."""


class CautionKind(StrEnum):
    CLIENT_BOUND = "client-bound"
    FEW_REQUESTS = "few-requests"
    THROTTLED = "throttled"
    FOREIGN_PROCESS = "foreign-process"
    DRIFT = "drift"
    HOST_BUSY = "host-busy"
    METRICS_MISSING = "metrics-missing"


class Sign(StrEnum):
    """Quantity behind a caution, with its unit; see `Observation`."""

    CPU_SHARE = "cpu-share"
    LAG_MS = "lag-ms"
    LATE_MS = "late-ms"
    COMPLETED = "completed"
    THROTTLE_REASON = "throttle-reason"
    PROCESS_ID = "process-id"
    FIRST_HALF_MS = "first-half-ms"
    SECOND_HALF_MS = "second-half-ms"
    FOREIGN_CORES = "foreign-cores"
    NO_METRICS = "no-metrics"
    NO_PREEMPTION_COUNTER = "no-preemption-counter"


@dataclass(frozen=True, slots=True)
class Observation:
    """One sign with its value: a number, or NVML's name of a throttle reason. `gpu` is NVML's index."""

    sign: Sign
    value: float | str | None = None
    gpu: int | None = None


@dataclass(frozen=True, slots=True)
class Caution:
    """Reason why a level's numbers are less sure. `recorded` is the English text of a record of schema 1."""

    kind: CautionKind
    seen: tuple[Observation, ...] = ()
    recorded: str = ""


def cautions(samples: Samples, telemetry: Telemetry | None, slos: Sequence[Slo]) -> tuple[Caution, ...]:
    """Find every reason to doubt a level."""
    found = {
        CautionKind.CLIENT_BOUND: _client(samples, slos),
        CautionKind.FEW_REQUESTS: _few(samples, slos),
        CautionKind.DRIFT: _drift(samples),
        CautionKind.METRICS_MISSING: _metrics(telemetry),
    }
    return (*_with_signs(found), *machine_cautions(telemetry))


def machine_cautions(telemetry: Telemetry | None) -> tuple[Caution, ...]:
    """Find what others did on the machine, with or without a load of ours."""
    return _with_signs(
        {
            CautionKind.THROTTLED: _throttled(telemetry),
            CautionKind.FOREIGN_PROCESS: _foreign(telemetry),
            CautionKind.HOST_BUSY: _host(telemetry),
        }
    )


def _with_signs(found: Mapping[CautionKind, Iterable[Observation]]) -> tuple[Caution, ...]:
    return tuple(Caution(kind, seen) for kind, signs in found.items() if (seen := tuple(signs)))


def lag_limit_ms(slos: Sequence[Slo]) -> float:
    """Return 1 % of the tightest TTFT limit, at least `LAG_LIMIT_MS`."""
    return max(LAG_LIMIT_MS, 0.01 * min((s.limit_ms for s in slos if s.metric is Metric.TTFT), default=0.0))


def _client(samples: Samples, slos: Sequence[Slo]) -> Iterator[Observation]:
    client, limit_ms = samples.client, lag_limit_ms(slos)
    if client.cpu_share > CLIENT_CPU_LIMIT:
        yield Observation(Sign.CPU_SHARE, client.cpu_share)
    if client.lag_p99_ms > limit_ms:
        yield Observation(Sign.LAG_MS, client.lag_p99_ms)
    if client.late_p99_ms is not None and client.late_p99_ms > limit_ms:
        yield Observation(Sign.LATE_MS, client.late_p99_ms)


def _few(samples: Samples, slos: Sequence[Slo]) -> Iterator[Observation]:
    completed = sum(r.failure is None for r in samples.requests)
    if completed < FEW_REQUESTS and any(s.quantile >= 0.99 for s in slos):
        yield Observation(Sign.COMPLETED, float(completed))


def _drift(samples: Samples) -> Iterator[Observation]:
    """Compare the median TTFT of both halves of the answered requests, in order of due times, by a sign test."""
    ttft = [r.ttft_ns / 1e6 for r in samples.requests if r.ttft_ns is not None and r.failure is None]
    half = len(ttft) // 2
    if half < 50:
        return
    first, second = float(np.median(ttft[:half])), float(np.median(ttft[half:]))
    slower = sum(value > first for value in ttft[half:])
    of = len(ttft) - half
    sure = max(confidence_above(slower, of, 0.5), confidence_above(of - slower, of, 0.5))
    if sure > 0.999 and abs(second - first) > DRIFT_LIMIT * first:
        yield Observation(Sign.FIRST_HALF_MS, first)
        yield Observation(Sign.SECOND_HALF_MS, second)


def _metrics(telemetry: Telemetry | None) -> Iterator[Observation]:
    if telemetry is None or telemetry.after is None:
        yield Observation(Sign.NO_METRICS)
    elif telemetry.after.preemptions is None:
        yield Observation(Sign.NO_PREEMPTION_COUNTER)


def _throttled(telemetry: Telemetry | None) -> Iterator[Observation]:
    readings = [gpu for row in telemetry.rows for gpu in row.gpus] if telemetry else []
    for index, reason in sorted({(g.index, reason) for g in readings for reason in g.throttled}):
        yield Observation(Sign.THROTTLE_REASON, reason, index)


def _foreign(telemetry: Telemetry | None) -> Iterator[Observation]:
    readings = [gpu for row in telemetry.rows for gpu in row.gpus] if telemetry else []
    seen = {(g.index, pid) for g in readings for pid in g.pids or ()}
    own = set(telemetry.server_pids) if telemetry else set()
    # In a container NVML may report the host's process ids. If none is the server's, it cannot be identified.
    if any(pid in own for _, pid in seen):
        for index, pid in sorted(seen):
            if pid not in own:
                yield Observation(Sign.PROCESS_ID, float(pid), index)


def _host(telemetry: Telemetry | None) -> Iterator[Observation]:
    rows = telemetry.rows if telemetry else ()
    foreign = [cores for row in rows if (cores := row.host.foreign_cores) is not None]
    if foreign and (mean := float(np.mean(foreign))) > FOREIGN_CORES_LIMIT:
        yield Observation(Sign.FOREIGN_CORES, mean)
