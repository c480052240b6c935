"""Self-check of this machine as a load generator."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from tuner.http import control_client
from tuner.load.drive import drive_closed
from tuner.load.prompts import Request
from tuner.load.stream import RequestSample, Target

STEP_S = 0.02
TOKENS = 100
RATES = (2_500, 5_000, 10_000, 20_000, 40_000)
SAFE_INFLATION_MS = 2.0
SAFE_CPU_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class CheckedRate:
    """One rate of streamed chunks. Inflation is the client's stamp of a first token minus the server's own.
    `chunks_per_s` was achieved, `offered` asked for. `cpu_us_per_chunk` is the client thread's CPU time."""

    offered: float
    streams: int
    chunks_per_s: float
    inflation_p50_ms: float
    inflation_p99_ms: float
    lag_p99_ms: float
    cpu_share: float
    cpu_us_per_chunk: float

    @property
    def safe(self) -> bool:
        return (
            self.inflation_p99_ms < SAFE_INFLATION_MS
            and self.cpu_share < SAFE_CPU_SHARE
            and self.chunks_per_s > 0.95 * self.offered
        )


@dataclass(frozen=True, slots=True)
class SelfCheck:
    rates: tuple[CheckedRate, ...]

    @property
    def safe_chunks_per_s(self) -> float | None:
        """Return the highest rate below the first unsafe one. None if there is none."""
        safe = None
        for rate in self.rates:
            if not rate.safe:
                break
            safe = rate.offered
        return safe


def self_check(
    rates: Sequence[float] = RATES, seconds: float = 5.0, on_rate: Callable[[CheckedRate], None] | None = None
) -> SelfCheck:
    """Measure rising rates up to the first unsafe one. `on_rate` gets each as it ends."""
    checked: list[CheckedRate] = []
    with known_server() as base_url:
        for rate in rates:
            checked.append(check_rate(base_url, rate, seconds))
            if on_rate is not None:
                on_rate(checked[-1])
            if not checked[-1].safe:
                break
    return SelfCheck(tuple(checked))


@contextmanager
def known_server(step_s: float = STEP_S) -> Iterator[str]:
    """Run the known server and yield its base URL. The process ends with the block."""
    command = [sys.executable, "-m", "tuner.load.known_server", "--step-ms", str(step_s * 1000)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def known_requests(count: int, tokens: int = TOKENS) -> list[Request]:
    """Build requests for the known server. It keeps its truth under the number in `user`."""
    return [Request((("user", "hello"),), 1, tokens, {"user": str(index)}) for index in range(count)]


def truth_ns(base_url: str) -> dict[int, int]:
    """Return the first tokens' times since the last call."""
    with control_client(base_url, timeout_s=30) as client:
        truth = client.get("/truth").raise_for_status().json()
    return {int(index): int(at) for index, at in truth.items()}


def check_rate(base_url: str, rate: float, seconds: float) -> CheckedRate:
    streams = max(1, round(rate * STEP_S))
    answer_s = (TOKENS + 1) * STEP_S
    requests = known_requests(round(2 * streams * (seconds / answer_s + 2)))
    samples = drive_closed(Target(base_url, "known"), requests, streams, seconds, ramp_s=min(answer_s, seconds / 2))
    truth = truth_ns(base_url)
    inflation = inflation_ms(samples.requests, truth)
    chunks = sum(len(r.token_ns) for r in samples.requests)
    window = (samples.started_ns + round(samples.ramp_s * 1e9), samples.ended_ns)
    in_window = sum(window[0] <= at < window[1] for r in samples.requests for at in r.token_ns)
    elapsed_s = (samples.drained_ns - samples.started_ns) / 1e9
    return CheckedRate(
        offered=rate,
        streams=streams,
        chunks_per_s=in_window / ((window[1] - window[0]) / 1e9),
        inflation_p50_ms=float(np.percentile(inflation, 50)),
        inflation_p99_ms=float(np.percentile(inflation, 99)),
        lag_p99_ms=samples.client.lag_p99_ms,
        cpu_share=samples.client.cpu_share,
        cpu_us_per_chunk=samples.client.cpu_share * elapsed_s * 1e6 / max(chunks, 1),
    )


def inflation_ms(requests: Sequence[RequestSample], truth: dict[int, int]) -> list[float]:
    return [(r.first_ns - truth[r.index]) / 1e6 for r in requests if r.first_ns is not None and r.index in truth]
