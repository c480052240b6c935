"""Comparison of the stand-in with the real vLLM (CPU build, tiny model): 12 configurations, 5 refusals, one load.

    python benchmarks/sim_fidelity.py measure --vllm "vllm serve" --model DIR --out measured.json   # about 13 minutes
    python benchmarks/sim_fidelity.py compare measured.json                                        # seconds

`measure` starts the real server once per configuration and sends a closed loop of token-id prompts. `compare` fits
four constants of the CPU profile to the four configurations marked for calibration. It predicts the other eight in
virtual time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import aiohttp
import numpy as np

from tuner.sim import (
    ClosedLoop,
    EngineArguments,
    Hardware,
    Refused,
    Shape,
    hardware_profile,
    load_model,
    simulate,
    startup,
)
from tuner.sim.arguments import parse

CLIENTS = 64
WARMUP_S = 5.0
MEASURE_S = 16.0
PRIORITY = -15
COMMON = (
    "--load-format dummy --dtype float32 --enforce-eager --max-model-len 512 --block-size 32 --no-enable-prefix-caching"
)


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    flags: str
    calibration: bool = False


CASES = (
    Case("A", "--max-num-seqs 64 --max-num-batched-tokens 2048 --kv-cache-memory-bytes 256M", calibration=True),
    Case("B", "--max-num-seqs 4 --max-num-batched-tokens 2048 --kv-cache-memory-bytes 256M", calibration=True),
    Case("C", "--max-num-seqs 16 --max-num-batched-tokens 256 --kv-cache-memory-bytes 256M", calibration=True),
    Case("D", "--max-num-seqs 32 --max-num-batched-tokens 512 --kv-cache-memory-bytes 32M", calibration=True),
    Case("E", "--max-num-seqs 8 --max-num-batched-tokens 2048 --kv-cache-memory-bytes 256M"),
    Case("F", "--max-num-seqs 32 --max-num-batched-tokens 2048 --kv-cache-memory-bytes 256M"),
    Case("G", "--max-num-seqs 64 --max-num-batched-tokens 128 --kv-cache-memory-bytes 256M"),
    Case("H", "--max-num-seqs 64 --max-num-batched-tokens 512 --kv-cache-memory-bytes 40M"),
    Case("I", "--max-num-seqs 32 --max-num-batched-tokens 64 --kv-cache-memory-bytes 256M"),
    Case("J", "--max-num-seqs 16 --max-num-batched-tokens 512 --kv-cache-memory-bytes 16M"),
    Case("K", "--max-num-seqs 64 --max-num-batched-tokens 2048 --kv-cache-memory-bytes 24M"),
    Case("L", "--max-num-seqs 48 --max-num-batched-tokens 1024 --kv-cache-memory-bytes 128M"),
)
REFUSALS = (
    Case("kv too small", "--kv-cache-memory-bytes 4M"),
    Case("batched < seqs", "--max-num-seqs 64 --max-num-batched-tokens 32"),
    Case("length > model", "--max-model-len 999999"),
    Case("host memory", "--gpu-memory-utilization 0.999"),
    Case("unknown flag", "--max-num-partial-prefills 2"),
)
CAUSES = (
    ("kv too small", "To serve at least one request with the model's max seq len"),
    ("batched < seqs", "must be greater than or equal to max_num_seqs"),
    ("length > model", "is greater than the derived max_model_len"),
    ("host memory", "on startup is less than desired CPU memory utilization"),
    ("unknown flag", "error: unrecognized arguments"),
)


@dataclass(frozen=True, slots=True)
class Level:
    """Result of one configuration: client-side times, and the server's own preemption counter."""

    qps: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_ms: float
    preemptions: int


def shapes() -> list[Shape]:
    """Draw 400 requests, 32-96 tokens in and 32-64 out, the same ones in the same order for both."""
    generator = random.Random(11)
    return [Shape(generator.randint(32, 96), generator.randint(32, 64)) for _ in range(400)]


# ---------------------------------------------------------------- the real server


def command(vllm: str, model: str, flags: str, port: int) -> list[str]:
    common = shlex.split(COMMON)
    if "--max-model-len" in flags:
        at = common.index("--max-model-len")
        common = common[:at] + common[at + 2 :]
    return [*shlex.split(vllm), model, *common, *shlex.split(flags), "--port", str(port), "--host", "127.0.0.1"]


