"""KV arithmetic against logged starts: bytes of a token before the start, tokens after calibration by its log.

    python benchmarks/kv_logs.py tests/kv/logged_starts.json
    python benchmarks/kv_logs.py FOLDER        # of one JSON file a start

A start has `config` (config.json), `vllm`, `tp`, `kv_dtype`, `max_model_len`, `max_num_batched_tokens`, `max_num_seqs`,
`gpu`, `gpu_memory_gib`, `utilization` and `log` with `available_kv_gib`, `kv_tokens` and `concurrency`. What is null is
not known. vLLM's defaults stand in for it.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuner.capacity import GIB, FirstStart, ModelMemory, ServerFlags, at_kv_bytes, calibrated, model_memory
from tuner.environment import Gpu
from tuner.kv.config_json import UnknownModelError
from tuner.vllm.defaults import caches_states, latent_packing, steps_in_flight
from tuner.vllm.speculation import draft

Start = Mapping[str, Any]

UNSTATED = "0.28"
"""Version for a start whose log does not state it whole, such as 0.2x."""


@dataclass(frozen=True, slots=True)
class Compared:
    """One start: bytes of a token by arithmetic and by log, tokens by log and after calibration.

    `refused` is the reason why nothing was computed before the start.
    """

    model: str
    true_bytes: float
    bytes_per_token: float | None
    true_tokens: float
    tokens: int | None
    refused: str | None = None


def starts(path: Path) -> list[Start]:
    """Read the logged starts of a file or a folder."""
    if path.is_dir():
        return [json.loads(each.read_text(encoding="utf-8")) for each in sorted(path.glob("*.json"))]
    found: list[Start] = json.loads(path.read_text(encoding="utf-8"))
    return found


def flags_of(start: Start) -> ServerFlags:
    """Return the flags of a logged start."""
    stated = str(start.get("vllm") or "")
    version = stated if re.match(r"\d+\.\d+", stated) and "x" not in stated else UNSTATED
    extra = start.get("extra") or {}
    return ServerFlags(
        max_num_batched_tokens=start.get("max_num_batched_tokens") or 8192,
        max_num_seqs=start.get("max_num_seqs") or 256,
        block_tokens=start.get("block_size") or 16,
        tensor_parallel_size=start.get("tp") or 1,
        pipeline_parallel_size=start.get("pp") or 1,
        kv_cache_dtype=start.get("kv_dtype") or "auto",
        max_model_len=start.get("max_model_len"),
        steps_in_flight=steps_in_flight(version),
        draft=draft(extra),
        packing=latent_packing(version, (Gpu(0, start.get("gpu") or "", start.get("gpu_memory_gib") or 0, ""),), extra),
        caches_states=extra.get("state_blocks", 2 if caches_states(version) else 1) > 1,
    )


def first_start(start: Start) -> FirstStart:
    """Return what the log says."""
    log = start["log"]
    return FirstStart(
        kv_tokens=log["kv_tokens"],
        kv_gib=log["available_kv_gib"],
        weights_gib=log.get("model_loading_gib"),
        utilization=start.get("utilization"),
        concurrency=log.get("concurrency"),
        length=start.get("max_model_len"),
    )


def compared(start: Start) -> Compared:
    """Compare one logged start with the arithmetic."""
    first, kv_bytes = first_start(start), int(start["log"]["available_kv_gib"] * GIB)
    tokens = first.tokens(first.length or 0)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(start["config"]), encoding="utf-8")
        try:
            memory = model_memory(Path(folder), flags_of(start))
        except UnknownModelError as error:
            return Compared(start["model"], kv_bytes / tokens, None, tokens, None, str(error))
    after = tokens_after(calibrated(memory, first, None), kv_bytes)
    return Compared(start["model"], kv_bytes / tokens, memory.kv_bytes_per_token, tokens, after, memory.unknown_kv)


def tokens_after(memory: ModelMemory, kv_bytes: int) -> int | None:
    """Return the tokens of so many bytes."""
    room = at_kv_bytes(memory, kv_bytes)
    return None if room is None else room.kv_tokens.low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("starts", type=Path)
    print("| model | bytes a token: log | arithmetic | ratio | tokens: log | after calibration | ratio |")
    print("|---" * 7 + "|")
    for each in map(compared, starts(parser.parse_args().starts)):
        figures = f"{each.refused or 'not known'} |"
        if each.bytes_per_token is not None:
            figures = f"{each.bytes_per_token:,.0f} | {each.bytes_per_token / each.true_bytes:.3f}"
        after = "|" if each.tokens is None else f"{each.tokens:,} | {each.tokens / each.true_tokens:.3f}"
        print(f"| {each.model} | {each.true_bytes:,.0f} | {figures} | {each.true_tokens:,.0f} | {after} |")


if __name__ == "__main__":
    main()
