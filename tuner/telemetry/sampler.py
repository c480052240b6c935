"""Thread that samples servers, GPUs and host together."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tuner.telemetry.gpu import GpuAdapter, GpuReading, NoGpu
from tuner.telemetry.host import Host, HostReading
from tuner.telemetry.prometheus import COUNTERS, TRIES, Page, Scrape, deltas, engines, parsed, read_page, summed, totals

INTERVAL_S = 0.5
SETTLE_S = 3.0
SETTLE_STEP_S = 0.25
STILL_S = 5.0


@dataclass(frozen=True, slots=True)
class Watched:
    """One server to sample.

    `metrics_url` is its /metrics, `gpu_indices` are NVML's. Its `engines` share the GPUs evenly. `api_key` goes with
    every scrape; `insecure` accepts any certificate.
    """

    metrics_url: str
    gpu_indices: tuple[int, ...] = ()
    engines: int = 1
    api_key: str | None = None
    insecure: bool = False

    def page(self, tries: int = 1) -> Page | None:
        """Read /metrics."""
        return read_page(self.metrics_url, tries=tries, api_key=self.api_key, insecure=self.insecure)

    def gpus_of(self, engine: int) -> tuple[int, ...]:
        """Return the GPUs of one engine."""
        each = len(self.gpu_indices) // self.engines
        return self.gpu_indices[engine * each : (engine + 1) * each]


@dataclass(frozen=True, slots=True)
class Replica:
    """One moment of a server, or of one engine of a server with several. `scrape` is None if it was not observed."""

    scrape: Scrape | None
    gpus: tuple[GpuReading, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One moment. `server` sums all servers, None if one's /metrics did not answer. `gpus` is empty without GPUs.
    `replicas` hold both apart."""

    at_ns: int
    server: Scrape | None
    gpus: tuple[GpuReading, ...]
    host: HostReading
    replicas: tuple[Replica, ...] = ()


@dataclass(frozen=True, slots=True)
class Telemetry:
    """Telemetry of a level, with idle scrapes around it."""

    rows: tuple[Row, ...]
    before: Scrape | None
    after: Scrape | None
    server_pids: tuple[int, ...] = ()


class Sampler:
    """Sampler of running servers that get one load. `leaders` are the first processes of all of them, and of a door
    in front."""

    def __init__(
        self,
        *servers: Watched,
        gpu: GpuAdapter | None = None,
        leaders: Sequence[int] = (),
        interval_s: float = INTERVAL_S,
    ) -> None:
        self.servers = servers
        self.gpu: GpuAdapter = gpu or NoGpu()
        self.gpu_indices = tuple(index for server in servers for index in server.gpu_indices)
        self.leaders = tuple(leaders)
        self.interval_s = interval_s

    def start(self) -> Recording:
        return Recording(self)

    def pages(self) -> tuple[Page | None, ...]:
        """Read /metrics of every server."""
        return tuple(server.page() for server in self.servers)

    def scrapes(self, tries: int = 1) -> tuple[Scrape | None, ...]:
        """Scrape every server."""
        return tuple(parsed(server.page(tries)) for server in self.servers)

    def wait_until_idle(self, limit_s: float) -> bool:
        """Wait up to `limit_s` for idle servers. Returns False if time ran out.

        A server without metrics counts as idle. vLLM updates its gauges only in a step: after aborts an idle engine
        goes on showing what it last ran. So all also count as idle if no token was processed for `STILL_S`.
        """
        deadline, still_since, tokens = time.monotonic() + limit_s, time.monotonic(), None
        while busy := [one for one in self.scrapes() if one is not None and not one.idle]:
            processed = [(one.prompt_tokens, one.generation_tokens) for one in busy]
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
        self._host = Host(sampler.leaders)
        self._before = self._latest = sampler.scrapes(TRIES)
        self._rows: list[Row] = []
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    @property
    def preemptions(self) -> int | None:
        """Return the preemptions so far. The counter can still rise until the level has drained."""
        before, latest = totals(self._before, self._latest)
        if not self._rows or before is None or latest is None or latest.preemptions is None:
            return None
        return deltas(before, latest).preemptions

    def finish(self) -> Telemetry:
        """End the recording after the last answer. Waits until the counters stand still, at most `SETTLE_S`."""
        self._stopped.set()
        self._thread.join()
        before, after = totals(self._before, self._settled())
        return Telemetry(tuple(self._rows), before, after, self._host.server_pids)

    def _settled(self) -> tuple[Scrape | None, ...]:
        deadline = time.monotonic() + SETTLE_S
        last = self._sampler.scrapes(TRIES)
        while None not in last and time.monotonic() < deadline:
            time.sleep(SETTLE_STEP_S)
            now = self._sampler.scrapes(TRIES)
            if None in now or all(
                getattr(one, name) == getattr(earlier, name)
                for one, earlier in zip(now, last, strict=True)
                for name in COUNTERS
            ):
                return now
            last = now
        return last

    def _run(self) -> None:
        sampler = self._sampler
        next_s = time.monotonic() + sampler.interval_s
        while not self._stopped.wait(max(0.0, next_s - time.monotonic())):
            next_s += sampler.interval_s
            pages = sampler.pages()
            gpus = sampler.gpu.read(sampler.gpu_indices)
            latest = tuple(map(parsed, pages))
            replicas = tuple(_replicas(sampler.servers, pages, latest, gpus))
            self._rows.append(Row(time.monotonic_ns(), summed(latest), gpus, self._host.read(), replicas))
            self._latest = latest


def _replicas(
    servers: Sequence[Watched],
    pages: Sequence[Page | None],
    scrapes: Sequence[Scrape | None],
    gpus: Sequence[GpuReading],
) -> Iterator[Replica]:
    """Take servers and engines apart, each with its GPUs. Another number of engines than expected is not observed."""
    for server, page, whole in zip(servers, pages, scrapes, strict=True):
        seen: Sequence[Scrape | None] = (whole,)
        if server.engines > 1:
            found = engines(page.text, page.at_ns) if page else ()
            seen = found if len(found) == server.engines else (None,) * server.engines
        for engine, one in enumerate(seen):
            yield Replica(one, tuple(gpu for gpu in gpus if gpu.index in server.gpus_of(engine)))


class TelemetryLog:
    """Writer of telemetry.parquet, a row per moment, server and GPU.

    `server` numbers the servers, or the engines of a server with several. Columns of /metrics are that server's. `gpu`
    is -1 if it has none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: dict[str, list[object]] = {}

    def add(self, level: float, telemetry: Telemetry) -> None:
        """Append a level and write the whole file again."""
        for row in telemetry.rows:
            for number, replica in enumerate(row.replicas or (Replica(row.server, row.gpus),)):
                for gpu in replica.gpus or (GpuReading(-1, None, None, None, None, None),):
                    for name, value in _cells(level, row, number, replica.scrape, gpu).items():
                        self._columns.setdefault(name, []).append(value)
        if self._columns:
            temporary = self._path.with_name(f".{self._path.name}.tmp")
            pq.write_table(pa.table(self._columns), temporary, compression="zstd")
            temporary.replace(self._path)


def _cells(level: float, row: Row, number: int, scrape: Scrape | None, gpu: GpuReading) -> dict[str, object]:
    server = scrape or Scrape(row.at_ns)
    return {
        "level": float(level),
        "at_ns": row.at_ns,
        "server": number,
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
