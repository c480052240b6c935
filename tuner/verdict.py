"""Measurement × SLOs → feasible, infeasible by how much, undecided or invalid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum, auto

from tuner.load.early_end import BACKLOG_GROWS, EARLY_ENDS, EarlyEnd, EarlyEndKind
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


class ReasonKind(StrEnum):
    """Kind of a reason, with the meaning of its `value` and `of`."""

    CLIENT_BUSY = "client-busy"
    CLIENT_LATE = "client-late"
    WITHIN_CLIENT_LAG = "within-client-lag"
    OTHERS_BUSY = "others-busy"
    GPU_THROTTLED = "gpu-throttled"
    GPU_SHARED = "gpu-shared"
    MEASURED_AGAIN = "measured-again"
    REQUESTS_FAILED = "requests-failed"
    PREEMPTIONS = "preemptions"
    LIMIT_BROKEN = "limit-broken"
    UNANSWERED = "unanswered"
    BACKLOG_GROWS = "backlog-grows"
    FELL_BEHIND = "fell-behind"
    ENDED_EARLY = "ended-early"
    PREEMPTIONS_UNKNOWN = "preemptions-unknown"
    REQUESTS_MISSING = "requests-missing"
    RECORDED = "recorded"


REASONS = {
    ReasonKind.CLIENT_BUSY: "the load generator used {value:.0%} of its core: it was the bottleneck",
    ReasonKind.CLIENT_LATE: "the load generator was {value:.0f} ms late at P99",
    ReasonKind.WITHIN_CLIENT_LAG: "{subject} is broken by less than the client's own lag of {value:.1f} ms may add",
    ReasonKind.OTHERS_BUSY: "other programs took {value:.1f} cores, and {of:.1f} at the quietest level",
    ReasonKind.GPU_THROTTLED: "GPU {value:.0f} was throttled: {subject}",
    ReasonKind.GPU_SHARED: "another process computed on GPU {value:.0f}: {subject}",
    ReasonKind.MEASURED_AGAIN: "it was measured again",
    ReasonKind.REQUESTS_FAILED: "{value:.0f} requests failed: {subject}",
    ReasonKind.PREEMPTIONS: "{value:.0f} preemptions",
    ReasonKind.LIMIT_BROKEN: "{subject} is broken: {value:.0f}ms over {of:.0f} requests",
    ReasonKind.UNANSWERED: "{subject} is broken: too many were not answered",
    ReasonKind.BACKLOG_GROWS: EARLY_ENDS[EarlyEndKind.BACKLOG_GROWS],
    ReasonKind.FELL_BEHIND: "the server did not keep up: it completed {value:.0f} of {of:.0f} in the second half",
    ReasonKind.ENDED_EARLY: "ended early: {ended}",
    ReasonKind.PREEMPTIONS_UNKNOWN: "preemptions were not observed: /metrics did not tell",
    ReasonKind.REQUESTS_MISSING: "{value:.0f} requests are missing: {of:.0f} are the fewest that have a P99",
    ReasonKind.RECORDED: "{subject}",
}
"""English text of each kind. The report has the Chinese one (report/phrases.py)."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Reason why a level is not feasible.

    Attributes:
        value, of: Figures of the sentence.
        subject: A limit, a kind of failure, or the text of schema 1.
        ended: Early end of the level, for `ENDED_EARLY`.
    """

    kind: ReasonKind
    value: float | None = None
    of: float | None = None
    subject: str = ""
    ended: EarlyEnd | None = None

    def __str__(self) -> str:
        return self.said(REASONS, EARLY_ENDS)

    def said(self, texts: Mapping[ReasonKind, str], ends: Mapping[EarlyEndKind, str]) -> str:
        """Put it into the words of `texts`, and its early end into those of `ends`."""
        ended = "" if self.ended is None else self.ended.said(ends)
        return texts[self.kind].format(value=self.value, of=self.of, subject=self.subject, ended=ended)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Meaning of a level. `reasons` are empty only if feasible.

    `slo_margin` is ln(measured / limit) of the tightest limit: negative if kept, None if not observed. `confidence`
    (0..1) is the sample's, None if unknown. `missing_requests` is what an undecided level lacks.
    """

    outcome: Outcome
    reasons: tuple[Reason, ...] = ()
    slo_margin: float | None = None
    confidence: float | None = None
    missing_requests: int = 0


def judge(measurement: Measurement, slos: Sequence[Slo]) -> Verdict:
    """Judge a level. Feasible means: all limits kept on enough requests, no failure, no preemption, no backlog.

    If the client stood still or lacked sockets, whatever failed is its own. Else a preemption or a failed request is
    the server's. Then comes the client's lag: latencies that it distorted are invalid. A level that cannot pass any
    more is infeasible however few its requests.
    """
    attainments = [_attainment(measurement, slo) for slo in slos]
    margin = max((m for a in attainments if (m := _margin(a)) is not None), default=None)
    seen = () if _stood_still(measurement) else _seen(measurement)
    if not seen and (reasons := client_faults(measurement, slos) or _within_lag(measurement, attainments)):
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


class Evidence(Enum):
    """Evidence that an undecided level must have, beside everything that it showed."""

    NONE = auto()
    """Few requests count, and so do unseen preemptions. At a fraction of a request per second no time brings 100."""
    ENOUGH_REQUESTS = auto()
    """Unseen preemptions count: not every engine tells them."""
    PREEMPTIONS_SEEN = auto()
    """Few requests count. No promise is made without a preemption counter."""


