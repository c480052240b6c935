"""nginx in front of two servers that stream: really run, where nginx is installed."""

from __future__ import annotations

import http.client
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

from tests.deploy.ports import neighbouring_ports
from tuner.deploy.nginx import nginx_conf
from tuner.deploy.recorded import Recorded
from tuner.server.nginx_conf import PREFIX_HEADER, whole_conf

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
def nginx_with(conf: str, port: int, folder: Path) -> Iterator[int]:
    """An nginx with this file for conf.d; yields its port."""
    (folder / "nginx.conf").write_text(whole_conf(conf))
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    command = [program, "-p", str(folder), "-c", "nginx.conf"]
    subprocess.run([*command, "-t", "-q"], check=True)
    with subprocess.Popen([*command, "-g", "daemon off;"]) as nginx:
        try:
            _wait_for(port)
            yield port
        finally:
            nginx.terminate()
            nginx.wait(timeout=10)


@pytest.fixture
def streamers() -> Iterator[int]:
    """The first of three ports: two streaming servers, and one that is free."""
    first = neighbouring_ports(3)
    servers = [ThreadingHTTPServer(("127.0.0.1", first + i), Streamer) for i in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield first
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


@pytest.fixture
def conf(several: Recorded, streamers: int) -> str:
    """Our file before the streaming servers."""
    return nginx_conf(several, first_port=streamers).replace("127.0.0.1:8000", f"127.0.0.1:{streamers + 2}")


@pytest.fixture
def front(conf: str, streamers: int, tmp_path: Path) -> Iterator[int]:
    """The port of an nginx with our configuration before two streaming servers."""
    with nginx_with(conf, streamers + 2, tmp_path) as port:
        yield port


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


def ask(port: int, prefix: str = "") -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    began = time.monotonic()
    headers = {"Content-Type": "application/json", **({PREFIX_HEADER: prefix} if prefix else {})}
    connection.request("POST", "/v1/chat/completions", body=b"{}", headers=headers)
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


def test_by_prefix_requests_of_one_prefix_reach_one_server(conf: str, streamers: int, tmp_path: Path) -> None:
    measured, _, other = conf.partition("\n# The other way to route, in place of the upstream above:\n#\n")
    upstream = "".join(f"{line.removeprefix('#').removeprefix(' ')}\n" for line in other.splitlines())
    server = measured[measured.index("\nserver {") :]
    with nginx_with(upstream + server, streamers + 2, tmp_path) as port, ThreadPoolExecutor(12) as pool:
        of_a = [answer.data[0].split()[1] for answer in pool.map(ask, [port] * 12, ["a"] * 12)]
        prefixes = list(pool.map(lambda i: ask(port, prefix=f"prefix {i}").data[0].split()[1], range(24)))
        without = [answer.data[0].split()[1] for answer in pool.map(ask, [port] * 24)]
    assert len(set(of_a)) == 1
    assert len(set(prefixes)) == len(set(without)) == 2


def test_there_is_an_upstream_for_each_gpu_group(recorded: Recorded) -> None:
    assert nginx_conf(recorded).count("\n    server 127.0.0.1:") == len(recorded.plan.groups) == 2
    assert nginx_conf(recorded, replicas=5).count("\n    server 127.0.0.1:") == 5
