"""What was measured on: vLLM, GPUs, driver, model, host, tuner; decides "same environment?"."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    index: int
    name: str
    memory_gib: float
    uuid: str


@dataclass(frozen=True, slots=True)
class Environment:
    """`model_digest` is the sha256 of the model's config.json, None where it is not on this disk."""

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
