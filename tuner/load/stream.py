"""One streaming request → RequestSample. This is the hot path."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import time
from array import array
from dataclasses import dataclass
from enum import StrEnum
from typing import cast
from urllib.parse import urlsplit

from tuner.errors import UsageError
from tuner.http import tls
from tuner.load.prompts import Request
from tuner.load.reply import CHUNKED_END, Reply, is_complete, keeps_alive, read_reply
from tuner.load.withheld import withheld

_LOOKS_LIKE_TOKEN = re.compile(rb'"(?:content|reasoning|reasoning_content)": ?"[^"]')


class Failure(StrEnum):
    """Reason why a request does not count as completed. `CUT` is the client's own: the level ended while it was in
    flight."""

    CONNECT = "connect"
    HTTP = "http"
    ERROR_CHUNK = "error-chunk"
    BROKEN_STREAM = "broken-stream"
    NO_USAGE = "no-usage"
    NO_TOKEN = "no-token"
    SHORTENED = "shortened"
    TIMEOUT = "timeout"
    CUT = "cut"


_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """Server under load and the model it serves. `headers` go with every request; `insecure` trusts any certificate."""

    base_url: str
    model: str
    api_key: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    insecure: bool = False

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.base_url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise UsageError(f"no load can be sent to {self.base_url!r}", hint="give a URL like http://127.0.0.1:8000")
        return parts.hostname, parts.port or _PORTS[parts.scheme]

    @property
    def tls(self) -> ssl.SSLContext | None:
        return tls(insecure=self.insecure) if urlsplit(self.base_url).scheme == "https" else None


@dataclass(frozen=True, slots=True)
class RequestSample:
    """Result of one request. Times are CLOCK_MONOTONIC in ns.

    `due_ns` is the scheduled time, `sent_ns` the moment when its bytes were first written. `first_ns` and `last_ns` are
    the first and the last chunk with a token, None if none came; `end_ns` is the end of the response. `token_ns` are
    all chunks with tokens (one chunk may carry several). Counts are the server's own (`usage`), None without one.
    """

    index: int
    due_ns: int
    sent_ns: int
    first_ns: int | None
    last_ns: int | None
    end_ns: int
    asked_tokens: int
    prompt_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    status: int | None
    failure: Failure | None
    error: str | None
    token_ns: array[int]

    @property
    def failure_kind(self) -> str | None:
        """Return the counted kind: `http-503` rather than `http`."""
        return f"http-{self.status}" if self.failure is Failure.HTTP else self.failure

    @property
    def ttft_ns(self) -> int | None:
        """Return TTFT from the due time, lateness included."""
        return None if self.first_ns is None else self.first_ns - self.due_ns


def encode(target: Target, request: Request) -> bytes:
    """Encode the whole HTTP request before its due time."""
    body = {
        "model": target.model,
        "messages": [{"role": role, "content": content} for role, content in request.messages],
        "max_tokens": request.max_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
        **request.extra_body,
    }
    payload = json.dumps(body, ensure_ascii=False).encode()
    parts = urlsplit(target.base_url)
    key = (("Authorization", f"Bearer {target.api_key}"),) if target.api_key else ()
    more = "".join(f"{name}: {value}\r\n" for name, value in (*key, *target.headers))
    head = (
        f"POST {parts.path.rstrip('/')}/v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Content-Type: application/json\r\nAccept: text/event-stream\r\n{more}"
        f"Content-Length: {len(payload)}\r\n\r\n"
    )
    return head.encode() + payload


class Capture:
    """One request in flight with its untouched bytes."""

    __slots__ = ("answered_ns", "due_ns", "end_ns", "failure", "index", "packets", "sent_ns", "woken")

    def __init__(self, index: int, due_ns: int) -> None:
        self.index = index
        self.due_ns = due_ns
        self.sent_ns = 0
        self.end_ns = 0
        self.answered_ns = 0
        """Arrival of the first likely token, else 0. A guess to end a hopeless level early, never a result."""
        self.packets: list[tuple[int, bytes]] = []
        self.failure: Failure | None = None
        self.woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Set when it has ended, or has to be sent again."""

    @property
    def ended(self) -> bool:
        return self.end_ns != 0

    @property
    def looks_failed(self) -> bool:
        """Return True if no stream of a 200 came. Needs no parsing."""
        return self.failure is not None or not self.packets or not self.packets[0][1].startswith(b"HTTP/1.1 200")

    def finish(self, failure: Failure | None = None) -> None:
        if not self.ended:
            self.end_ns = self.packets[-1][0] if self.packets and failure is None else time.monotonic_ns()
            self.sent_ns = self.sent_ns or self.due_ns
            self.failure = failure
            self.wake()

    def wake(self) -> None:
        if not self.woken.done():
            self.woken.set_result(None)


