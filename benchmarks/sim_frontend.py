"""CPU time of vLLM's API server for a request and for a streamed token.

    python benchmarks/sim_frontend.py MODEL [--vllm "vllm serve"]

MODEL comes from scripts/make_tiny_model.py; vLLM is the CPU build. Two loads differ in the tokens of an answer alone.
The API server's own CPU time (/proc/PID/stat) of both gives the cost of a token and of a request. Set against the
profiles' `frontend_s_per_request` and `frontend_s_per_token`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import socket
import subprocess
import time
from pathlib import Path

import aiohttp

CLIENTS, REQUESTS, SHORT, LONG = 16, 320, 4, 68
READY_S = 300.0


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def load(url: str, model: str, tokens: int) -> int:
    """Stream REQUESTS answers of `tokens` over CLIENTS connections. Returns the chunks with text."""
    chunks, left = 0, iter(range(REQUESTS))

    async def client(session: aiohttp.ClientSession) -> None:
        nonlocal chunks
        for number in left:
            body = {
                "model": model, "prompt": f"{number} words of a prompt", "max_tokens": tokens, "ignore_eos": True,
                "stream": True, "temperature": 0,
            }  # fmt: skip
            async with session.post(f"{url}/v1/completions", json=body) as answer:
                async for line in answer.content:
                    chunks += line.startswith(b"data: {")

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(600)) as session:
        await asyncio.gather(*(client(session) for _ in range(CLIENTS)))
    return chunks


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    end_s = time.monotonic() + READY_S
    while time.monotonic() < end_s:
        assert process.poll() is None, "vLLM ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise TimeoutError(f"vLLM is not ready after {READY_S:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--vllm", default="vllm serve")
    given = parser.parse_args()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    flags = ["--host", "127.0.0.1", "--port", str(port), "--kv-cache-memory-bytes", "256M", "--max-model-len", "512"]
    command = [
        *shlex.split(given.vllm),
        given.model,
        *flags,
        "--enforce-eager",
        "--dtype",
        "float32",
        "--load-format",
        "dummy",
    ]
    log = Path("/tmp/sim_frontend.log").open("wb")  # noqa: SIM115 - the server writes to it until it ends
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until_ready(process, port)
        url = f"http://127.0.0.1:{port}"
        asyncio.run(load(url, given.model, SHORT))
        used = []
        for tokens in (SHORT, LONG):
            before_s = cpu_s(process.pid)
            chunks = asyncio.run(load(url, given.model, tokens))
            used.append((cpu_s(process.pid) - before_s, chunks))
        (short_s, short), (long_s, many) = used
        token_s = (long_s - short_s) / (many - short)
        print(f"{REQUESTS} requests: {short} chunks in {short_s:.2f} s, {many} chunks in {long_s:.2f} s of CPU time")
        print(f"a token {1e6 * token_s:.0f} µs, a request {1e3 * (short_s - short * token_s) / REQUESTS:.2f} ms")
    finally:
        process.terminate()
        process.wait(60)


if __name__ == "__main__":
    main()