def start(arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start the real server in its own session, with the engine on core 0. Client and API server have the other
    core."""
    environment = {**os.environ, "VLLM_CPU_OMP_THREADS_BIND": "0", "VLLM_ENABLE_STARTUP_PLAN": "0"}
    with log.open("wb") as stream:
        return subprocess.Popen(
            arguments, stdout=stream, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def wait_ready(process: subprocess.Popen[bytes], port: int, limit_s: float = 180.0) -> bool:
    """Wait for /health. Returns False if the process ended before."""
    end_s = time.monotonic() + limit_s
    while process.poll() is None:
        if time.monotonic() > end_s:
            raise TimeoutError(f"not ready after {limit_s} s")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            time.sleep(0.3)
    return False


def prefer(group: int) -> None:
    """Give server and client priority over other jobs. Without the right to do so the numbers are noise."""
    try:
        os.setpriority(os.PRIO_PGRP, group, PRIORITY)
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    except PermissionError:
        print("no right to raise priorities: other jobs of this machine count", file=sys.stderr)


def stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def preemptions(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return int(sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:num_preemptions_total")))


async def drive(port: int, model: str) -> list[tuple[float, float, float, int]]:
    """Drive a closed loop. Returns (sent, first token, done, tokens) of every request, in seconds since the start."""
    todo, generator = iter(range(10**9)), random.Random(5)
    samples: list[tuple[float, float, float, int]] = []
    wanted = shapes()
    begun_s = time.perf_counter()

    async def client(session: aiohttp.ClientSession) -> None:
        while (sent_s := time.perf_counter() - begun_s) < WARMUP_S + MEASURE_S:
            shape = wanted[next(todo) % len(wanted)]
            body = {
                "model": model, "prompt": [generator.randrange(3, 4000) for _ in range(shape.prompt_tokens)],
                "max_tokens": shape.output_tokens, "ignore_eos": True, "stream": True,
            }  # fmt: skip
            first_s = 0.0
            async with session.post(f"http://127.0.0.1:{port}/v1/completions", json=body) as answer:
                async for line in answer.content:
                    if line.startswith(b"data: {") and not first_s:
                        first_s = time.perf_counter() - begun_s
            samples.append((sent_s, first_s, time.perf_counter() - begun_s, shape.output_tokens))

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=300)) as session:
        await asyncio.gather(*(client(session) for _ in range(CLIENTS)))
    return samples


def level(samples: Sequence[tuple[float, float, float, int]], preempted: int) -> Level:
    inside = [s for s in samples if s[0] >= WARMUP_S and s[0] < WARMUP_S + MEASURE_S]
    ttft_ms = [1000 * (first - sent) for sent, first, _, _ in inside]
    itl_ms = [1000 * (done - first) / (tokens - 1) for _, first, done, tokens in inside]
    done = sum(1 for s in samples if WARMUP_S < s[2] <= WARMUP_S + MEASURE_S)
    p50, p99 = np.percentile(ttft_ms, [50, 99])
    return Level(done / MEASURE_S, float(p50), float(p99), float(np.mean(itl_ms)), preempted)


def cause_of(log: str) -> str:
    return next((name for name, text in CAUSES if text in log), "none")


def measure(vllm: str, model: str, out: Path, port: int, only: str | None, *, again: bool) -> None:
    """Measure every case once. Writes the file after each, and skips cases that are in it.

    `again` measures once more and keeps the run with the higher QPS: other jobs of the machine can only slow it
    down.
    """
    levels: dict[str, dict[str, float]] = {}
    refusals: dict[str, dict[str, object]] = {}
    if out.is_file():
        earlier = json.loads(out.read_text())
        levels, refusals = earlier["levels"], earlier["refusals"]
    log = Path(tempfile.mkdtemp(prefix="sim-fidelity-")) / "server.log"
    for case in (*CASES, *REFUSALS):
        if only not in (None, case.name) or case.name in refusals or (case.name in levels and not again):
            continue
        port += 1
        process = start(command(vllm, model, case.flags, port), log)
        try:
            ready = wait_ready(process, port)
            if case in CASES and ready:
                prefer(process.pid)
                asyncio.run(drive_short(port, model))
                before = preemptions(port)
                samples = asyncio.run(drive(port, model))
                time.sleep(1.0)
                measured = asdict(level(samples, preemptions(port) - before))
                levels[case.name] = max(measured, levels.get(case.name, measured), key=lambda kept: kept["qps"])
        finally:
            if process.poll() is None:
                stop(process)
        if case in REFUSALS:
            text = log.read_text(errors="replace")
            refusals[case.name] = {"cause": cause_of(text), "exit_code": process.returncode}
        print(case.name, levels.get(case.name) or refusals.get(case.name) or f"failed, see {log}", flush=True)
        out.write_text(json.dumps({"model": model, "levels": levels, "refusals": refusals}, indent=1))


async def drive_short(port: int, model: str) -> None:
    """Warm the operators: their first calls compile and allocate."""
    async with aiohttp.ClientSession() as session:
        body = {"model": model, "prompt": list(range(5, 60)), "max_tokens": 16, "ignore_eos": True}
        for _ in range(2):
            await asyncio.gather(
                *(session.post(f"http://127.0.0.1:{port}/v1/completions", json=body) for _ in range(CLIENTS))
            )


# ---------------------------------------------------------------- the stand-in


def engine_arguments(flags: str) -> EngineArguments:
    words = command("serve", "tiny", flags, 1)
    return parse(words, {"TUNER_SIM_PROFILE": "cpu"}).engine


def predict(case: Case, model_dir: str, hardware: Hardware) -> Level:
    model = load_model(model_dir, "float32")
    started = startup(engine_arguments(case.flags), hardware, model)
    if isinstance(started, Refused):
        raise RuntimeError(started.message)
    run = simulate(started, hardware, model, ClosedLoop(shapes(), CLIENTS, WARMUP_S + MEASURE_S, warmup_s=WARMUP_S))
    samples = list(
        zip(
            run.sent_s.tolist(),
            run.first_token_s.tolist(),
            run.done_s.tolist(),
            run.output_tokens.tolist(),
            strict=True,
        )
    )
    return level(samples, run.preemptions)


FITTED = ("flops_per_s", "launch_s_per_layer", "sequence_overhead_s", "frontend_s_per_request")


def fit(error: Callable[[Hardware], float], hardware: Hardware) -> Hardware:
    """Minimise by coordinate descent on the logarithms of the four constants. Needs no library."""
    best, best_error = hardware, error(hardware)
    for factor in (3.0, 1.7, 1.3, 1.12, 1.05, 1.02):
        improved = True
        while improved:
            improved = False
            for name in FITTED:
                for scale in (factor, 1 / factor):
                    candidate = replace(best, **{name: getattr(best, name) * scale})
                    candidate_error = error(candidate)
                    if candidate_error < best_error * 0.999:
                        best, best_error, improved = candidate, candidate_error, True
    return best


def calibrate(measured: dict[str, Level], model_dir: str) -> Hardware:
    """Fit logarithms of QPS (twice), median and P99 TTFT and ITL over the calibration cases, by least squares."""

    def error(hardware: Hardware) -> float:
        total = 0.0
        for case in CASES:
            if case.calibration:
                real, simulated = measured[case.name], predict(case, model_dir, hardware)
                pairs = (
                    (real.qps, simulated.qps, 2.0),
                    (real.itl_ms, simulated.itl_ms, 1.0),
                    (real.ttft_p50_ms, simulated.ttft_p50_ms, 0.5),
                    (real.ttft_p99_ms, simulated.ttft_p99_ms, 0.5),
                )
                total += sum(weight * math.log(b / a) ** 2 for a, b, weight in pairs)
        return total

    return fit(error, hardware_profile("cpu"))


def compare(path: Path) -> int:
    results = json.loads(path.read_text())
    model_dir = results["model"]
    measured = {name: Level(**values) for name, values in results["levels"].items()}
    hardware = calibrate(measured, model_dir)
    print("calibrated: " + ", ".join(f"{name} {getattr(hardware, name):.3g}" for name in FITTED))
    print("| | configuration | QPS real | QPS sim | | P99 TTFT real, ms | sim | | preemptions real | sim |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    missed = 0
    for case in CASES:
        real, simulated = measured[case.name], predict(case, model_dir, hardware)
        qps, ttft = simulated.qps / real.qps - 1, simulated.ttft_p99_ms / real.ttft_p99_ms - 1
        flags = case.flags.replace("--max-num-", "").replace("--kv-cache-memory-bytes", "kv")
        mark = "calibration" if case.calibration else ""
        same = (real.preemptions > 0) == (simulated.preemptions > 0)
        missed += not case.calibration and (abs(qps) > 0.15 or abs(ttft) > 0.30 or not same)
        print(
            f"| {case.name} {mark} | {flags} | {real.qps:.1f} | {simulated.qps:.1f} | {qps:+.0%} "
            f"| {real.ttft_p99_ms:.0f} | {simulated.ttft_p99_ms:.0f} | {ttft:+.0%} "
            f"| {real.preemptions} | {simulated.preemptions} |"
        )
    print("\n| refusal | cause real | exit | cause sim | exit |\n|---|---|---|---|---|")
    for case in REFUSALS:
        real_refusal = results["refusals"][case.name]
        cause, code = refuse_simulated(case, model_dir)
        print(f"| {case.name} | {real_refusal['cause']} | {real_refusal['exit_code']} | {cause} | {code} |")
        missed += (cause, code) != (real_refusal["cause"], real_refusal["exit_code"])
    print(f"\nmissed: {missed}")
    return 1 if missed else 0


def refuse_simulated(case: Case, model_dir: str) -> tuple[str, int]:
    """Start the stand-in as a process, because refusals are about logs and exit codes."""
    environment = {**os.environ, "TUNER_SIM_PROFILE": "cpu", "TUNER_SIM_SPEED": "100"}
    words = command(f"{sys.executable} -m tuner.sim serve", model_dir, case.flags, 18999)
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=60, check=False)
    return cause_of(done.stdout + done.stderr), done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("--vllm", default="vllm serve")
    measuring.add_argument("--model", required=True)
    measuring.add_argument("--out", type=Path, default=Path("measured.json"))
    measuring.add_argument("--port", type=int, default=18400)
    measuring.add_argument("--only", choices=[case.name for case in (*CASES, *REFUSALS)])
    measuring.add_argument("--again", action="store_true", help="keep the faster of two runs of each configuration")
    comparing = commands.add_parser("compare")
    comparing.add_argument("measured", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "measure":
        measure(chosen.vllm, chosen.model, chosen.out, chosen.port, chosen.only, again=chosen.again)
        return 0
    return compare(chosen.measured)


if __name__ == "__main__":
    sys.exit(main())
