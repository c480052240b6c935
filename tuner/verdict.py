"""Measurement × SLOs → feasible, infeasible by how much, undecided or invalid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tuner.load.backlog import GROWS
from tuner.load.quantiles import confidence_above, confidence_below
from tuner.measurement import Attainment, Distribution, Measurement
from tuner.slo import Metric, Slo
from tuner.telemetry.cautions import CLIENT_CPU_LIMIT, lag_limit_ms

FEWEST_REQUESTS = 100
"""Fewest requests with a P99. That of fewer is their maximum."""

LAG_INVALID_MS = 20.0
LAG_INVALID_SHARE = 0.05
"""Share of the tightest TTFT limit that the client may lag. 20 ms are allowed anyway (docs/measuring.md)."""

LAG_INFLATION = 2.0
"""Inflation of P99 TTFT per P99 lag (docs/measuring.md)."""


KEEPS_UP = 0.97
KEEPS_UP_SIGMA = 3.0
"""Minimum share of offered requests that must complete in the second half, with three sigma of slack. Arrivals are
Poisson, and so are the requests in flight at either end of the window."""


class Outcome(StrEnum):
    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNDECIDED = "undecided"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Meaning of a level. `reasons` are one line each, empty only if feasible.

    `slo_margin` is ln(measured / limit) of the tightest limit: negative if kept, None if not observed. `confidence`
    (0..1) is the sample's, None if unknown. `missing_requests` is what an undecided level lacks.
    """

    outcome: Outcome
    reasons: tuple[str, ...] = ()
    slo_margin: float | None = None
    confidence: float | None = None
    missing_requests: int = 0


def judge(measurement: Measurement, slos: Sequence[Slo]) -> Verdict:
    """Judge a level. Feasible means: all limits kept on enough requests, no failure, no preemption, no backlog.

    A preemption or a failed request is the server's, whatever the client did. Then comes the client: latencies that
    it distorted are invalid. A level that cannot pass any more is infeasible however few its requests.
    """
    attainments = [_attainment(measurement, slo) for slo in slos]
    margin = max((m for a in attainments if (m := _margin(a)) is not None), default=None)
    seen = _seen(measurement)
    if not seen and (reasons := _client_faults(measurement, attainments)):
        return Verdict(Outcome.INVALID, reasons, margin)
    if reasons := (*seen, *_broken(attainments)):
        return Verdict(Outcome.INFEASIBLE, reasons, margin, _confidence_infeasible(measurement, attainments))
    if reasons := _left_behind(measurement):
        return Verdict(Outcome.INFEASIBLE, reasons, margin)
    missing = max((FEWEST_REQUESTS - a.counted for a in attainments), default=FEWEST_REQUESTS - measurement.completed)
    if reasons := _open_questions(measurement, missing):
        return Verdict(Outcome.UNDECIDED, reasons, margin, None, max(0, missing))
    sure = [confidence_below(a.violations, a.counted, 1 - a.slo.quantile) for a in attainments]
    return Verdict(Outcome.FEASIBLE, (), margin, min(sure, default=None))


def passes(measurement: Measurement, verdict: Verdict) -> bool:
    """Return True if a level kept everything that it showed. It may be undecided for want of requests or a counter.

    At a fraction of a request per second no time brings the hundred requests of a P99.
    """
    if verdict.outcome is not Outcome.UNDECIDED:
        return verdict.outcome is Outcome.FEASIBLE
    return measurement.aborted is None and measurement.completed > 0 and (verdict.slo_margin or 0.0) <= 0


def most_violations(requests: int, slo: Slo) -> int:
    """Return how many violations the quantile allows."""
    return math.floor(round((1 - slo.quantile) * requests, 9))


