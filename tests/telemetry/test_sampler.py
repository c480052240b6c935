from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pyarrow.parquet as pq
import pytest

from tests.fakes import RecordedGpu
from tuner.telemetry.gpu import GpuReading, NoGpu, gpu_adapter
from tuner.telemetry.host import Host
from tuner.telemetry.sampler import Sampler, Telemetry, TelemetryLog, Watched


class _Metrics(BaseHTTPRequestHandler):
    """Counters that rise with every scrape until the fourth, then stand still."""

    scrapes = 0
    running = 2
    engines = 1
    bad: ClassVar[list[bytes | int]] = []
    """Bodies and statuses that are sent first."""

    def do_GET(self) -> None:
        kind = type(self)
        kind.scrapes += 1
        bad = kind.bad.pop() if kind.bad else None
        if isinstance(bad, int):
            self.send_error(bad)
            return
        counted = min(kind.scrapes, 4)
        lines = [
            line
            for engine in range(kind.engines)
            for line in (
                f'vllm:num_preemptions_total{{engine="{engine}"}} {counted}',
                f'vllm:num_requests_running{{engine="{engine}"}} {kind.running}',
                f'vllm:kv_cache_usage_perc{{engine="{engine}"}} {(engine + 1) / 10}',
            )
        ]
        text = "\n".join([*lines, ""])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode() if bad is None else bad)

    def log_message(self, format: str, *args: object) -> None:
        pass


Served = tuple[str, type[_Metrics]]
"""URL of a page, and its handler."""


