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
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tuner.deploy.nginx import LISTEN, nginx_conf
from tuner.deploy.recorded import Recorded

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


def neighbouring_ports(count: int) -> int:
    """The first of `count` free ports in a row."""
    for first in range(20_000, 30_000, count):
        sockets = [socket.socket() for _ in range(count)]
        try:
            for i, one in enumerate(sockets):
                one.bind(("127.0.0.1", first + i))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
        return first
    raise AssertionError("no free ports")


@pytest.fixture
def front(recorded: Recorded, tmp_path: Path) -> Iterator[int]:
    """The port of an nginx with our configuration before two streaming servers."""
    first = neighbouring_ports(3)
    servers = [ThreadingHTTPServer(("127.0.0.1", first + i), Streamer) for i in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    ours = nginx_conf(recorded, replicas=2, first_port=first).replace(LISTEN, f"127.0.0.1:{first + 2}")
    (tmp_path / "vllm.conf").write_text(ours)
    temporary = "\n".join(
        f"{name}_temp_path {tmp_path}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    whole = tmp_path / "nginx.conf"
    whole.write_text(
        f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log;\nevents {{}}\n"
        f"http {{ access_log off; {temporary}\n include {tmp_path}/vllm.conf; }}\n"
    )
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    subprocess.run([program, "-t", "-q", "-c", str(whole), "-e", str(tmp_path / "error.log")], check=True)
    with subprocess.Popen([program, "-c", str(whole), "-e", str(tmp_path / "error.log")]) as nginx:
        try:
            _wait_for(first + 2)
            yield first + 2
        finally:
            nginx.terminate()
            nginx.wait(timeout=10)
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


def ask(port: int) -> tuple[str, float, float]:
    """The server that answered, seconds to the first chunk and to the last."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    began = time.monotonic()
    connection.request("POST", "/v1/chat/completions", body=b"{}")
    response = connection.getresponse()
    first_line = response.readline()
    first = time.monotonic() - began
    rest = response.read()
    connection.close()
    assert response.status == 200
    assert rest.count(b"data:") == CHUNKS - 1
    return first_line.split()[1].decode(), first, time.monotonic() - began


def test_streams_pass_unbuffered_and_both_replicas_answer(front: int) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, [front] * 8))
    assert sorted(Counter(server for server, _, _ in answers).values()) == [4, 4]
    assert all(last - first > PAUSE_S * (CHUNKS - 2) for _, first, last in answers)


def test_there_is_an_upstream_for_each_gpu_group(recorded: Recorded) -> None:
    assert nginx_conf(recorded).count("    server 127.0.0.1:") == len(recorded.plan.groups) == 2
    assert nginx_conf(recorded, replicas=5).count("    server 127.0.0.1:") == 5
