"""A small server that misbehaves on purpose: `fake_server.py serve MODEL [--fault NAME]... --host H --port P`.

It speaks /health and /v1/models, streams lines for any POST, and prints nothing but what a fault asks for. Not a test,
and no stand-in for vLLM's behaviour (that is tuner/sim): it only does to its supervisor what real processes do.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path

FOREVER_S = 600.0
CHUNKS = 10
PAUSE_S = 0.1


class Api(BaseHTTPRequestHandler):
    """Control pages, and streams of `CHUNKS` lines with this server's port. GET /streams counts begun and lost ones."""

    protocol_version = "HTTP/1.1"
    health = 200
    model = ""
    begun = 0
    lost = 0
    silent = False
    slow_s = 0.0
    models = 200

    def do_POST(self) -> None:
        Api.begun += 1
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for i in range(CHUNKS):
                data = f"data: {self.connection.getsockname()[1]} {i}\n\n".encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                time.sleep(PAUSE_S)
            self.wfile.write(b"0\r\n\r\n")
        except ConnectionError:
            Api.lost += 1
            self.close_connection = True

    def do_GET(self) -> None:
        if Api.silent:
            time.sleep(FOREVER_S)
        time.sleep(Api.slow_s)
        if self.path == "/streams":
            self._answer(json.dumps([Api.begun, Api.lost]).encode())
            return
        self._answer(json.dumps({"data": [{"id": "served", "root": self.model, "max_model_len": 512}]}).encode())

    def _answer(self, body: bytes) -> None:
        self.send_response({"/health": self.health, "/v1/models": self.models}.get(self.path, 200))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("command")
    parser.add_argument("model")
    parser.add_argument("--fault", action="append", default=[])
    parser.add_argument("--log", type=Path, help="print this file first")
    parser.add_argument("--exit", type=int, help="then exit with this code")
    parser.add_argument("--certificate", help="file with key and certificate: speak TLS")
    parser.add_argument("--note", type=Path, help="write pids of children and names of files here")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--shutdown-timeout")
    given = parser.parse_args()
    if given.log is not None:
        say(given.log.read_text())
    if given.exit is not None:
        sys.exit(given.exit)
    notes = [note for fault in given.fault for note in FAULTS[fault]()]
    if given.note is not None:
        given.note.write_text("\n".join(notes))
    Api.model = given.model
    ThreadingHTTPServer.request_queue_size = 64
    server = ThreadingHTTPServer((given.host, given.port), Api)
    if given.certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(given.certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    for fault in given.fault:
        if fault in LATE_FAULTS:
            threading.Timer(2.0, LATE_FAULTS[fault]).start()
    server.serve_forever()


def say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def ignore_term() -> list[str]:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return []


def _child(*, session: str = "same", deaf: bool = False) -> list[str]:
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else signal.SIG_DFL)
        if session == "own group":
            os.setpgrp()
        if session == "own session":
            os.setsid()
        time.sleep(FOREVER_S)
        os._exit(0)
    CHILDREN.append(pid)
    return [str(pid)]


def deep_grandchild() -> list[str]:
    """child → grandchild, deaf to SIGTERM, as an EngineCore that is still constructing."""
    read, write = os.pipe()
    if os.fork() == 0:
        os.write(write, _child(deaf=True)[0].encode())
        time.sleep(FOREVER_S)
        os._exit(0)
    return [os.read(read, 32).decode()]


def leave_shared_memory() -> list[str]:
    """A psm_ segment that no resource tracker will remove, as after a group SIGKILL."""
    segment = shared_memory.SharedMemory(create=True, size=4096)
    resource_tracker.unregister("/" + segment.name, "shared_memory")
    KEPT.append(segment)
    socket_file = Path(os.environ["VLLM_RPC_BASE_PATH"], "a-zmq-socket")
    socket_file.touch()
    return [segment.name, str(socket_file)]


def ask_for_a_key() -> list[str]:
    Api.models = 401
    return []


def have_no_health() -> list[str]:
    Api.health = 404
    return []


def be_slow() -> list[str]:
    Api.slow_s = 1.5
    return []


def hang() -> list[str]:
    time.sleep(FOREVER_S)
    return []


def lose_engine() -> None:
    """Die as vLLM 0.32 does: 503 at once, exit code 0 some seconds later."""
    Api.health = 503
    say("AsyncLLM output_handler failed.")
    time.sleep(2)
    os._exit(0)


def lose_child() -> None:
    """Go on as before without the first child."""
    child = CHILDREN[0]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    say("One is gone.")


def lose_child_silently() -> None:
    """Stay as vLLM 0.32 does with several API servers, whose engine died: the port is open, and nobody answers."""
    Api.silent = True
    lose_child()
    say("RuntimeError: Engine core process EngineCore_DP1 died unexpectedly.")


def go_silent() -> None:
    """Answer nothing, as under heavy load."""
    Api.silent = True
    say("Busy.")


CHILDREN: list[int] = []
KEPT: list[shared_memory.SharedMemory] = []
FAULTS: dict[str, Callable[[], list[str]]] = {
    "ignore-term": ignore_term,
    "child": _child,
    "deaf-child": lambda: _child(deaf=True),
    "own-group-child": lambda: _child(session="own group", deaf=True),
    "own-session-child": lambda: _child(session="own session", deaf=True),
    "deep-grandchild": deep_grandchild,
    "shared-memory": leave_shared_memory,
    "hang": hang,
    "key": ask_for_a_key,
    "no-health": have_no_health,
    "slow": be_slow,
    "kill-self-late": list,
    "exit-0-late": list,
    "lose-engine-late": list,
    "lose-child-late": _child,
    "lose-child-silently-late": _child,
    "go-silent-late": _child,
}
LATE_FAULTS: dict[str, Callable[[], None]] = {
    "kill-self-late": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit-0-late": lambda: os._exit(0),
    "lose-engine-late": lose_engine,
    "lose-child-late": lose_child,
    "lose-child-silently-late": lose_child_silently,
    "go-silent-late": go_silent,
}

if __name__ == "__main__":
    main()
