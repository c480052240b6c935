"""Environment of a measurement, and the test for equal ones. Decides if two are the same."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class Gpu:
    index: int
    name: str
    memory_gib: float
    uuid: str


@dataclass(frozen=True, slots=True)
class Environment:
    """Versions and hardware of a study. `model_digest` is the sha256 of the model's config.json, None if it is not
    on this disk."""

    tuner_version: str
    vllm_version: str
    python_version: str
    model: str
    model_digest: str | None
    gpus: tuple[Gpu, ...]
    driver: str | None
    host: str
    cpu: str
    cpu_count: int
    memory_gib: float
    kernel: str


def cache_folder() -> Path:
    """Return the folder for repeatable answers. It need not exist, nor be writable."""
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and no passwd entry; containers say / then
        home = Path("/")
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache") / "tuner"


def tuner_version() -> str:
    return version("vllm-launch-tuner")


def describe(vllm_version: str, model: str, gpus: Sequence[Gpu], driver: str | None) -> Environment:
    config = Path(model) / "config.json"
    return Environment(
        tuner_version=tuner_version(),
        vllm_version=vllm_version,
        python_version=platform.python_version(),
        model=model,
        model_digest=hashlib.sha256(config.read_bytes()).hexdigest() if config.is_file() else None,
        gpus=tuple(gpus),
        driver=driver,
        host=platform.node(),
        cpu=_cpu_name(),
        cpu_count=psutil.cpu_count() or 1,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        kernel=platform.release(),
    )


def differences(before: Environment, now: Environment) -> list[str]:
    """List the differences that forbid mixing figures."""
    lines = [
        f"{what} was {old}, is {new}"
        for what, old, new in (
            ("vLLM", before.vllm_version, now.vllm_version),
            ("model", before.model, now.model),
            ("host", before.host, now.host),
            ("GPU driver", before.driver, now.driver),
            ("GPUs", _gpu_names(before), _gpu_names(now)),
        )
        if old != new
    ]
    if before.model == now.model and before.model_digest != now.model_digest:
        lines.append("the model's config.json has changed")
    return lines


def _gpu_names(environment: Environment) -> str:
    return ", ".join(f"{gpu.index}: {gpu.name}" for gpu in environment.gpus) or "none"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