def _client_faults(measurement: Measurement, attainments: Sequence[Attainment]) -> tuple[str, ...]:
    client = measurement.client
    reasons = []
    if client.cpu_share is not None and client.cpu_share > CLIENT_CPU_LIMIT:
        reasons.append(f"the load generator used {client.cpu_share:.0%} of its core: it was the bottleneck")
    lag_ms = max(client.lag_p99_ms or 0.0, client.late_p99_ms or 0.0)
    tightest_ms = min((a.slo.limit_ms for a in attainments if a.slo.metric is Metric.TTFT), default=0.0)
    if lag_ms > max(LAG_INVALID_MS, LAG_INVALID_SHARE * tightest_ms):
        reasons.append(f"the load generator was {lag_ms:.0f} ms late at P99")
    if lag_ms > lag_limit_ms([a.slo for a in attainments]) and measurement.aborted is None:
        reasons.extend(
            f"{a.slo} is broken by less than the load generator's own lag of {lag_ms:.1f} ms may add"
            for a in attainments
            if a.value_ms is not None and a.slo.limit_ms < a.value_ms <= a.slo.limit_ms + LAG_INFLATION * lag_ms
        )
    return tuple(reasons)


def _seen(measurement: Measurement) -> tuple[str, ...]:
    """List the faults that no client can cause."""
    reasons = [f"{count} requests failed: {kind}" for kind, count in measurement.failed]
    if measurement.server.preemptions:
        reasons.append(f"{measurement.server.preemptions} preemptions")
    return tuple(reasons)


def _broken(attainments: Sequence[Attainment]) -> tuple[str, ...]:
    return tuple(
        f"{a.slo} is broken: "
        + (f"{a.value_ms:.0f}ms over {a.counted} requests" if a.value_ms is not None else "too many were not answered")
        for a in attainments
        if a.violations > most_violations(max(a.counted, FEWEST_REQUESTS), a.slo)
    )


def _left_behind(measurement: Measurement) -> tuple[str, ...]:
    """Find a server that falls behind. Fast first tokens do not show it; unfinished answers do."""
    if measurement.aborted == GROWS:
        return (GROWS,)
    half = measurement.second_half
    if measurement.aborted is not None or half is None:
        return ()
    short = half.offered - half.completed
    chance = KEEPS_UP_SIGMA * math.sqrt(half.offered + 2 * half.open_before)
    if short <= max((1 - KEEPS_UP) * half.offered, chance):
        return ()
    return (f"the server did not keep up: it completed {half.completed} of {half.offered} in the second half",)


def _open_questions(measurement: Measurement, missing: int) -> tuple[str, ...]:
    reasons = []
    if measurement.aborted is not None:
        reasons.append(f"ended early: {measurement.aborted}")
    if measurement.server.preemptions is None:
        reasons.append("preemptions were not observed: /metrics did not tell")
    if missing > 0:
        reasons.append(f"{missing} requests are missing: {FEWEST_REQUESTS} are the fewest that have a P99")
    return tuple(reasons)


def _confidence_infeasible(measurement: Measurement, attainments: Sequence[Attainment]) -> float:
    if measurement.failed or measurement.server.preemptions:
        return 1.0  # seen, not inferred
    return max(confidence_above(a.violations, a.counted, 1 - a.slo.quantile) for a in attainments if a.counted)


def _margin(attainment: Attainment) -> float | None:
    if attainment.value_ms is None:
        return None
    return math.log(max(attainment.value_ms, 1e-3) / attainment.slo.limit_ms)


def _attainment(measurement: Measurement, slo: Slo) -> Attainment:
    """Return the measured attainment. Records without it get the nearest that their percentiles allow."""
    for attainment in measurement.attainments:
        if attainment.slo == slo:
            return attainment
    found: Distribution | None = {
        Metric.TTFT: measurement.ttft_ms,
        Metric.TPOT: measurement.tpot_ms,
        Metric.ITL: measurement.itl_ms,
        Metric.E2E: measurement.e2e_ms,
    }[slo.metric]
    if found is None:
        return Attainment(slo, 0, 0, None)
    value_ms = next((v for q, v in _percentiles(found) if q >= slo.quantile), found.max)
    most = most_violations(found.count, slo)
    return Attainment(slo, found.count, most + 1 if value_ms > slo.limit_ms else most, value_ms)


def _percentiles(found: Distribution) -> tuple[tuple[float, float], ...]:
    return ((0.50, found.p50), (0.90, found.p90), (0.95, found.p95), (0.99, found.p99))
