"""Cautions: findings that make a level's numbers less sure, each with a next step. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
FOREIGN_CORES_LIMIT = 0.25
FEW_REQUESTS = 368
"""Requests below which a P99 has no 95 % upper bound."""

DRIFT_LIMIT = 0.10


class CautionKind(StrEnum):
    CLIENT_BOUND = "client-bound"
    FEW_REQUESTS = "few-requests"
    THROTTLED = "throttled"
    FOREIGN_PROCESS = "foreign-process"
    DRIFT = "drift"
    HOST_BUSY = "host-busy"
    METRICS_MISSING = "metrics-missing"


@dataclass(frozen=True, slots=True)
class Caution:
    """Finding that makes a number less sure: `detail` is what was seen, `next_step` what to do about it."""

    kind: CautionKind
    detail: str
    next_step: str


def cautions(samples: Samples, telemetry: Telemetry | None, slos: Sequence[Slo]) -> tuple[Caution, ...]:
    return (
        *_client(samples, slos),
        *_few(samples, slos),
        *_drift(samples),
        *_metrics(samples, telemetry),
        *_gpus(telemetry),
        *_host(telemetry),
    )


def lag_limit_ms(slos: Sequence[Slo]) -> float:
    """Return 1 % of the tightest TTFT limit, at least `LAG_LIMIT_MS`."""
    return max(LAG_LIMIT_MS, 0.01 * min((s.limit_ms for s in slos if s.metric is Metric.TTFT), default=0.0))


def _client(samples: Samples, slos: Sequence[Slo]) -> Iterator[Caution]:
    client, limit_ms = samples.client, lag_limit_ms(slos)
    seen = []
    if client.cpu_share > CLIENT_CPU_LIMIT:
        seen.append(f"used {client.cpu_share:.0%} of its core")
    if client.lag_p99_ms > limit_ms:
        seen.append(f"was {client.lag_p99_ms:.1f} ms late at P99")
    if client.late_p99_ms is not None and client.late_p99_ms > limit_ms:
        seen.append(f"sent {client.late_p99_ms:.1f} ms behind its schedule at P99")
    if seen:
        yield Caution(
            CautionKind.CLIENT_BOUND,
            f"the load generator {', '.join(seen)}",
            "leave it a core of its own, or run `tuner bench --self-check` to see what it can do here",
        )


def _few(samples: Samples, slos: Sequence[Slo]) -> Iterator[Caution]:
    completed = sum(r.failure is None for r in samples.requests)
    if completed < FEW_REQUESTS and any(s.quantile >= 0.99 for s in slos):
        yield Caution(
            CautionKind.FEW_REQUESTS,
            f"{completed} requests completed; a P99 has an upper bound from {FEW_REQUESTS} on",
            "measure longer levels",
        )


def _drift(samples: Samples) -> Iterator[Caution]:
    """Compare TTFT of the first and the second half of the answered requests, by due time: medians, sign test."""
    ttft = [r.ttft_ns / 1e6 for r in samples.requests if r.ttft_ns is not None and r.failure is None]
    half = len(ttft) // 2
    if half < 50:
        return
    first, second = float(np.median(ttft[:half])), float(np.median(ttft[half:]))
    slower = sum(value > first for value in ttft[half:])
    of = len(ttft) - half
    sure = max(confidence_above(slower, of, 0.5), confidence_above(of - slower, of, 0.5))
    if sure > 0.999 and abs(second - first) > DRIFT_LIMIT * first:
        yield Caution(
            CautionKind.DRIFT,
            f"median TTFT went from {first:.0f} ms in the first half to {second:.0f} ms in the second",
            "warm up longer, or measure longer: this level was not steady",
        )


def _metrics(samples: Samples, telemetry: Telemetry | None) -> Iterator[Caution]:
    missing = "/metrics did not answer" if telemetry is None or telemetry.after is None else None
    if telemetry is not None and telemetry.after is not None and telemetry.after.preemptions is None:
        missing = "/metrics has no preemption counter"
    if missing:
        yield Caution(
            CautionKind.METRICS_MISSING,
            missing,
            "start vLLM without --disable-log-stats; preemptions cannot be ruled out",
        )


def _gpus(telemetry: Telemetry | None) -> Iterator[Caution]:
    readings = [gpu for row in telemetry.rows for gpu in row.gpus] if telemetry else []
    throttled = sorted({(g.index, reason) for g in readings for reason in g.throttled})
    if throttled:
        yield Caution(
            CautionKind.THROTTLED,
            "; ".join(f"GPU {index}: {reason}" for index, reason in throttled),
            "look at power limit and cooling (`nvidia-smi -q -d PERFORMANCE`); a cold morning would measure more",
        )
    seen = {(g.index, pid) for g in readings for pid in g.pids or ()}
    own = set(telemetry.server_pids) if telemetry else set()
    # In a container NVML may name processes by the host's numbers: then the server's cannot be identified.
    foreign = (
        sorted((index, pid) for index, pid in seen if pid not in own) if any(pid in own for _, pid in seen) else []
    )
    if foreign:
        yield Caution(
            CautionKind.FOREIGN_PROCESS,
            "; ".join(f"GPU {index}: process {pid}" for index, pid in foreign),
            "end what else runs on these GPUs, or give --gpus others",
        )


def _host(telemetry: Telemetry | None) -> Iterator[Caution]:
    rows = telemetry.rows if telemetry else ()
    foreign = [cores for row in rows if (cores := row.host.foreign_cores) is not None]
    if foreign and float(np.mean(foreign)) > FOREIGN_CORES_LIMIT:
        yield Caution(
            CautionKind.HOST_BUSY,
            f"other processes used {float(np.mean(foreign)):.1f} cores of this machine",
            "end them, or pin the server and the load to cores of their own",
        )
