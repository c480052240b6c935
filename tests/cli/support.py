"""The tuner as a process of its own, and the stand-in for vLLM that it can start."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

TUNER = (sys.executable, "-m", "tuner.cli.app")
STAND_IN = shlex.join((sys.executable, "-m", "tuner.sim", "serve"))


def tuner(*words: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TUNER, *words], capture_output=True, text=True, timeout=120, cwd=cwd, env={**os.environ, **env}
    )


def short_search(model: str, studies: Path, name: str) -> tuple[str, ...]:
    """Flags of a search that takes some ten seconds on the stand-in."""
    return (
        "--vllm", STAND_IN, "--model", model, "--space", "demo", "--workload", "random:32-96,32-64",
        "--slo", "p99 ttft <= 2s", "--trials", "2", "--confirm", "0", "--levels", "8", "--level-seconds", "1",
        "--warm-up-seconds", "0.2", "--studies", str(studies), "--study", name,
    )  # fmt: skip
