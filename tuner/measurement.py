"""Samples + telemetry → Measurement: what one load level on one server showed. None is "not observed", never 0."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class LoadKind(StrEnum):
    CLOSED = "closed"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Load:
    """`level` is concurrent requests in a closed loop and requests per second in an open one."""

    kind: LoadKind
    level: float

    def __str__(self) -> str:
        return f"{self.level:g} concurrent" if self.kind is LoadKind.CLOSED else f"{self.level:g} requests/s"


@dataclass(frozen=True, slots=True)
class Distribution:
    """A latency over the requests of a level, in ms; `p99_low`/`p99_high` bound its P99 with 95 % confidence.

    A bound is None where the sample is too small to have one (an upper bound of a P99 needs about 300 requests).
    """

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
    """What the server said of itself during the level (/metrics), engines summed; `preemptions` after the drain."""

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


@dataclass(frozen=True, slots=True)
class GpuLoad:
    """NVML over the level, the GPUs of one server: means and peaks. None where the driver does not tell."""

    utilization_mean: float | None
    memory_gib_peak: float | None
    power_w_mean: float | None
    temperature_c_peak: float | None
    sm_clock_mhz_min: float | None
    throttled: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ClientLoad:
    """How the load generator itself fared: its own CPU as a share of one core, its lag and its lateness in ms."""

    cpu_share: float | None
    lag_p99_ms: float | None
    late_p99_ms: float | None
    host_cpu_share: float | None = None


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
    """Something that makes a number less sure: `detail` says what was seen, `next_step` what to do about it."""

    kind: CautionKind
    detail: str
    next_step: str


@dataclass(frozen=True, slots=True)
class Measurement:
    """One level. Requests are counted over the whole level, `qps` over `window_s` (after the ramp, before the drain).

    `failed` counts by kind of failure (HTTP status, error chunk, broken stream, timeout, shortened output).
    `aborted` says why the level was ended early, None when it ran its time.
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
    aborted: str | None = None
    cautions: tuple[Caution, ...] = ()

    @property
    def failed_total(self) -> int:
        return sum(count for _, count in self.failed)
