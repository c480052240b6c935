"""CPU cost of our load generator beside the request function of `vllm bench serve`: same server, cores and streams.

    python benchmarks/client.py [--seconds 6] [--rates 5000 10000 20000 40000] [--repeats 3]

The server has one core, the client the other. Both ask for SCHED_FIFO, so that other jobs of a shared machine do not
count as the client's. Every stream emits at the same moments (20 ms apart), as an engine's step does. Inflation is
the client's stamp of the first token minus the server's own. CPU is that of the client's thread. vLLM's function is
driven as its benchmark does: plain asyncio, one aiohttp session, json.loads on every chunk.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from tuner.load.self_check import STEP_S, TOKENS, check_rate, known_server, truth_ns

ANSWER_S = (TOKENS + 1) * STEP_S


@dataclass(frozen=True, slots=True)
class Cell:
    """One client at one offered rate of chunks per second."""

    offered: float
    achieved: float
    us_per_chunk: float
    cpu_share: float
    inflation_p50_ms: float
    inflation_p99_ms: float


def prefer(core: int) -> None:
    """Pin this process to one core, before other jobs if the machine allows it."""
    os.sched_setaffinity(0, {core})
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    except PermissionError:
        print("no SCHED_FIFO here: other jobs of this machine count as the client's", file=sys.stderr)


def ours(base_url: str, rate: float, seconds: float) -> Cell:
    found = check_rate(base_url, rate, seconds)
    return Cell(
        rate,
        found.chunks_per_s,
        found.cpu_us_per_chunk,
        found.cpu_share,
        found.inflation_p50_ms,
        found.inflation_p99_ms,
    )


def vllms(base_url: str, rate: float, seconds: float) -> Cell:
    """Drive vLLM's own request function in a closed loop of workers, ramped as ours."""
    import aiohttp
    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncInput, async_request_openai_chat_completions

    streams = max(1, round(rate * STEP_S))
    ramp_s = min(ANSWER_S, seconds / 2)
    starts: dict[int, float] = {}
    arrivals: list[float] = []
    chunks = 0

    async def run() -> tuple[float, float, float]:
        nonlocal chunks
        connector = aiohttp.TCPConnector(limit=streams, limit_per_host=streams, ttl_dns_cache=300, keepalive_timeout=60)
        async with aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(total=6 * 60 * 60)
        ) as session:
            began, cpu = time.perf_counter(), time.thread_time()
            supply = iter(range(1_000_000))

            async def worker(delay_s: float) -> None:
                nonlocal chunks
                await asyncio.sleep(delay_s)
                while time.perf_counter() < began + seconds:
                    index = next(supply)
                    request = RequestFuncInput(
                        prompt="hello",
                        api_url=f"{base_url}/v1/chat/completions",
                        prompt_len=1,
                        output_len=TOKENS,
                        model="known",
                        extra_body={"user": str(index)},
                    )
                    output = await async_request_openai_chat_completions(request, session)
                    assert output.success, output.error
                    starts[index] = output.start_time + output.ttft
                    at = starts[index]
                    arrivals.append(at)
                    for gap_s in output.itl:
                        at += gap_s
                        arrivals.append(at)
                    chunks += 1 + len(output.itl)

            await asyncio.gather(*(worker(ramp_s * n / streams) for n in range(streams)))
            return began, time.thread_time() - cpu, time.perf_counter() - began

    gc.collect()
    gc.freeze()  # as vllm bench serve does
    began, cpu_s, elapsed_s = asyncio.run(run())
    truth = truth_ns(base_url)
    inflation = [at * 1e3 - truth[index] / 1e6 for index, at in starts.items() if index in truth]
    inside = sum(began + ramp_s <= at < began + seconds for at in arrivals)
    return Cell(
        offered=rate,
        achieved=inside / (seconds - ramp_s),
        # A role chunk comes with every answer and is parsed too, by both clients; neither is counted.
        us_per_chunk=cpu_s * 1e6 / (chunks * TOKENS / (TOKENS + 1)),
        cpu_share=cpu_s / elapsed_s,
        inflation_p50_ms=float(np.percentile(inflation, 50)),
        inflation_p99_ms=float(np.percentile(inflation, 99)),
    )


CLIENTS = {"tuner": ours, "vllm": vllms}


def child(client: str, rate: float, seconds: float) -> None:
    """Run one cell in a fresh process and print it as JSON."""
    prefer(0)
    with known_server() as base_url:  # inherits core and class
        prefer(1)
        print(json.dumps(asdict(CLIENTS[client](base_url, rate, seconds))))


def measured(client: str, rate: float, seconds: float, repeats: int) -> list[Cell]:
    command = [sys.executable, __file__, "--child", client, "--rates", str(rate), "--seconds", str(seconds)]
    cells = []
    for _ in range(repeats):
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        cells.append(Cell(**json.loads(done.stdout.splitlines()[-1])))
    return cells


def row(client: str, cells: Sequence[Cell]) -> str:
    def median(name: str) -> float:
        return float(statistics.median(getattr(cell, name) for cell in cells))

    cost = median("us_per_chunk")
    return (
        f"| {client} | {cells[0].offered:,.0f} | {median('achieved'):,.0f} | {cost:.1f} | {1e6 / cost:,.0f} "
        f"| {median('cpu_share'):.0%} | {median('inflation_p50_ms'):.2f} | {median('inflation_p99_ms'):.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[5_000, 10_000, 20_000, 40_000])
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--child", choices=CLIENTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.rates[0], given.seconds)
        return
    print("| client | chunks/s offered | achieved | CPU µs/chunk | chunks/s/core | CPU | inflation p50 ms | p99 ms |")
    print("|---|---|---|---|---|---|---|---|")
    for rate in given.rates:
        for client in CLIENTS:
            print(row(client, measured(client, rate, given.seconds, given.repeats)), flush=True)


if __name__ == "__main__":
    main()
