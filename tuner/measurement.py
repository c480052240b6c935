"""Samples + telemetry → Measurement of one load level. None is "not observed", never 0."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from tuner.formatting import significant
from tuner.load.backlog import FEWEST_S
from tuner.load.drive import Samples
from tuner.load.early_end import EarlyEnd
from tuner.load.quantiles import Values, interval, order_statistic
from tuner.load.stream import Failure, RequestSample
from tuner.slo import Metric, Slo
from tuner.telemetry.cautions import Caution as Caution
from tuner.telemetry.cautions import CautionKind as CautionKind
from tuner.telemetry.cautions import cautions
from tuner.telemetry.prometheus import deltas
from tuner.telemetry.sampler import Telemetry

WINDOW_CUT = 2.5
"""Mean answer times until a server is filled (docs/measuring.md)."""


class LoadKind(StrEnum):
    CLOSED = "closed"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Load:
    """Load level. `level` is concurrent requests in a closed loop, requests per second in an open one."""

    kind: LoadKind
    level: float

    def __str__(self) -> str:
        return f"{self.level:g} concurrent" if self.kind is LoadKind.CLOSED else f"{significant(self.level)} requests/s"


@dataclass(frozen=True, slots=True)
class Distribution:
    """Latency over the requests of a level, in ms. `p99_low` and `p99_high` bound its P99 with 95 % confidence. A
    bound is None if the sample is too small: an upper bound of a P99 needs 368 requests."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    p99_low: float | None
    p99_high: float | None


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """The server's own figures of the level, engines summed. `preemptions` is read after the drain."""

    preemptions: int | None = None
    kv_usage_peak: float | None = None
    kv_usage_mean: float | None = None
    running_peak: float | None = None
    running_mean: float | None = None
    waiting_peak: float | None = None
    waiting_mean: float | None = None
    prefix_hit_rate: float | None = None
    queue_ms_mean: float | None = None
    requests_succeeded: int | None = None
    prompt_tokens: int | None = None
    generation_tokens: int | None = None
    request_preemptions: int | None = None
    ttft_ms_mean: float | None = None


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """Means and peaks of one server's GPUs, from NVML. None if the driver does not tell."""

    utilization_mean: float | None
    memory_gib_peak: float | None
    power_w_mean: float | None
    temperature_c_peak: float | None
    sm_clock_mhz_min: float | None
    throttled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClientLoad:
    """State of the load generator. `cpu_share` is of one core, lag and lateness are in ms."""

    cpu_share: float | None
    lag_p99_ms: float | None
    late_p99_ms: float | None
    host_cpu_share: float | None = None


@dataclass(frozen=True, slots=True)
class Attainment:
    """Result for one SLO. `violations` of `counted` requests exceeded it; `value_ms` is the quantile itself.

    Failed requests violate it, and so do requests that were cut off unanswered after the limit. Those cut off before
    it do not count. `value_ms` is None if nothing was counted, or if too much failed. With requests cut off it is a
    lower bound.
    """

    slo: Slo
    counted: int
    violations: int
    value_ms: float | None


@dataclass(frozen=True, slots=True)
class Throughput:
    """Second half of an open-loop level, in requests."""

    seconds: float
    offered: int
    completed: int
    open_before: int


@dataclass(frozen=True, slots=True)
class Measurement:
    """One level. Requests count over the whole level, `qps` over `window_s` (after the ramp, before the drain).

    `failed` counts by kind: HTTP status, error chunk, broken stream, timeout, shortened output. `failure_words` are the
    server's own of the first failure of a kind. `aborted` is None if
    the level ran its time. `second_half` is None for a closed loop, and for a level too short to fill the server by
    its middle.
    """

    load: Load
    seed: int
    planned_s: float
    window_s: float
    sent: int
    completed: int
    failed: tuple[tuple[str, int], ...]
    qps: float | None
    output_tokens_per_s: float | None
    prompt_tokens: int
    output_tokens: int
    ttft_ms: Distribution | None
    tpot_ms: Distribution | None
    itl_ms: Distribution | None
    e2e_ms: Distribution | None
    server: ServerLoad
    client: ClientLoad
    gpu: GpuLoad | None = None
    aborted: EarlyEnd | None = None
    cautions: tuple[Caution, ...] = ()
    attainments: tuple[Attainment, ...] = ()
    second_half: Throughput | None = None
    failure_words: tuple[tuple[str, str], ...] = ()

    @property
    def failed_total(self) -> int:
        return sum(count for _, count in self.failed)


