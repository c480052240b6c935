"""Whole machines of the layouts benchmark: GPUs of one kind, a model, and the truth of every layout.

The truth of a layout is that of one server (table.py) times its replicas, less what they take from each other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from tuner.layout import Layout
from tuner.load.workload import Share

from .landscapes import Landscape, _one
from .table import Grid

COARSE = Grid(sequences=7, budgets=4, kv=3, caps=2, closed_s=45.0, requests=500, open_s=(20.0, 90.0))
"""Nodes of a server's table. A layout is judged to some per cent; its flags alone are landscapes.py's matter."""


@dataclass(frozen=True)
class MachineLandscape:
    """Machine and traffic with a known best layout. `limit_ms` is that of P99 TTFT."""

    name: str
    about: str
    gpu: str
    count: int
    model: str
    shares: tuple[Share, ...]
    limit_ms: float
    max_model_len: int = 4096

    @cached_property
    def one_gpu(self) -> Landscape:
        return Landscape(self.name, self.about, self.gpu, self.model, self.shares, self.limit_ms, self.max_model_len)

    def server(self, layout: Layout) -> Landscape:
        """Return the landscape of one server of a layout."""
        tensor, pipeline = layout.tensor_parallel, layout.pipeline_parallel
        name = f"{self.name}-{Layout(1, tensor, pipeline)}"
        return replace(self.one_gpu, name=name, tensor_parallel=tensor, pipeline_parallel=pipeline)

    def kept(self, replicas: int) -> float:
        """Return the share of its speed that a server keeps beside the others."""
        return 1.0 - self.one_gpu.hardware.disturbance * (replicas - 1)

    @property
    def layouts(self) -> tuple[Layout, ...]:
        """List the layouts that use all GPUs, most replicas first. Stages come where a link makes TP slow."""
        sizes = [size for size in (1, 2, 4, 8) if self.count % size == 0 and size <= self.count]
        whole = [Layout(self.count // size, size) for size in sizes]
        if self.one_gpu.hardware.link.hop_s:
            staged = [(t, p) for p in sizes for t in sizes if p > 1 and t * p <= self.count]
            whole += [Layout(self.count // (t * p), t, p) for t, p in staged]
        return tuple(layout for layout in whole if self.one_gpu.shape.heads % layout.tensor_parallel == 0)


CHAT = _one((200, 1000), (100, 300))
LONG = _one((4000, 8000), (50, 150))
SMALL, MIDDLE, LARGE = "Qwen/Qwen3-8B", "Qwen/Qwen3.6-27B", "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic"

MACHINES = {
    machine.name: machine
    for machine in (
        MachineLandscape("4x5090-8b", "chat", "rtx5090", 4, SMALL, CHAT, 1000),
        MachineLandscape("4x5090-27b", "chat", "rtx5090", 4, MIDDLE, CHAT, 2000),
        MachineLandscape("4x5090-70b", "chat", "rtx5090", 4, LARGE, CHAT, 3000),
        MachineLandscape("4x4090-8b", "chat", "rtx4090", 4, SMALL, CHAT, 1500),
        MachineLandscape("4x4090-27b", "chat", "rtx4090", 4, MIDDLE, CHAT, 3000),
        MachineLandscape("4x4090-70b", "chat", "rtx4090", 4, LARGE, CHAT, 4000),
        MachineLandscape("8xh100-8b", "chat", "h100", 8, SMALL, CHAT, 500),
        MachineLandscape("8xh100-27b", "long prompts, tight limit", "h100", 8, MIDDLE, LONG, 500, 9216),
        MachineLandscape("8xh100-70b", "chat", "h100", 8, LARGE, CHAT, 1000),
        MachineLandscape("4xa100-8b", "long prompts", "a100-80g-pcie", 4, SMALL, LONG, 2000, 9216),
        MachineLandscape("4xa100-27b", "chat", "a100-80g-pcie", 4, MIDDLE, CHAT, 1500),
        MachineLandscape("4xa100-70b", "chat", "a100-80g-pcie", 4, LARGE, CHAT, 2000),
    )
}