@contextmanager
def served() -> Iterator[Served]:
    handler = type("Handler", (_Metrics,), {"scrapes": 0, "running": 2, "engines": 1, "bad": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/metrics", handler
        server.shutdown()
        thread.join()


@pytest.fixture
def metrics() -> Iterator[Served]:
    with served() as one:
        yield one


@pytest.fixture
def other_metrics() -> Iterator[Served]:
    with served() as one:
        yield one


def seen(sampler: Sampler, seconds: float = 0.2) -> Telemetry:
    recording = sampler.start()
    time.sleep(seconds)
    return recording.finish()


def test_server_gpu_and_host_are_read_together(metrics: Served) -> None:
    gpu = GpuReading(3, 0.9, 2**30, 300.0, 60.0, 1800.0, ("power cap",))
    other = GpuReading(4, 0.1, 2**20, 30.0, 40.0, 200.0)
    sampler = Sampler(
        Watched(metrics[0], (3,)), gpu=RecordedGpu([(gpu, other)]), leaders=(os.getpid(),), interval_s=0.05
    )
    telemetry = seen(sampler, 0.3)
    assert 1 <= len(telemetry.rows) <= 7
    for row in telemetry.rows:
        assert row.server is not None and row.server.running == 2
        assert row.gpus == (gpu,)
        assert 0 <= row.host.cpu_share <= 1


def test_the_last_scrape_waits_until_the_counters_stand_still(metrics: Served) -> None:
    telemetry = Sampler(Watched(metrics[0]), interval_s=10).start().finish()
    assert telemetry.before is not None and telemetry.before.preemptions == 1
    assert telemetry.after is not None and telemetry.after.preemptions == 4


def test_preemptions_can_be_seen_while_the_level_runs(metrics: Served) -> None:
    recording = Sampler(Watched(metrics[0]), interval_s=0.05).start()
    seen = [recording.preemptions]
    deadline = time.monotonic() + 20
    while seen[-1] != 3 and time.monotonic() < deadline:
        time.sleep(0.02)
        seen.append(recording.preemptions)
    assert (seen[0], seen[-1]) == (None, 3)
    recording.finish()


@pytest.mark.parametrize("bad", [b"", b'vllm:num_preemptions_total{engine="0"} 1', 503, 500])
def test_a_scrape_that_fails_is_made_again(metrics: Served, bad: bytes | int) -> None:
    """The counter rises with every answer, so the figures tell which answers were used."""
    url, handler = metrics
    handler.bad = [bad, bad]
    recording = Sampler(Watched(url), interval_s=10).start()
    handler.bad = [bad]
    telemetry = recording.finish()
    assert telemetry.before is not None and telemetry.before.preemptions == 3
    assert telemetry.after is not None and telemetry.after.preemptions == 4


def test_a_page_that_is_not_there_is_asked_for_once(metrics: Served) -> None:
    url, handler = metrics
    handler.bad = [404] * 9
    assert Watched(url).page(3) is None
    assert handler.scrapes == 1


def test_a_server_that_stays_busy_is_not_idle(metrics: Served) -> None:
    url, handler = metrics
    sampler = Sampler(Watched(url))
    assert not sampler.wait_until_idle(0.3)
    handler.running = 0
    assert sampler.wait_until_idle(0.3)


def test_an_engine_whose_gauges_went_stale_is_idle(metrics: Served) -> None:
    """vLLM shows the last step's gauges after every request was aborted. Here no token is processed any more."""
    assert Sampler(Watched(metrics[0])).wait_until_idle(30.0)


def test_without_metrics_everything_about_the_server_is_none() -> None:
    telemetry = seen(Sampler(Watched("http://127.0.0.1:9/metrics"), interval_s=0.05), 0.15)
    assert telemetry.before is telemetry.after is None
    assert telemetry.rows and all(row.server is None for row in telemetry.rows)


def test_telemetry_is_a_whole_file_after_every_level(tmp_path: Path, metrics: Served) -> None:
    log = TelemetryLog(tmp_path / "telemetry.parquet")
    rows = 0
    for level in (10, 30):
        telemetry = seen(Sampler(Watched(metrics[0]), interval_s=0.05), 0.15)
        rows += len(telemetry.rows)
        log.add(level, telemetry)
        table = pq.read_table(tmp_path / "telemetry.parquet")
        assert table.num_rows == rows
    assert set(table.column("level").to_pylist()) == {10.0, 30.0}
    assert set(table.column("gpu").to_pylist()) == {-1}
    assert [p.name for p in tmp_path.iterdir()] == ["telemetry.parquet"]


BURN = [sys.executable, "-c", "while True: pass"]


def orphan() -> int:
    """Start a process that burns CPU and is nobody's child."""
    shell = ["sh", "-c", '"$@" >/dev/null 2>&1 & echo $!', "sh", *BURN]
    return int(subprocess.run(shell, capture_output=True, text=True, check=True).stdout)


def test_the_cpu_of_the_server_is_kept_apart_from_that_of_others() -> None:
    foreign = orphan()
    try:
        with subprocess.Popen(BURN) as server, subprocess.Popen(BURN) as sibling:
            host = Host([server.pid])
            time.sleep(1.0)
            reading = host.read()
            server.kill()
            sibling.kill()
    finally:
        os.kill(foreign, signal.SIGKILL)
    assert reading.server_cores is not None and reading.foreign_cores is not None
    assert min(reading.server_cores, reading.sibling_cores, reading.foreign_cores) > 0.02
    assert reading.busy_cores == pytest.approx(
        reading.server_cores + reading.sibling_cores + reading.client_cores + reading.foreign_cores, abs=0.05
    )
    assert host.server_pids == (server.pid,)


def test_a_server_that_is_not_there_has_no_cpu() -> None:
    assert Host().read().server_cores is None
    assert Host().read().foreign_cores is None
    assert Host([os.getpid(), 2**22 - 1]).read().server_cores is None, "half of the servers' CPU is not theirs"


def test_the_cpu_of_several_servers_is_summed() -> None:
    with subprocess.Popen(BURN) as first, subprocess.Popen(BURN) as second:
        hosts = [Host([first.pid]), Host([second.pid]), Host([first.pid, second.pid])]
        time.sleep(1.0)
        one, other, both = (host.read().server_cores for host in hosts)
        first.kill()
        second.kill()
    assert one is not None and other is not None and both is not None
    assert one > 0 and other > 0
    assert both == pytest.approx(one + other, abs=0.1)
    assert hosts[2].server_pids == (first.pid, second.pid)


def test_servers_are_summed_and_kept_apart_each_with_its_gpus(metrics: Served, other_metrics: Served) -> None:
    readings = [GpuReading(index, 0.9, 2**30, 300.0, 60.0, 1800.0) for index in range(4)]
    servers = (Watched(metrics[0], (0, 1)), Watched(other_metrics[0], (2, 3)))
    other_metrics[1].running = 5
    telemetry = seen(Sampler(*servers, gpu=RecordedGpu([tuple(readings)]), interval_s=0.05), 0.3)
    assert telemetry.before is not None and telemetry.after is not None
    assert (telemetry.before.preemptions, telemetry.after.preemptions) == (2, 8)
    for row in telemetry.rows:
        assert row.server is not None and (row.server.running, row.server.kv_usage) == (7, 0.1)
        assert [replica.scrape.running for replica in row.replicas if replica.scrape] == [2, 5]
        assert [[gpu.index for gpu in replica.gpus] for replica in row.replicas] == [[0, 1], [2, 3]]


def test_the_engines_of_one_server_are_kept_apart_like_servers(metrics: Served) -> None:
    metrics[1].engines = 2
    gpus = tuple(GpuReading(index, 0.9, 2**30, 300.0, 60.0, 1800.0) for index in (4, 6))
    telemetry = seen(Sampler(Watched(metrics[0], (4, 6), engines=2), gpu=RecordedGpu([gpus]), interval_s=0.05))
    for row in telemetry.rows:
        assert row.server is not None and (row.server.running, row.server.kv_usage) == (4, 0.2)
        assert [replica.scrape.kv_usage for replica in row.replicas if replica.scrape] == [0.1, 0.2]
        assert [[gpu.index for gpu in replica.gpus] for replica in row.replicas] == [[4], [6]]


def test_another_number_of_engines_than_expected_is_not_observed(metrics: Served) -> None:
    telemetry = seen(Sampler(Watched(metrics[0], engines=2), interval_s=0.05))
    assert telemetry.rows and all(row.server and row.server.running == 2 for row in telemetry.rows)
    assert all([replica.scrape for replica in row.replicas] == [None, None] for row in telemetry.rows)


def test_one_server_that_does_not_answer_makes_the_sum_unobserved(metrics: Served) -> None:
    recording = Sampler(Watched(metrics[0]), Watched("http://127.0.0.1:9/metrics"), interval_s=0.05).start()
    time.sleep(0.2)
    assert recording.preemptions is None
    telemetry = recording.finish()
    assert telemetry.before is telemetry.after is None
    for row in telemetry.rows:
        assert row.server is None
        assert [replica.scrape is None for replica in row.replicas] == [False, True]


def test_preemptions_of_any_server_are_seen_while_the_level_runs(metrics: Served, other_metrics: Served) -> None:
    other_metrics[1].scrapes = 4  # its counter stands still
    recording = Sampler(Watched(metrics[0]), Watched(other_metrics[0]), interval_s=0.05).start()
    deadline = time.monotonic() + 20
    while recording.preemptions != 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert recording.preemptions == 3
    recording.finish()


def test_all_servers_must_be_idle(metrics: Served, other_metrics: Served) -> None:
    sampler = Sampler(Watched(metrics[0]), Watched(other_metrics[0]))
    metrics[1].running = 0
    assert not sampler.wait_until_idle(0.3)
    other_metrics[1].running = 0
    assert sampler.wait_until_idle(0.3)


def test_telemetry_has_a_row_for_each_server_and_gpu(tmp_path: Path, metrics: Served, other_metrics: Served) -> None:
    other_metrics[1].running = 5
    gpus = tuple(GpuReading(index, index / 10, 2**30, 300.0, 60.0, 1800.0) for index in range(4))
    servers = (Watched(metrics[0], (0, 1)), Watched(other_metrics[0], (2, 3)))
    telemetry = seen(Sampler(*servers, gpu=RecordedGpu([gpus]), interval_s=0.05), 0.15)
    TelemetryLog(tmp_path / "telemetry.parquet").add(8, telemetry)
    rows = pq.read_table(tmp_path / "telemetry.parquet").to_pylist()
    assert len(rows) == 4 * len(telemetry.rows)
    assert {(row["server"], row["gpu"], row["running"]) for row in rows} == {(0, 0, 2), (0, 1, 2), (1, 2, 5), (1, 3, 5)}


def test_a_machine_without_gpus_reads_nothing() -> None:
    assert NoGpu().read((0, 1)) == () and NoGpu().used_bytes((0,)) is None
    adapter = gpu_adapter()
    assert all(reading.index == 0 for reading in adapter.read((0,)))