def measure(
    samples: Samples, telemetry: Telemetry | None, load: Load, *, seed: int = 0, slos: Sequence[Slo] = ()
) -> Measurement:
    """Summarise one level without a verdict."""
    completed = [r for r in samples.requests if r.failure is None]
    window_ns = _window(samples, completed)
    finished = [r for r in completed if r.last_ns is not None and window_ns[0] <= r.last_ns < window_ns[1]]
    window_s = (window_ns[1] - window_ns[0]) / 1e9
    server = _server_load(telemetry)
    return Measurement(
        load=load,
        seed=seed,
        planned_s=samples.planned_s,
        window_s=window_s,
        sent=len(samples.requests),
        completed=len(completed),
        failed=_failures(samples.requests),
        qps=len(finished) / window_s if window_s > 0 else None,
        output_tokens_per_s=sum(r.output_tokens or 0 for r in finished) / window_s if window_s > 0 else None,
        prompt_tokens=sum(r.prompt_tokens or 0 for r in completed),
        output_tokens=sum(r.output_tokens or 0 for r in completed),
        ttft_ms=distribution(latencies_ms(completed, Metric.TTFT)),
        tpot_ms=distribution(latencies_ms(completed, Metric.TPOT)),
        itl_ms=distribution(latencies_ms(completed, Metric.ITL)),
        e2e_ms=distribution(latencies_ms(completed, Metric.E2E)),
        server=server,
        client=_client_load(samples, telemetry),
        gpu=_gpu_load(telemetry),
        aborted=samples.aborted,
        cautions=cautions(samples, telemetry, slos),
        attainments=tuple(attainment(samples.requests, slo) for slo in slos),
        second_half=_second_half(samples) if load.kind is LoadKind.OPEN else None,
        failure_words=_failure_words(samples.requests),
    )


def latencies_ms(requests: Iterable[RequestSample], metric: Metric) -> Values:
    """Return one latency of each request, ascending. TTFT and E2E count from when the request was due. TPOT is (last
    - first) / (tokens - 1), so requests of one token have none. ITL are the gaps between chunks with tokens."""
    values: list[float] = []
    for r in requests:
        if r.first_ns is None or r.last_ns is None:
            continue
        if metric is Metric.TTFT:
            values.append((r.first_ns - r.due_ns) / 1e6)
        elif metric is Metric.E2E:
            values.append((r.last_ns - r.due_ns) / 1e6)
        elif metric is Metric.ITL:
            values.extend(np.diff(r.token_ns) / 1e6)
        elif r.output_tokens is not None and r.output_tokens > 1:
            values.append((r.last_ns - r.first_ns) / 1e6 / (r.output_tokens - 1))
    return np.sort(np.asarray(values, dtype=np.float64))


def distribution(ordered: Values) -> Distribution | None:
    """Summarise values. None for no values: a percentile of no requests is not 0 ms."""
    if len(ordered) == 0:
        return None
    low, high = interval(ordered, 0.99)
    return Distribution(
        count=len(ordered),
        mean=float(ordered.mean()),
        p50=order_statistic(ordered, 0.50),
        p90=order_statistic(ordered, 0.90),
        p95=order_statistic(ordered, 0.95),
        p99=order_statistic(ordered, 0.99),
        max=float(ordered[-1]),
        p99_low=low,
        p99_high=high,
    )


def attainment(requests: Iterable[RequestSample], slo: Slo) -> Attainment:
    """Count every request once. Of ITL its largest gap counts."""
    known = [value for r in requests if (value := _against(r, slo)) is not None]
    ordered = np.sort(np.asarray(known, dtype=np.float64))
    value = order_statistic(ordered, slo.quantile) if len(ordered) else None
    return Attainment(
        slo=slo,
        counted=len(ordered),
        violations=int((ordered > slo.limit_ms).sum()),
        value_ms=value if value is not None and np.isfinite(value) else None,
    )


def _against(request: RequestSample, slo: Slo) -> float | None:
    """Return the latency against a limit, in ms. Infinite for a failure, None if it is unknown."""
    if request.failure in (Failure.CUT, Failure.TIMEOUT):
        waited = (request.end_ns - request.due_ns) / 1e6
        open_ended = slo.metric is Metric.E2E or (slo.metric is Metric.TTFT and request.first_ns is None)
        if open_ended and (waited > slo.limit_ms or request.failure is Failure.TIMEOUT):
            return waited
        if request.failure is Failure.TIMEOUT:
            return float("inf")
        return (
            float(latencies_ms([request], Metric.TTFT)[0]) if slo.metric is Metric.TTFT and request.first_ns else None
        )
    if request.failure is not None:
        return float("inf")
    values = latencies_ms([request], slo.metric)
    return float(values[-1]) if len(values) else None