class Connection(asyncio.Protocol):
    """Kept-alive connection with at most one request on it. It stamps and keeps bytes, and parses nothing."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._capture: Capture | None = None
        self._fast = False
        self.idle_since_ns = 0
        """Time of the last whole answer, 0 before the first."""

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, not a check: uvloop's transports only look like asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)

    def send(self, payload: bytes, capture: Capture) -> None:
        assert self._transport is not None
        self._capture = capture
        self._fast = False
        capture.sent_ns = capture.sent_ns or time.monotonic_ns()
        self._transport.write(payload)

    def data_received(self, data: bytes) -> None:
        capture = self._capture
        if capture is None:
            self.close()
            return
        capture.packets.append((time.monotonic_ns(), data))
        if not capture.answered_ns and _LOOKS_LIKE_TOKEN.search(data):
            capture.answered_ns = capture.packets[-1][0]
        if self._fast and len(data) >= len(CHUNKED_END):
            if data.endswith(CHUNKED_END):
                self._finished(capture)
        else:
            self._look_closely(capture)

    def _look_closely(self, capture: Capture) -> None:
        """Examine first packets, error bodies and split last chunks."""
        raw = b"".join(data for _, data in capture.packets)
        self._fast = b"\r\n\r\n" in raw and b"transfer-encoding: chunked" in raw.partition(b"\r\n\r\n")[0].lower()
        if is_complete(raw):
            self._finished(capture)

    def _finished(self, capture: Capture) -> None:
        self._capture = None
        self.idle_since_ns = time.monotonic_ns()
        if not keeps_alive(capture.packets[0][1]):
            self.close()
        capture.finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        capture, self._capture = self._capture, None
        if capture is None:
            return
        if self.idle_since_ns and not capture.packets:
            # The server closed after the answer before: it may never have read this request.
            capture.wake()
            return
        # A body that ends with the connection is legal HTTP; whether the stream was whole shows in its bytes.
        capture.finish(Failure.BROKEN_STREAM if exc else None)

    def close(self) -> None:
        """Close at once, so that the server aborts the request."""
        self._capture = None
        if self._transport is not None:
            self._transport.abort()


def sample(capture: Capture, request: Request) -> RequestSample:
    """Parse the bytes of a finished request. Too slow for the hot path."""
    reply = read_reply(capture.packets) if capture.packets else Reply()
    return RequestSample(
        index=capture.index,
        due_ns=capture.due_ns,
        sent_ns=capture.sent_ns,
        first_ns=reply.token_ns[0] if reply.token_ns else None,
        last_ns=reply.token_ns[-1] if reply.token_ns else None,
        end_ns=capture.end_ns,
        asked_tokens=request.max_tokens,
        prompt_tokens=reply.prompt_tokens,
        output_tokens=reply.output_tokens,
        cached_tokens=reply.cached_tokens,
        status=reply.status,
        failure=_failure(capture, reply, request),
        error=reply.error and withheld(reply.error, request),
        token_ns=reply.token_ns,
    )


def _failure(capture: Capture, reply: Reply, request: Request) -> Failure | None:
    if capture.failure in (Failure.CONNECT, Failure.TIMEOUT, Failure.CUT):
        return capture.failure
    if reply.status is None:
        return Failure.BROKEN_STREAM
    if reply.status != 200:
        return Failure.HTTP
    if reply.error is not None or reply.finish_reason in ("error", "abort"):
        return Failure.ERROR_CHUNK
    if not reply.done or capture.failure:
        return Failure.BROKEN_STREAM
    if reply.output_tokens is None:
        return Failure.NO_USAGE
    if reply.output_tokens < request.max_tokens and not request.natural_stop:
        return Failure.SHORTENED
    return None if reply.token_ns else Failure.NO_TOKEN