def kept_limits(measurement: Measurement, verdict: Verdict, needed: Evidence) -> bool:
    """Return True if a level kept everything that it showed, and has the evidence that is needed."""
    if verdict.outcome is Outcome.UNDECIDED:
        shown = measurement.aborted is None and measurement.completed > 0 and (verdict.slo_margin or 0.0) <= 0
    else:
        shown = verdict.outcome is Outcome.FEASIBLE
    match needed:
        case Evidence.NONE:
            return shown
        case Evidence.ENOUGH_REQUESTS:
            return shown and verdict.missing_requests == 0
        case Evidence.PREEMPTIONS_SEEN:
            return shown and measurement.server.preemptions is not None


def most_violations(requests: int, slo: Slo) -> int:
    """Return how many violations the quantile allows."""
    return math.floor(round((1 - slo.quantile) * requests, 9))


def lag_invalid_ms(slos: Sequence[Slo]) -> float:
    """Return the lateness from which the client says nothing of the server."""
    tightest_ms = min((slo.limit_ms for slo in slos if slo.metric is Metric.TTFT), default=0.0)
    return max(LAG_INVALID_MS, LAG_INVALID_SHARE * tightest_ms)


def client_faults(measurement: Measurement, slos: Sequence[Slo]) -> tuple[Reason, ...]:
    """List what the client did wrong, whatever the server did."""
    if _stood_still(measurement):
        return (Reason(ReasonKind.ENDED_EARLY, ended=measurement.aborted),)
    reasons = []
    if (share := measurement.client.cpu_share) is not None and share > CLIENT_CPU_LIMIT:
        reasons.append(Reason(ReasonKind.CLIENT_BUSY, share))
    if (lag_ms := _lag_ms(measurement)) > lag_invalid_ms(slos):
        reasons.append(Reason(ReasonKind.CLIENT_LATE, lag_ms))
    return tuple(reasons)


def failed_alone(measurement: Measurement) -> bool:
    """Return True if nothing but failed requests speaks against a level."""
    failed = measurement.failed_total
    return (
        failed > 0
        and not measurement.server.preemptions
        and not _left_behind(measurement)
        and all(
            a.violations - failed <= most_violations(max(a.counted, FEWEST_REQUESTS), a.slo)
            for a in measurement.attainments
        )
    )


def _stood_still(measurement: Measurement) -> bool:
    """Return True if the client stood still or lacked sockets. Whatever failed is its own then."""
    return measurement.aborted is not None and measurement.aborted.is_the_clients


def _lag_ms(measurement: Measurement) -> float:
    return max(measurement.client.lag_p99_ms or 0.0, measurement.client.late_p99_ms or 0.0)


def _within_lag(measurement: Measurement, attainments: Sequence[Attainment]) -> tuple[Reason, ...]:
    lag_ms = _lag_ms(measurement)
    if lag_ms <= lag_limit_ms([a.slo for a in attainments]) or measurement.aborted is not None:
        return ()
    return tuple(
        Reason(ReasonKind.WITHIN_CLIENT_LAG, lag_ms, subject=str(a.slo))
        for a in attainments
        if a.value_ms is not None and a.slo.limit_ms < a.value_ms <= a.slo.limit_ms + LAG_INFLATION * lag_ms
    )


def _seen(measurement: Measurement) -> tuple[Reason, ...]:
    """List the faults that no client can cause."""
    words = dict(measurement.failure_words)
    reasons = [
        Reason(ReasonKind.REQUESTS_FAILED, float(count), subject=f"{kind}: {words[kind]}" if kind in words else kind)
        for kind, count in measurement.failed
    ]
    if measurement.server.preemptions:
        reasons.append(Reason(ReasonKind.PREEMPTIONS, float(measurement.server.preemptions)))
    return tuple(reasons)


def _broken(attainments: Sequence[Attainment]) -> tuple[Reason, ...]:
    return tuple(
        Reason(ReasonKind.UNANSWERED, subject=str(a.slo))
        if a.value_ms is None
        else Reason(ReasonKind.LIMIT_BROKEN, a.value_ms, float(a.counted), str(a.slo))
        for a in attainments
        if a.violations > most_violations(max(a.counted, FEWEST_REQUESTS), a.slo)
    )


def _left_behind(measurement: Measurement) -> tuple[Reason, ...]:
    """Find a server that falls behind. Fast first tokens do not show it; unfinished answers do."""
    if measurement.aborted == BACKLOG_GROWS:
        return (Reason(ReasonKind.BACKLOG_GROWS),)
    half = measurement.second_half
    if measurement.aborted is not None or half is None:
        return ()
    short = half.offered - half.completed
    chance = KEEPS_UP_SIGMA * math.sqrt(half.offered + 2 * half.open_before)
    if short <= max((1 - KEEPS_UP) * half.offered, chance):
        return ()
    return (Reason(ReasonKind.FELL_BEHIND, float(half.completed), float(half.offered)),)


def _open_questions(measurement: Measurement, missing: int) -> tuple[Reason, ...]:
    reasons = []
    if measurement.aborted is not None:
        reasons.append(Reason(ReasonKind.ENDED_EARLY, ended=measurement.aborted))
    if measurement.server.preemptions is None:
        reasons.append(Reason(ReasonKind.PREEMPTIONS_UNKNOWN))
    if missing > 0:
        reasons.append(Reason(ReasonKind.REQUESTS_MISSING, float(missing), float(FEWEST_REQUESTS)))
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
