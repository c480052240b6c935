"""Comparison of this load generator with `vllm bench serve` on one running vLLM: same prompts, same moments, in
turn.

    vllm serve MODEL …            # in another shell
    python benchmarks/against_vllm_bench.py --url http://127.0.0.1:8000 --model MODEL [--turns 4]

The two differ by definition. vLLM 0.32 times the role chunk as the first token (it comes with the token, within one
engine output). Its QPS counts to the last answer, and its percentiles interpolate. So all figures are computed here
from each tool's own rows, in one way, and pooled over the turns. The tools alternate in going first. Prompts are new
in every turn, and ours carry a salt: neither tool finds the other's in the prefix cache. The server's own TTFT
histogram for each tool's requests separates a slow server from a slow client.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tuner.load.drive import drive_open
from tuner.load.prompts import Prompts, Request
from tuner.load.stream import Target
from tuner.load.workload import workload
from tuner.telemetry.prometheus import deltas
from tuner.telemetry.sampler import Sampler, Watched


@dataclass(frozen=True, slots=True)
class Seen:
    """One run of either tool, from its own rows. `server_ttft_ms` is the server's own mean over the same requests."""

    sent_s: list[float]
    ttft_ms: list[float]
    qps: float
    server_ttft_ms: float


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of the comparison. `wanted` is the difference that counts as agreement, None if there is none."""

    figure: str
    ours: float
    theirs: float
    wanted: float | None


def by_vllm(target: Target, requests: list[Request], rate: float, program: str) -> Seen:
    """Run `vllm bench serve`. Raises AssertionError unless it completes every request with every token."""
    with tempfile.TemporaryDirectory() as name:
        data, out = Path(name) / "prompts.jsonl", Path(name) / "result.json"
        rows = [{"prompt": r.messages[0][1], "output_tokens": r.max_tokens} for r in requests]
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        command = [
            program, "bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions",
            "--base-url", target.base_url, "--model", target.model, "--dataset-name", "custom",
            "--dataset-path", str(data), "--custom-output-len", "-1", "--skip-chat-template", "--disable-shuffle",
            "--num-prompts", str(len(requests)), "--request-rate", str(rate), "--seed", "0", "--ignore-eos",
            "--ready-check-timeout-sec", "0", "--save-result", "--save-detailed", "--result-dir", name,
            "--result-filename", out.name,
        ]  # fmt: skip
        recording = Sampler(Watched(f"{target.base_url}/metrics")).start()
        subprocess.run(command, check=True, capture_output=True, timeout=len(requests) / rate + 120)
        telemetry = recording.finish()
        result = json.loads(out.read_text(encoding="utf-8"))
    assert result["completed"] == len(requests)
    assert result["output_lens"] == [r.max_tokens for r in requests]
    sent = [float(s) for s in result["start_times"]]
    last = [s + t + sum(i) for s, t, i in zip(sent, result["ttfts"], result["itls"], strict=True)]
    return Seen(
        sent_s=[s - min(sent) for s in sent],
        ttft_ms=[t * 1000 for t in result["ttfts"]],
        qps=len(sent) / (max(last) - min(sent)),
        server_ttft_ms=deltas(telemetry.before, telemetry.after).server_ttft_ms_mean or np.nan,
    )


def by_us(target: Target, requests: list[Request], due_s: list[float]) -> Seen:
    """Send the same requests at the moments `due_s` (seconds from the first)."""
    recording = Sampler(Watched(f"{target.base_url}/metrics")).start()
    samples = drive_open(target, requests, due_s, max(due_s) + 0.1)
    telemetry = recording.finish()
    assert [r.failure for r in samples.requests] == [None] * len(requests)
    last = [r.last_ns for r in samples.requests if r.last_ns is not None]
    return Seen(
        sent_s=due_s,
        ttft_ms=[(r.first_ns - r.sent_ns) / 1e6 for r in samples.requests if r.first_ns is not None],
        qps=len(last) * 1e9 / (max(last) - samples.requests[0].sent_ns),
        server_ttft_ms=deltas(telemetry.before, telemetry.after).server_ttft_ms_mean or np.nan,
    )


def compare(ours: list[Seen], theirs: list[Seen]) -> list[Row]:
    def pooled(tool: list[Seen]) -> tuple[float, ...]:
        ttft_ms = np.concatenate([seen.ttft_ms for seen in tool])
        server_ms = float(np.mean([seen.server_ttft_ms for seen in tool]))
        return (
            float(np.mean([seen.qps for seen in tool])), float(np.median(ttft_ms)), float(np.percentile(ttft_ms, 99)),
            float(ttft_ms.mean()), server_ms, float(ttft_ms.mean()) - server_ms,
        )  # fmt: skip

    figures = (
        ("QPS", 0.02), ("median TTFT, ms", 0.05), ("P99 TTFT, ms", 0.10), ("mean TTFT, ms", None),
        ("mean TTFT that the server saw, ms", None), ("mean TTFT beyond the server's, ms", None),
    )  # fmt: skip
    rows = zip(figures, pooled(ours), pooled(theirs), strict=True)
    return [Row(name, mine, its, wanted) for (name, wanted), mine, its in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", required=True, help="as it is served, and where its tokenizer is")
    parser.add_argument("--vllm", default="vllm", help="the program whose `bench serve` is compared")
    parser.add_argument("--workload", default="random:800-1000,16-24")
    parser.add_argument("--rate", type=float, default=2.0)
    parser.add_argument("--requests", type=int, default=100, help="in each turn")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="rows as JSON instead of a table")
    given = parser.parse_args()
    target = Target(given.url, given.model)
    prompts = Prompts.for_model(workload(given.workload), given.model, 0, None)
    warm = prompts.requests("warm", 40)
    by_us(target, warm, [i / given.rate for i in range(len(warm))])
    ours: list[Seen] = []
    theirs: list[Seen] = []
    due_s: list[float] = []
    for turn in range(given.turns):
        requests = prompts.requests(f"turn-{turn}", given.requests)
        # Their arrivals are known once they have run; with one seed they are the same in every turn.
        if turn % 2:
            ours.append(by_us(target, requests, due_s))
        theirs.append(by_vllm(target, requests, given.rate, given.vllm))
        due_s = due_s or theirs[0].sent_s
        if not turn % 2:
            ours.append(by_us(target, requests, due_s))
    rows = compare(ours, theirs)
    if given.json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    print("| | ours | vllm bench serve | difference | wanted |\n|---|---|---|---|---|")
    for row in rows:
        wanted = "" if row.wanted is None else f"{row.wanted:.0%}"
        print(f"| {row.figure} | {row.ours:.2f} | {row.theirs:.2f} | {row.ours / row.theirs - 1:+.1%} | {wanted} |")


if __name__ == "__main__":
    main()
