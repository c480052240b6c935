"""Text of nginx.conf, read and run by nginx itself."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tuner.server.door import nginx_program
from tuner.server.nginx_conf import site_conf, whole_conf
from tuner.server.ports import fresh_port

NGINX = nginx_program()
needs_nginx = pytest.mark.skipif(NGINX is None, reason="no nginx here")
STREAMS = 2000


def fresh_address() -> str:
    return f"127.0.0.1:{fresh_port()}"


@contextmanager
def nginx(folder: Path, conf: str) -> Iterator[None]:
    assert NGINX is not None
    (folder / "nginx.conf").write_text(conf)
    words = [NGINX, "-e", "stderr", "-p", str(folder), "-c", "nginx.conf"]
    assert subprocess.run([*words, "-t", "-q"], capture_output=True, check=True).stderr == b""
    with subprocess.Popen([*words, "-g", "daemon off;"]) as running:
        try:
            time.sleep(0.5)
            yield
        finally:
            running.terminate()
            assert running.wait(timeout=10) == 0


class Upstream:
    """A server that begins a stream and ends it when told."""

    def __init__(self) -> None:
        self.address = fresh_address()
        self.open = 0
        self.end = asyncio.Event()

    async def start(self) -> asyncio.Server:
        host, port = self.address.split(":")
        return await asyncio.start_server(self._serve, host, int(port), backlog=4096)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (head := await reader.readuntil(b"\r\n\r\n") if not reader.at_eof() else b"") and head:
            self.open += 1
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nx\n\r\n")
            await self.end.wait()
            writer.write(b"0\r\n\r\n")
            self.open -= 1
            break
        writer.close()


async def begin(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a stream and wait for its first token."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET / HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    await reader.readline()
    assert len(await reader.readline()) == 2
    return reader, writer


@needs_nginx
def test_two_thousand_streams_are_open_at_once_and_evenly_spread(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * STREAMS
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, hard)), hard))

    async def load() -> list[int]:
        upstreams = [Upstream(), Upstream()]
        servers = [await one.start() for one in upstreams]
        listen = fresh_address()
        with nginx(tmp_path, whole_conf(site_conf([one.address for one in upstreams], listen))):
            clients = await asyncio.gather(*(begin(listen) for _ in range(STREAMS)))
            spread = [one.open for one in upstreams]
            for one in upstreams:
                one.end.set()
            for reader, writer in clients:
                await reader.readuntil(b"0\r\n\r\n")
                writer.close()
        for server in servers:
            server.close()
        return spread

    spread = asyncio.run(load())
    assert sum(spread) == STREAMS and max(spread) <= 1.05 * min(spread)


def test_every_server_is_named_once() -> None:
    text = site_conf(["10.0.0.1:8000", "10.0.0.2:8000", "vllm-2:8000"], "127.0.0.1:8080")
    assert [text.count(f"server {name} ") for name in ("10.0.0.1:8000", "10.0.0.2:8000", "vllm-2:8000")] == [1, 1, 1]
    assert "listen 127.0.0.1:8080 " in text and "least_conn;" in text and "hash " not in text
