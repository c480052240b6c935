"""Comparison of the stand-in with a public measurement: Qwen 27B BF16, TP 4, on four of eight RTX 5090 (PCIe, no
P2P).

    python benchmarks/sim_5090.py

Source of the measured numbers: "8 × RTX 5090, Qwen3.6-27B, vLLM 0.20.2"
(gitcode.csdn.net/6a0ceb7b10ee7a33f273cb87.html, found as a stored copy): max-num-seqs 256, max-num-batched-tokens
16384, closed loop at 10 to 256 concurrent. Everything about the machine comes from the rtx5090 profile and the
model's shape (64 layers, hidden 5120, 17408, 16 layers with attention; Qwen3.5/3.6-27B model card). The accessible
part of the article does not give the lengths of its requests. They are the only assumption:

- general chat: answers of 150 tokens (given), prompts of 40 (assumed: one question in a chat template);
- short answers: 50 tokens out, 60 in. At 10 concurrent the step hardly depends on the load, so both workloads have the
  same step. 10 / 4.7 s for 150 tokens and 10 / 13.4 s for a short answer make that 150 · 4.7 / 13.4 = 53 tokens and
  their prefill. The prompt is assumed.

Lengths are spread by ±30 % so that the clients do not march in step.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tuner.sim import ClosedLoop, EngineArguments, Refused, Shape, hardware_profile, load_model, simulate, startup

WARMUP_S, DURATION_S = 15.0, 75.0
TOLERANCE = 0.25


@dataclass(frozen=True, slots=True)
class Public:
    """Measured series: concurrency → QPS."""

    name: str
    prompt_tokens: int
    output_tokens: int
    qps: Mapping[int, float]


SERIES = (
    Public("short answers", 60, 50, {10: 13.4, 30: 28.1, 64: 45.2, 128: 60.2, 200: 64.9, 256: 64.7}),
    Public("general chat", 40, 150, {10: 4.7, 30: 15.1, 64: 22.9, 128: 29.1, 200: 32.2}),
)


def shapes(series: Public) -> list[Shape]:
    generator = random.Random(1)

    def spread(tokens: int) -> int:
        return max(1, round(tokens * generator.uniform(0.7, 1.3)))

    return [Shape(spread(series.prompt_tokens), spread(series.output_tokens)) for _ in range(997)]


def main() -> int:
    hardware, model = hardware_profile("rtx5090"), load_model("Qwen/Qwen3.6-27B")
    arguments = EngineArguments(
        max_num_seqs=256, max_num_batched_tokens=16384, max_model_len=16384, tensor_parallel_size=4
    )
    started = startup(arguments, hardware, model)
    if isinstance(started, Refused):
        print(started.message)
        return 1
    print(f"KV cache {started.kv_tokens:,} tokens; start {started.start_s:.0f} s\n")
    print("| workload | concurrent | QPS public | QPS sim | | TTFT P50 sim, ms | P99 | P99 with the first burst |")
    print("|---|---|---|---|---|---|---|---|")
    worst = 0.0
    for series in SERIES:
        for clients, public in series.qps.items():
            load = ClosedLoop(shapes(series), clients, DURATION_S, warmup_s=WARMUP_S)
            level = simulate(started, hardware, model, load)
            off = level.qps / public - 1
            worst = max(worst, abs(off))
            burst_ms = 1000 * float(np.percentile(level.first_token_s - level.sent_s, 99))
            times = f"{level.ttft_percentile_ms(50):.0f} | {level.ttft_percentile_ms(99):.0f} | {burst_ms:.0f}"
            print(f"| {series.name} | {clients} | {public} | {level.qps:.1f} | {off:+.0%} | {times} |")
    print(f"\nworst: {worst:.0%}, allowed: {TOLERANCE:.0%} (public TTFT P99 of the short answers: 168 to 843 ms)")
    return 0 if worst <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
