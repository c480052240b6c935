"""The same server measured by us and by `vllm bench serve`: same prompts, same moments of sending, turn by turn.

Where the two differ by definition: vLLM 0.32 times the role chunk as the first token (here it comes with the token,
within the same engine output), its QPS counts to the last answer, and its percentiles interpolate. Both are therefore
computed here from each tool's own rows, in one way.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

import numpy as np
import pytest

from tuner.load.drive import Samples, drive_open
from tuner.load.prompts import Prompts, Request
from tuner.load.stream import Target
from tuner.load.workload import workload
from tuner.telemetry.prometheus import Deltas, deltas
from tuner.telemetry.sampler import Sampler

pytestmark = pytest.mark.real_vllm

BASE_FLAGS = (
    "--enforce-eager", "--load-format", "dummy", "--dtype", "float32", "--kv-cache-memory-bytes", "256M",
)  # fmt: skip
RATE = 6.0
COUNT = 150
TURNS = 1


@dataclass(frozen=True, slots=True)
class Seen:
    """One run of either tool, from its own rows."""

    sent_s: list[float]
    ttft_ms: list[float]
    qps: float


@pytest.fixture(scope="module")
def server(tiny_model: str, vllm_command: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("vllm")
    environment = {
        **os.environ, "VLLM_ENABLE_STARTUP_PLAN": "0", "VLLM_CACHE_ROOT": str(folder / "cache"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [*vllm_command, tiny_model, *BASE_FLAGS, "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        _wait_until_ready(f"http://127.0.0.1:{port}", process, folder / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with build_opener(ProxyHandler({})).open(f"{url}/health", timeout=5):
                return
        except (URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"vLLM did not start:\n{log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="module")
def requests(tiny_model: str) -> list[Request]:
    return Prompts.for_model(workload("random:48-80,16-24"), tiny_model, 0, None).requests("bench", COUNT)


def by_vllm(server: str, model: str, program: str, requests: list[Request], folder: Path) -> Seen:
    data = folder / "prompts.jsonl"
    rows = [{"prompt": r.messages[0][1], "output_tokens": r.max_tokens} for r in requests]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        program, "bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions",
        "--base-url", server, "--model", model, "--dataset-name", "custom", "--dataset-path", str(data),
        "--custom-output-len", "-1", "--skip-chat-template", "--disable-shuffle",
        "--num-prompts", str(len(requests)), "--request-rate", str(RATE), "--seed", "0", "--ignore-eos",
        "--save-result", "--save-detailed", "--result-dir", str(folder), "--result-filename", "result.json",
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=180)
    result = json.loads((folder / "result.json").read_text())
    assert result["completed"] == len(requests)
    assert result["output_lens"] == [r.max_tokens for r in requests]
    sent = [float(s) for s in result["start_times"]]
    last = [s + t + sum(i) for s, t, i in zip(sent, result["ttfts"], result["itls"], strict=True)]
    qps = len(sent) / (max(last) - min(sent))
    return Seen([s - min(sent) for s in sent], [t * 1000 for t in result["ttfts"]], qps)


def by_us(server: str, model: str, requests: list[Request], due_s: list[float]) -> tuple[Seen, Samples, Deltas]:
    recording = Sampler(f"{server}/metrics").start()
    samples = drive_open(Target(server, model), requests, due_s, max(due_s) + 0.1)
    telemetry = recording.finish()
    assert [r.failure for r in samples.requests] == [None] * len(requests)
    last = [r.last_ns for r in samples.requests if r.last_ns is not None]
    qps = len(last) * 1e9 / (max(last) - samples.requests[0].sent_ns)
    ttft_ms = [(r.first_ns - r.sent_ns) / 1e6 for r in samples.requests if r.first_ns is not None]
    return Seen(due_s, ttft_ms, qps), samples, deltas(telemetry.before, telemetry.after)


def test_we_and_vllms_own_benchmark_see_the_same_server(
    server: str,
    tiny_model: str,
    vllm_command: tuple[str, ...],
    requests: list[Request],
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    by_us(server, tiny_model, requests[:40], [i / RATE for i in range(40)])  # warm
    theirs, ours = [], []
    for _ in range(TURNS):
        theirs.append(by_vllm(server, tiny_model, vllm_command[0], requests, tmp_path))
        ours.append(by_us(server, tiny_model, requests, theirs[-1].sent_s)[0])
    mine, its = np.concatenate([s.ttft_ms for s in ours]), np.concatenate([s.ttft_ms for s in theirs])
    table = {
        "qps": (float(np.mean([s.qps for s in ours])), float(np.mean([s.qps for s in theirs])), 0.02),
        "median ttft ms": (float(np.median(mine)), float(np.median(its)), 0.05),
        "p99 ttft ms": (float(np.percentile(mine, 99)), float(np.percentile(its, 99)), 0.10),
    }
    record_property("ours, theirs, allowed when idle", table)
    ratios = {name: one / other - 1 for name, (one, other, _) in table.items()}
    # Latencies are recorded, not judged: between two runs a busy machine moves the server itself by more than the tools
    # differ. The rate is set by the schedule, and only the last answers' tail can move it.
    assert abs(ratios["qps"]) < 0.10, table


def test_the_servers_own_counters_equal_ours(server: str, tiny_model: str, requests: list[Request]) -> None:
    _, samples, rise = by_us(server, tiny_model, requests[:60], [i / RATE for i in range(60)])
    assert rise.succeeded == 60
    assert rise.generation_tokens == sum(r.output_tokens or 0 for r in samples.requests)
    assert rise.generation_tokens == sum(r.max_tokens for r in requests[:60])
    assert rise.prompt_tokens == sum(r.prompt_tokens or 0 for r in samples.requests)
    assert rise.preemptions == 0


def test_prompt_lengths_are_exact_up_to_the_chat_template(
    server: str, tiny_model: str, requests: list[Request]
) -> None:
    _, samples, _ = by_us(server, tiny_model, requests[:20], [i / RATE for i in range(20)])
    template = {(s.prompt_tokens or 0) - r.prompt_tokens for s, r in zip(samples.requests, requests, strict=False)}
    assert len(template) == 1, "the template adds the same tokens to every prompt"


def test_the_servers_own_ttft_agrees_with_ours(server: str, tiny_model: str, requests: list[Request]) -> None:
    """Its histogram's mean leaves out HTTP and the network; ours must lie above it, by more where the host is busy."""
    seen, _, rise = by_us(server, tiny_model, requests[:60], [i / RATE for i in range(60)])
    assert rise.server_ttft_ms_mean is not None
    assert float(np.mean(seen.ttft_ms)) > rise.server_ttft_ms_mean - 1
