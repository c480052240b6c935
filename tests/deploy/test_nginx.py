"""nginx in front of two servers that stream: really run, where nginx is installed."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.deploy.conftest import with_launch
from tests.deploy.ports import neighbouring_ports
from tuner.deploy.nginx import LISTEN, nginx_conf
from tuner.deploy.recorded import Recorded
from tuner.deploy.start import write_pair
from tuner.launch import LaunchSpec
from tuner.telemetry.prometheus import scrape

CHUNKS = 5
PAUSE_S = 0.1

pytestmark = pytest.mark.skipif(
    shutil.which("nginx") is None and not Path("/usr/sbin/nginx").exists(), reason="no nginx here"
)


class Streamer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for i in range(CHUNKS):
            data = f"data: {self.connection.getsockname()[1]} {i}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
            time.sleep(PAUSE_S)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def nginx_before(recorded: Recorded, first: int, folder: Path) -> Iterator[int]:
    """An nginx with our configuration before two servers on the ports from `first` on; yields its port, the third."""
    ours = nginx_conf(recorded, replicas=2, first_port=first).replace(LISTEN, f"127.0.0.1:{first + 2}")
    (folder / "vllm.conf").write_text(ours)
    temporary = "\n".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = folder / "nginx.conf"
    whole.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log;\nevents {{}}\n"
        f"http {{ access_log off; {temporary}\n include {folder}/vllm.conf; }}\n"
    )
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    subprocess.run([program, "-t", "-q", "-c", str(whole), "-e", str(folder / "error.log")], check=True)
    with subprocess.Popen([program, "-c", str(whole), "-e", str(folder / "error.log")]) as nginx:
        try:
            _wait_for(first + 2)
            yield first + 2
        finally:
            nginx.terminate()
            nginx.wait(timeout=10)


@pytest.fixture
def front(recorded: Recorded, tmp_path: Path) -> Iterator[int]:
    """The port of an nginx with our configuration before two streaming servers."""
    first = neighbouring_ports(3)
    servers = [ThreadingHTTPServer(("127.0.0.1", first + i), Streamer) for i in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with nginx_before(recorded, first, tmp_path) as port:
            yield port
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _wait_for(port: int) -> None:
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("nginx does not listen")


class Answer(NamedTuple):
    """Lines with data, and the seconds after which the first one and the last one came."""

    data: list[bytes]
    first_s: float
    last_s: float


def ask(port: int, path: str = "/v1/chat/completions", body: bytes = b"{}") -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    began = time.monotonic()
    connection.request("POST", path, body=body, headers={"Content-Type": "application/json"})
    response = connection.getresponse()
    first_line = response.readline()
    first_s = time.monotonic() - began
    lines = [first_line, *response.read().splitlines()]
    connection.close()
    assert response.status == 200, lines
    return Answer([line for line in lines if line.startswith(b"data:")], first_s, time.monotonic() - began)


def test_streams_pass_unbuffered_and_both_replicas_answer(front: int) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, [front] * 8))
    assert all(len(answer.data) == CHUNKS for answer in answers)
    assert sorted(Counter(answer.data[0].split()[1] for answer in answers).values()) == [4, 4]
    assert all(answer.last_s - answer.first_s > PAUSE_S * (CHUNKS - 2) for answer in answers)


def test_there_is_an_upstream_for_each_gpu_group(recorded: Recorded) -> None:
    assert nginx_conf(recorded).count("\n    server 127.0.0.1:") == len(recorded.plan.groups) == 2
    assert nginx_conf(recorded, replicas=5).count("\n    server 127.0.0.1:") == 5


TOKENS = 400
REPLICA = (
    "--load-format", "dummy", "--enforce-eager", "--dtype", "float32", "--max-model-len", "512",
    "--max-num-seqs", "4", "--kv-cache-memory-bytes", "256M", "--shutdown-timeout", "10",
)  # fmt: skip
REPLICA_ENV = (
    ("HF_HUB_OFFLINE", "1"),
    ("OMP_NUM_THREADS", "1"),
    ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
    ("VLLM_NO_USAGE_STATS", "1"),
)


@pytest.fixture
def replicas(local: Recorded, vllm_command: tuple[str, ...], tiny_model: str, tmp_path: Path) -> Iterator[int]:
    """The first of two neighbouring ports on which our start.sh has started a real vLLM; the third is free."""
    first = neighbouring_ports(3)
    launch = LaunchSpec((), vllm_command, (tiny_model, *REPLICA), REPLICA_ENV)
    start, stop = write_pair(tmp_path, with_launch(local, launch=launch))
    environments = [{**os.environ, "PORT": str(first + i), "START_TIMEOUT": "400"} for i in range(2)]
    try:
        with ThreadPoolExecutor(2) as pool:
            starts = list(pool.map(lambda env: run_script(start, env), environments))
        assert [one.returncode for one in starts] == [0, 0], [one.stderr for one in starts]
        yield first
    finally:
        stops = [run_script(stop, env) for env in environments]
        assert [one.returncode for one in stops] == [0, 0], [one.stdout for one in stops]


def run_script(script: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([script], env=env, capture_output=True, text=True)


@pytest.mark.real_vllm
def test_two_real_replicas_share_streams_that_pass_unbuffered(
    replicas: int, local: Recorded, tiny_model: str, tmp_path: Path
) -> None:
    asked = {"model": tiny_model, "prompt": "hello", "max_tokens": TOKENS, "ignore_eos": True, "stream": True}
    with nginx_before(local, replicas, tmp_path) as port, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask(port, "/v1/completions", json.dumps(asked).encode()), range(4)))
    for answer in answers:
        assert answer.data[-1] == b"data: [DONE]"
        # A buffered stream comes in one piece at its end, some seconds later.
        assert answer.first_s < answer.last_s / 2
    seen = [scrape(f"http://127.0.0.1:{replicas + i}/metrics") for i in range(2)]
    assert [one.generation_tokens for one in seen if one is not None] == [2 * TOKENS, 2 * TOKENS]
