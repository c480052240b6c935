"""Request for a service to be started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tuner.clock import Clock
from tuner.launch import Deployment
from tuner.server.gpu_memory import GpuMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRequest:
    """Everything that one start of a service needs.

    `env` are variables of the servers that no record names.
    `folder` receives each server's log and, while the server lives, its running file. `model` is the name that
    /v1/models must list. `on_phase` hears what a starting server is doing. `should_stop` is asked between two looks.
    `on_memory_wait` hears which processes hold GPU memory after the server has ended.
    """

    deployment: Deployment
    folder: Path
    model: str
    start_limit_s: float
    clock: Clock
    gpu_memory: GpuMemory
    env: tuple[tuple[str, str], ...] = ()
    on_phase: Callable[[str], None] = lambda phase: None
    on_memory_wait: Callable[[str], None] = lambda holders: None
    should_stop: Callable[[], bool] = lambda: False
