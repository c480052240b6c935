"""Server with known answers and times (`python -m tuner.load.known_server`). It shows the client's own limit.

It answers every request with `max_tokens` chunks of one token. All streams emit at the same moment, every
`--step-ms`, as an engine's step does. GET /truth returns the times of the first tokens as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import select
import socket
import time
from dataclasses import dataclass

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
_COMMON = (
    b'data: {"id":"chatcmpl-8f3f1a6c2f7b4e0d9a5c6b7d8e9f0a1b","object":"chat.completion.chunk","created":1767225600,'
    b'"model":"known","choices":[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s,"token_ids":null}]}\n\n'
)
_INDEX = re.compile(rb'"user": ?"(\d+)"')
_TOKENS = re.compile(rb'"max_(?:completion_)?tokens": ?(\d+)')
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


ROLE = _chunked(_COMMON % (b'{"role":"assistant","content":""}', b"null"))
TOKEN = _chunked(_COMMON % (b'{"content":" word"}', b"null"))
LAST_TOKEN = _chunked(_COMMON % (b'{"content":" word"}', b'"length"'))


def ending(tokens: int) -> bytes:
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":%d,"total_tokens":%d}}\n\n' % (
        tokens,
        tokens + 1,
    )
    return _chunked(usage) + _chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"


@dataclass(slots=True)
class Stream:
    """One answer in progress, with `left` tokens to come."""

    connection: socket.socket
    index: int
    tokens: int
    left: int
    unsent: bytes = b""


class KnownServer:
    def __init__(self, listener: socket.socket, step_s: float) -> None:
        self._listener = listener
        self._step_s = step_s
        self._epoll = select.epoll()
        self._epoll.register(listener.fileno(), select.EPOLLIN)
        self._connections: dict[int, socket.socket] = {}
        self._received: dict[int, bytes] = {}
        self._streams: dict[int, Stream] = {}
        self._truth_ns: dict[int, int] = {}

    def run(self) -> None:
        next_step = time.monotonic() + self._step_s
        while True:
            for fileno, _ in self._epoll.poll(max(0.0, next_step - time.monotonic())):
                if fileno == self._listener.fileno():
                    self._accept()
                else:
                    self._receive(fileno)
            if time.monotonic() >= next_step:
                next_step += self._step_s
                for fileno, stream in list(self._streams.items()):
                    self._emit(fileno, stream)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections[connection.fileno()] = connection
        self._received[connection.fileno()] = b""
        self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _receive(self, fileno: int) -> None:
        connection = self._connections[fileno]
        try:
            data = connection.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self._close(fileno)
            return
        self._received[fileno] += data
        head, separator, body = self._received[fileno].partition(b"\r\n\r\n")
        if not separator:
            return
        if head.startswith(b"GET"):
            truth = json.dumps(self._truth_ns).encode()
            connection.setblocking(True)
            connection.sendall(
                b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (len(truth), truth)
            )
            self._truth_ns.clear()
            self._close(fileno)
        elif (length := _LENGTH.search(head)) is not None and len(body) >= int(length[1]):
            self._received[fileno] = b""
            index, tokens = _INDEX.search(body), _TOKENS.search(body)
            count = int(tokens[1]) if tokens else 1
            self._streams[fileno] = Stream(connection, int(index[1]) if index else -1, count, count)

    def _emit(self, fileno: int, stream: Stream) -> None:
        data = stream.unsent
        if stream.left == stream.tokens:
            self._truth_ns[stream.index] = time.monotonic_ns()
            data += HEAD + ROLE
        stream.left -= 1
        data += TOKEN if stream.left else LAST_TOKEN + ending(stream.tokens)
        try:
            sent = stream.connection.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._close(fileno)
            return
        stream.unsent = data[sent:]
        if stream.left == 0:
            del self._streams[fileno]

    def _close(self, fileno: int) -> None:
        self._streams.pop(fileno, None)
        self._received.pop(fileno, None)
        with contextlib.suppress(OSError):
            self._epoll.unregister(fileno)
        self._connections.pop(fileno).close()


def main() -> None:
    parser = argparse.ArgumentParser(description="A server of known times, for tuner's self-check.")
    parser.add_argument("--step-ms", type=float, default=20.0)
    given = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        print(listener.getsockname()[1], flush=True)  # noqa: T201  the parent reads the port
        KnownServer(listener, given.step_ms / 1000).run()


if __name__ == "__main__":
    main()
