"""HTTP server that sends known bytes at known times, whatever it is asked: truth by construction."""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
CLOSING = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
"""Head of an answer that ends with its connection."""

LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Send:
    """Step that writes `data` in one call, `after_s` seconds after the step before."""

    data: bytes
    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Reset:
    """Step that cuts the connection with a TCP reset, as a killed process does."""

    after_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Close:
    """Step that closes the connection, as a server does that keeps none alive."""

    after_s: float = 0.0


Step = Send | Reset | Close


@dataclass(slots=True)
class Served:
    """One request as the server saw it: its body, and the time of each `Send` (CLOCK_MONOTONIC ns)."""

    body: dict[str, object]
    received_ns: int
    sent_ns: list[int] = field(default_factory=list)


def event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


def chunked(data: bytes) -> bytes:
    """Frame one HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def delta(**fields: object) -> dict[str, object]:
    return {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def role() -> bytes:
    """Build vLLM's first chunk: a role, empty content and no token."""
    return event(delta(role="assistant", content=""))


def token(text: str = "word") -> bytes:
    return event(delta(content=text))


def finish(text: str = "end", reason: str = "length") -> bytes:
    return event({"id": "chatcmpl-1", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]})


def usage(prompt: int, output: int) -> bytes:
    return event({"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": output}})


DONE = b"data: [DONE]\n\n"


def answer(tokens: int, first_s: float, gap_s: float, prompt_tokens: int = 7) -> list[Step]:
    """Script an answer as vLLM sends it: role at the first token's time, one token a chunk, usage, [DONE]."""
    steps: list[Step] = [Send(HEAD + chunked(role()), first_s), Send(chunked(token()))]
    steps += [Send(chunked(token()), gap_s) for _ in range(tokens - 2)]
    return [
        *steps,
        Send(chunked(finish()), gap_s),
        Send(chunked(usage(prompt_tokens, tokens)) + chunked(DONE) + LAST_CHUNK),
    ]


class ScriptedServer:
    """Server of scripts in turn, the last one for ever. `served` holds every request in order of arrival.

    `pages` are bodies by path, for GET. Other paths of GET, and POST /tokenize, are not found.
    """

    def __init__(
        self, scripts: Iterable[list[Step]], pages: Mapping[str, bytes] | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self._scripts = list(scripts)
        self._pages = dict(pages or {})
        self.tls = tls
        self.served: list[Served] = []
        self.authorizations: list[str] = []
        self.connections = 0
        self.port = 0
        self.loop = asyncio.new_event_loop()
        self.listener: asyncio.Server | None = None
        self._refused = threading.Event()
        self._open: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client went away
        finally:
            self._open.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        method, path = head.decode("latin-1").split(" ")[:2]
        self.authorizations += [
            line.split(b":")[1].strip().decode() for line in head.split(b"\r\n") if line.startswith(b"Authorization")
        ]
        if method == "GET":
            page = self._pages.get(path)
            status = b"404 Not Found" if page is None else b"200 OK"
            writer.write(b"HTTP/1.1 %s\r\nconnection: close\r\n\r\n%s" % (status, page or b""))
            await writer.drain()
            return False
        length = next(
            int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
        )
        body = await reader.readexactly(length)
        if path == "/tokenize":
            writer.write(b"HTTP/1.1 404 Not Found\r\nconnection: close\r\n\r\n")
            await writer.drain()
            return False
        served = Served(json.loads(body), time.monotonic_ns())
        script = self._scripts[min(len(self.served), len(self._scripts) - 1)]
        self.served.append(served)
        due = time.monotonic()
        for step in script:
            due += step.after_s
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if isinstance(step, Reset):
                writer.transport.abort()
            if not isinstance(step, Send):
                return False
            served.sent_ns.append(time.monotonic_ns())
            writer.write(step.data)
            await writer.drain()
        return b"connection: close" not in b"".join(s.data for s in script if isinstance(s, Send)).lower()

    def refuse(self) -> None:
        """Stop listening and cut every connection, as a killed server does. Callable from any thread."""
        self._refused = threading.Event()
        self.loop.call_soon_threadsafe(self._refuse)
        self._refused.wait()

    def _refuse(self) -> None:
        assert self.listener is not None
        self.listener.close()
        for task in self._open:
            task.cancel()
        self._refused.set()

    async def stop_open(self) -> None:
        for task in list(self._open):
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)


@contextmanager
def serving(
    *scripts: list[Step], pages: Mapping[str, bytes] | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[ScriptedServer]:
    """Run the server in its own thread and event loop, on a free port of 127.0.0.1."""
    server = ScriptedServer(scripts, pages, tls)
    ready = threading.Event()
    loop = server.loop
    stop = asyncio.Event()

    async def main() -> None:
        listener = server.listener = await asyncio.start_server(server.handle, "127.0.0.1", 0, ssl=tls)
        server.port = listener.sockets[0].getsockname()[1]
        ready.set()
        await stop.wait()
        listener.close()
        await server.stop_open()
        await listener.wait_closed()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    ready.wait()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
