"""Thread that samples server, GPUs and host together."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tuner.telemetry.gpu import GpuAdapter, GpuReading, NoGpu
from tuner.telemetry.host import Host, HostReading
from tuner.telemetry.prometheus import COUNTERS, Scrape, scrape

INTERVAL_S = 0.5
SETTLE_S = 3.0
SETTLE_STEP_S = 0.25
STILL_S = 5.0


@dataclass(frozen=True, slots=True)
class Row:
    """One moment. `server` is None if /metrics did not answer; `gpus` is empty without GPUs."""

    at_ns: int
    server: Scrape | None
    gpus: tuple[GpuReading, ...]
    host: HostReading


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Telemetry of a level, with idle scrapes around it."""

    rows: tuple[Row, ...]
    before: Scrape | None
    after: Scrape | None
    server_pids: tuple[int, ...] = ()


class Sampler:
    """Sampler of one running server. `metrics_url` is its /metrics; `gpu_indices` are NVML's."""

    def __init__(
        self,
        metrics_url: str,
        *,
        gpu: GpuAdapter | None = None,
        gpu_indices: Sequence[int] = (),
        server_pid: int | None = None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self.metrics_url = metrics_url
        self.gpu: GpuAdapter = gpu or NoGpu()
        self.gpu_indices = tuple(gpu_indices)
        self.server_pid = server_pid
        self.interval_s = interval_s

    def start(self) -> Recording:
        return Recording(self)

    def wait_until_idle(self, limit_s: float) -> bool:
        """Wait up to `limit_s` for an idle server. Returns False if time ran out.

        A server without metrics counts as idle. vLLM updates its gauges only in a step: after aborts an idle engine
        goes on showing what it last ran. So the server also counts as idle if no token was processed for `STILL_S`.
        """
        deadline, still_since, tokens = time.monotonic() + limit_s, time.monotonic(), (-1.0, -1.0)
        while (now := scrape(self.metrics_url)) is not None and not now.idle:
            processed = (now.prompt_tokens or 0.0, now.generation_tokens or 0.0)
            if processed != tokens:
                still_since, tokens = time.monotonic(), processed
            if time.monotonic() - still_since >= STILL_S:
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(SETTLE_STEP_S)
        return True


class Recording:
    """Recording of one level, from construction until `finish`."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._host = Host(sampler.server_pid)
        self._before = scrape(sampler.metrics_url)
        self._rows: list[Row] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    @property
    def preemptions(self) -> int | None:
        """Return the preemptions so far. The counter can still rise until the level has drained."""
        latest = self._rows[-1].server if self._rows else None
        if latest is None or latest.preemptions is None or self._before is None:
            return None
        return round(latest.preemptions - (self._before.preemptions or 0.0))

    def finish(self) -> Telemetry:
        """End the recording after the last answer. Waits until the counters stand still, at most `SETTLE_S`."""
        self._stopped.set()
        self._thread.join()
        return Telemetry(tuple(self._rows), self._before, self._settled(), self._host.server_pids)

    def _settled(self) -> Scrape | None:
        deadline = time.monotonic() + SETTLE_S
        last = scrape(self._sampler.metrics_url)
        while last is not None and time.monotonic() < deadline:
            time.sleep(SETTLE_STEP_S)
            now = scrape(self._sampler.metrics_url)
            if now is None or all(getattr(now, name) == getattr(last, name) for name in COUNTERS):
                return now
            last = now
        return last

    def _run(self) -> None:
        sampler = self._sampler
        next_s = time.monotonic() + sampler.interval_s
        while not self._stopped.wait(max(0.0, next_s - time.monotonic())):
            next_s += sampler.interval_s
            server = scrape(sampler.metrics_url)
            gpus = sampler.gpu.read(sampler.gpu_indices)
            self._rows.append(Row(time.monotonic_ns(), server, gpus, self._host.read()))


class TelemetryLog:
    """Writer of telemetry.parquet, a row per moment and GPU. gpu is -1 if there is none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: dict[str, list[object]] = {}

    def add(self, level: float, telemetry: Telemetry) -> None:
        """Append a level and write the whole file again."""
        for row in telemetry.rows:
            for gpu in row.gpus or (GpuReading(-1, None, None, None, None, None),):
                for name, value in _cells(level, row, gpu).items():
                    self._columns.setdefault(name, []).append(value)
        if self._columns:
            temporary = self._path.with_name(f".{self._path.name}.tmp")
            pq.write_table(pa.table(self._columns), temporary, compression="zstd")
            temporary.replace(self._path)


def _cells(level: float, row: Row, gpu: GpuReading) -> dict[str, object]:
    server = row.server or Scrape(row.at_ns)
    return {
        "level": float(level),
        "at_ns": row.at_ns,
        "running": server.running,
        "waiting": server.waiting,
        "kv_usage": server.kv_usage,
        **{name: getattr(server, name) for name in COUNTERS},
        "gpu": gpu.index,
        "gpu_utilization": gpu.utilization,
        "gpu_memory_used_bytes": gpu.memory_used_bytes,
        "gpu_power_w": gpu.power_w,
        "gpu_temperature_c": gpu.temperature_c,
        "gpu_sm_clock_mhz": gpu.sm_clock_mhz,
        "gpu_throttled": ",".join(gpu.throttled),
        "host_cpu_share": row.host.cpu_share,
        "client_cores": row.host.client_cores,
        "server_cores": row.host.server_cores,
        "memory_available_bytes": row.host.memory_available_bytes,
    }
