"""A program that behaves on the outside as `vllm serve` does: a worker process, /health after a while, ends on TERM.

STAND_IN=dies           ends with 1 before it is ready, as a refused start does
STAND_IN=stubborn       it and its worker ignore TERM
STAND_IN=orphan         ends on TERM, its worker does not
STAND_IN=odd            as orphan; its worker leads a group, and its name breaks careless readers of /proc/PID/stat
STAND_IN=slow           /health never answers
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

WORKER = "import signal, time; {}; time.sleep(600)"
IGNORE = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
ODD = f"{IGNORE}; import ctypes, os; os.setpgid(0, 0); ctypes.CDLL(None).prctl(15, b'a) Z 1\\n\\xff(', 0, 0, 0)"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        return


def main() -> None:
    mode = os.environ.get("STAND_IN", "")
    argv = sys.argv[1:]
    host, port = argv[argv.index("--host") + 1], int(argv[argv.index("--port") + 1])
    sys.stdout.write(f"VLLM_ENABLE_STARTUP_PLAN={os.environ.get('VLLM_ENABLE_STARTUP_PLAN')}" + "\n")
    sys.stdout.flush()
    if mode == "dies":
        sys.exit("ValueError: To serve at least one request with the model's max seq len (16384), 1.0 GiB is needed")
    if mode == "slow":
        time.sleep(600)
    manner = {"stubborn": IGNORE, "orphan": IGNORE, "odd": ODD}.get(mode, "0")
    worker = subprocess.Popen([sys.executable, "-c", WORKER.format(manner)])

    def end(*_: object) -> None:
        if mode not in ("orphan", "odd"):
            worker.terminate()
            worker.wait()
        os._exit(0)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "stubborn" else end)
    time.sleep(0.3)
    sys.stdout.write("Starting vLLM server\n")
    sys.stdout.flush()
    ThreadingHTTPServer((host, port), Handler).serve_forever()


if __name__ == "__main__":
    main()
