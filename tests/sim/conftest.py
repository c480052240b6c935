"""Stand-in server as a child process, and the few HTTP calls that tests need."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.ports import free_port
from tests.server.support import session
from tuner.server.leftovers import remove_shared_memory, shared_memory_inodes

READY_S = 20.0


@dataclass
class Server:
    """One `python -m tuner.sim serve` in its own session."""

    process: subprocess.Popen[bytes]
    port: int
    log_path: Path
    gpu_dir: Path
    rpc_dir: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def call(self, path: str, body: object = None, timeout_s: float = 5.0) -> tuple[int, str]:
        """Return (status, text), or (0, name of the error) if there is no answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        try:
            connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            return 0, type(error).__name__
        finally:
            connection.close()

    def chat(self, tokens: int = 5, prompt: str = "hello", **more: object) -> tuple[int, str]:
        body = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **more,
        }
        return self.call("/v1/chat/completions", body)

    def metric(self, name: str) -> float:
        """Sum one sample name over its labels."""
        lines = self.call("/metrics")[1].splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.split("{")[0] == name)

    def ready(self) -> Server:
        end_s = time.monotonic() + READY_S
        while self.call("/health")[0] != 200:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < end_s, self.log
            time.sleep(0.02)
        return self

    def wait(self, timeout_s: float = 10.0) -> int:
        return self.process.wait(timeout_s)

    def children(self) -> dict[int, str]:
        """Map pid to title for the living vLLM processes of this server's session."""
        titles: dict[int, str] = {}
        for one in session(self.process.pid):
            with suppress(OSError):
                titles[one.pid] = (
                    Path(f"/proc/{one.pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
                )
        return {pid: title for pid, title in titles.items() if title.startswith("VLLM::")}

    def end(self) -> None:
        for pid in (*self.children(), self.process.pid):
            if pid != self.process.pid or self.process.poll() is None:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait(5)


Serve = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start servers that share GPUs, compile cache and start counter. All of them are gone after the test."""
    servers: list[Server] = []
    before = shared_memory_inodes()
    rpc_dir = Path(tempfile.mkdtemp(prefix="rpc-"))  # the path of a socket holds about 100 bytes

    def start(*flags: str, env: Mapping[str, str] | None = None, model: str = "Qwen/Qwen3-0.6B") -> Server:
        port = free_port()
        log_path = tmp_path / f"server-{len(servers)}.log"
        environment = {
            **os.environ,
            "TUNER_SIM_SPEED": "1000",
            "TUNER_SIM_GPU_DIR": str(tmp_path / "gpu"),
            "TUNER_SIM_STATE": str(tmp_path / "state"),
            "VLLM_CACHE_ROOT": str(tmp_path / "cache"),
            "VLLM_RPC_BASE_PATH": str(rpc_dir),
            **(env or {}),
        }
        command = [sys.executable, "-m", "tuner.sim", "serve", model, "--host", "127.0.0.1", "--port", str(port)]
        if "--max-model-len" not in flags:
            command += ["--max-model-len", "2048"]
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [*command, *flags], stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        servers.append(Server(process, port, log_path, tmp_path / "gpu", rpc_dir))
        return servers[-1]

    yield start
    for server in servers:
        server.end()
    # What a killed server left. A segment that a process maps belongs to a server of somebody else.
    remove_shared_memory(Path("/dev/shm").glob("psm_*"), before=before)
    shutil.rmtree(rpc_dir)