def _window(samples: Samples, completed: Sequence[RequestSample]) -> tuple[int, int]:
    """Return the window from filled server to last sending. It leaves out at most the first third."""
    answers_ns = [r.last_ns - r.due_ns for r in completed if r.last_ns is not None]
    fill_ns = max(WINDOW_CUT * float(np.mean(answers_ns)) if answers_ns else 0.0, samples.ramp_s * 1e9)
    length_ns = samples.ended_ns - samples.started_ns
    return samples.started_ns + round(min(fill_ns, length_ns / 3)), samples.ended_ns


def _second_half(samples: Samples) -> Throughput | None:
    """Count the second half, if the server is full then. That is judged by the answers to the first third. Later
    answers grow with the very backlog that this is to show."""
    length_ns = samples.ended_ns - samples.started_ns
    if length_ns < FEWEST_S * 1e9:
        return None
    middle_ns, third_ns = samples.ended_ns - length_ns // 2, samples.started_ns + length_ns // 3
    early_ns = [r.end_ns - r.due_ns for r in samples.requests if r.due_ns < third_ns]
    if not early_ns or WINDOW_CUT * float(np.mean(early_ns)) > middle_ns - samples.started_ns:
        return None
    due = np.asarray([r.due_ns for r in samples.requests])
    end = np.asarray([r.end_ns for r in samples.requests])
    return Throughput(
        seconds=(samples.ended_ns - middle_ns) / 1e9,
        offered=int(((due >= middle_ns) & (due < samples.ended_ns)).sum()),
        completed=int(((end >= middle_ns) & (end < samples.ended_ns)).sum()),
        open_before=int(((due < middle_ns) & (end >= middle_ns)).sum()),
    )


def _failures(requests: Iterable[RequestSample]) -> tuple[tuple[str, int], ...]:
    counts: dict[str, int] = {}
    for r in requests:
        if r.failure_kind is not None and r.failure is not Failure.CUT:
            counts[r.failure_kind] = counts.get(r.failure_kind, 0) + 1
    return tuple(sorted(counts.items()))


def _failure_words(requests: Iterable[RequestSample]) -> tuple[tuple[str, str], ...]:
    words: dict[str, str] = {}
    for r in requests:
        if r.failure_kind is not None and r.error:
            words.setdefault(r.failure_kind, r.error)
    return tuple(sorted(words.items()))


def _server_load(telemetry: Telemetry | None) -> ServerLoad:
    if telemetry is None:
        return ServerLoad()
    rise = deltas(telemetry.before, telemetry.after)
    scrapes = [row.server for row in telemetry.rows if row.server is not None]
    kv, running, waiting = ([s.kv_usage for s in scrapes], [s.running for s in scrapes], [s.waiting for s in scrapes])
    return ServerLoad(
        preemptions=rise.preemptions,
        kv_usage_peak=_peak(kv),
        kv_usage_mean=_mean(kv),
        running_peak=_peak(running),
        running_mean=_mean(running),
        waiting_peak=_peak(waiting),
        waiting_mean=_mean(waiting),
        prefix_hit_rate=rise.prefix_hit_rate,
        queue_ms_mean=rise.queue_ms_mean,
        requests_succeeded=rise.succeeded,
        prompt_tokens=rise.prompt_tokens,
        generation_tokens=rise.generation_tokens,
        request_preemptions=rise.request_preemptions,
        ttft_ms_mean=rise.server_ttft_ms_mean,
    )


def _gpu_load(telemetry: Telemetry | None) -> GpuLoad | None:
    readings = [gpu for row in telemetry.rows for gpu in row.gpus] if telemetry else []
    if not readings:
        return None
    memory = _peak([g.memory_used_bytes for g in readings])
    return GpuLoad(
        utilization_mean=_mean([g.utilization for g in readings]),
        memory_gib_peak=None if memory is None else memory / 2**30,
        power_w_mean=_mean([g.power_w for g in readings]),
        temperature_c_peak=_peak([g.temperature_c for g in readings]),
        sm_clock_mhz_min=min((g.sm_clock_mhz for g in readings if g.sm_clock_mhz is not None), default=None),
        throttled=tuple(sorted({reason for g in readings for reason in g.throttled})),
    )


def _client_load(samples: Samples, telemetry: Telemetry | None) -> ClientLoad:
    rows = telemetry.rows if telemetry else ()
    return ClientLoad(
        cpu_share=samples.client.cpu_share,
        lag_p99_ms=samples.client.lag_p99_ms,
        late_p99_ms=samples.client.late_p99_ms,
        host_cpu_share=_mean([row.host.cpu_share for row in rows]),
    )


def _peak(values: Iterable[float | None]) -> float | None:
    return max((float(v) for v in values if v is not None), default=None)


def _mean(values: Iterable[float | None]) -> float | None:
    seen = [v for v in values if v is not None]
    return float(np.mean(seen)) if seen else None
