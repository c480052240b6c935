"""One night of `tuner search` in real time on the stand-in, with a hog on half of the cores for a part of it.

    python -m benchmarks.disturbed_real     # about an hour on a quiet machine

Nights in virtual time: benchmarks/disturbed.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.conftest import SHAPE
from tuner.study.record import Role
from tuner.study.store import Store

STARTS, CONFIRM_STARTS = 4, 4
HOG_BEGINS = STARTS + 2
"""Trials that have begun when the hog comes: the default's first confirmation run is the last of them."""

HOG_S, LIMIT_S = 300.0, 10_800.0
SIMULATED = {"TUNER_SIM_PROFILE": "rtx4090", "TUNER_SIM_STARTUP_S": "2", "TUNER_SIM_NOISE": "0.01,0.05"}
SPACE = "parameters:\n  max-num-seqs: {log-int: [8, 128]}\n  max-num-batched-tokens: {log-int: [512, 8192]}\n"


def night() -> Iterator[str]:
    """Run the night and tell what was measured and stated."""
    folder = Path(tempfile.mkdtemp(prefix="real-night-"))
    try:
        search = subprocess.Popen(_words(folder), env={**os.environ, **SIMULATED}, stdout=sys.stderr)
        try:
            yield from _hogged(folder / "studies" / "night", search)
        finally:
            search.terminate()
            search.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _words(folder: Path) -> list[str]:
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(SHAPE))
    shutil.copy(Path(".cache/tiny-model/tokenizer.json"), model)
    (folder / "space.yaml").write_text(SPACE)
    return [
        "tuner", "search", "--model", str(model), "--vllm", f"{sys.executable} -m tuner.sim serve", "--plain",
        "--space", str(folder / "space.yaml"), "--workload", "random:200-600,20-60", "--slo", "p99 ttft <= 500ms",
        "--probe-seconds", "3", "--warm-up-seconds", "3", "--trials", str(STARTS), "--confirm", str(CONFIRM_STARTS),
        "--studies", str(folder / "studies"), "--study", "night", "--seed", "1", "--max-model-len", "1k",
    ]  # fmt: skip


def _hogged(study: Path, search: subprocess.Popen[bytes]) -> Iterator[str]:
    began_s = time.monotonic()
    while search.poll() is None and len(list(study.glob("trials/[0-9]*"))) < HOG_BEGINS:
        time.sleep(0.5)
    from_s = time.monotonic() - began_s
    with _hog():
        while search.poll() is None and time.monotonic() - began_s < from_s + HOG_S:
            time.sleep(0.5)
    yield f"{(os.cpu_count() or 2) // 2} busy processes from {from_s:.0f} to {time.monotonic() - began_s:.0f} s"
    search.wait(max(1.0, LIMIT_S - (time.monotonic() - began_s)))
    store = Store(study)
    for r in store.records():
        yield f"{r.trial:3} {r.role:8} {r.outcome:10} +{r.start.phases.spent_s:4.0f} s {r.qps or 0:6.2f} req/s"
        for level in r.levels if r.role is Role.CONFIRM else ():
            m = level.measurement
            reasons = "; ".join(map(str, level.verdict.reasons))
            yield f"      {m.load} {level.verdict.outcome} {reasons} {[caution.kind.value for caution in m.cautions]}"
    yield store.result().sentence


@contextmanager
def _hog() -> Iterator[None]:
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range((os.cpu_count() or 2) // 2)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


if __name__ == "__main__":
    for told in night():
        print(told, flush=True)
