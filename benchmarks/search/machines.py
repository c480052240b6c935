"""Whole machines of the layouts benchmark: GPUs of one kind, a model, and the truth of every layout.

The truth of a layout is that of one server (table.py) times its replicas, less what servers and door take.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import permutations
from pathlib import Path

from tuner.environment import Gpu
from tuner.launch import Door
from tuner.layout import Layout
from tuner.layout.choice import LayoutChoice, Units, chosen_layouts, layout_parameters
from tuner.layout.rules import Memory, limits_of
from tuner.load.workload import Share
from tuner.sim.hardware import GIB
from tuner.study.plan import StudyPlan

from .landscapes import Landscape, one
from .table import Grid

COARSE = Grid(sequences=5, budgets=4, kv=3, caps=2, requests=350, open_s=(15.0, 60.0))
"""Least nodes of a server's table. Layouts differ by tens of per cent; the fine grid is for flags alone."""

DOOR_SHARE = {Door.SERVER: 1.0, Door.VLLM: 0.985, Door.NGINX: 0.99}
"""Share of the servers' capacity that a door passes on. Assumed; each API server's time is the server's own already."""


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

    def kept(self, others: int) -> float:
        """Return the share of its speed that a server keeps beside `others`."""
        return 1.0 - self.one_gpu.hardware.disturbance * others

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        memory_gib = self.one_gpu.hardware.memory_bytes / GIB
        return tuple(Gpu(i, self.gpu, memory_gib, f"GPU-{i}") for i in range(self.count))

    def choice(self, folder: Path) -> LayoutChoice:
        """Choose layouts as `tuner search` does. `folder` gets the weights as a file without content."""
        with (folder / "model.safetensors").open("wb") as weights:
            weights.truncate(int(self.one_gpu.shape.weights_bytes))
        space, _ = self.one_gpu.space(folder)
        utilization = next(p for p in space.parameters if p.flag == "gpu-memory-utilization")
        without_p2p = tuple(permutations(range(self.count), 2)) if self._lacks_p2p else ()
        memory = Memory(self.one_gpu.hardware.memory_bytes, utilization.high)
        units = Units(tuple(range(self.count)), dict.fromkeys(range(self.count), 0), (), without_p2p, memory)
        return chosen_layouts(units, limits_of(folder, {}, space.flags), self.model)

    @property
    def _lacks_p2p(self) -> bool:
        return "host memory" in self.one_gpu.hardware.link.name

    def plan(self, folder: Path, starts: int, confirm_starts: int, seed: int) -> StudyPlan:
        """Plan the study as `tuner search` would."""
        choice = self.choice(folder)
        planned = [placed.layout for placed in choice.layouts]
        own = self.one_gpu.plan(folder, starts, confirm_starts, seed)
        space = replace(own.space, parameters=own.space.parameters + layout_parameters(planned))
        return replace(
            own,
            space=space,
            base=self.one_gpu.base(folder, choice.constant),
            layouts=choice.layouts,
            own_layout=choice.own,
            ruled_out=choice.ruled_out,
            units=tuple(range(self.count)),
            doors=(Door.VLLM, Door.NGINX) if any(layout.replicas > 1 for layout in planned) else (),
        )


CHAT = one((200, 1000), (100, 300))
LONG = one((4000, 8000), (50, 150))
SMALL, MIDDLE, LARGE = "Qwen/Qwen3-8B", "Qwen/Qwen3.6-27B", "RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic"

MACHINES = {
    machine.name: machine
    for machine in (
        MachineLandscape("4x5090-8b", "chat", "rtx5090", 4, SMALL, CHAT, 1000),
        MachineLandscape("4x5090-27b", "chat", "rtx5090", 4, MIDDLE, CHAT, 2000),
        MachineLandscape("4x5090-70b", "chat", "rtx5090", 4, LARGE, CHAT, 3000),
        MachineLandscape("4x4090-8b", "chat", "rtx4090", 4, SMALL, CHAT, 1500),
        MachineLandscape("4x4090-27b", "chat", "rtx4090", 4, MIDDLE, CHAT, 3000),
        MachineLandscape("4x4090-70b", "chat", "rtx4090", 4, LARGE, CHAT, 5000),
        MachineLandscape("8xh100-8b", "chat", "h100", 8, SMALL, CHAT, 500),
        MachineLandscape("8xh100-27b", "long prompts, tight limit", "h100", 8, MIDDLE, LONG, 500, 9216),
        MachineLandscape("8xh100-70b", "chat", "h100", 8, LARGE, CHAT, 1000),
        MachineLandscape("4xa100-8b", "long prompts", "a100-80g-pcie", 4, SMALL, LONG, 3000, 9216),
        MachineLandscape("4xa100-27b", "chat", "a100-80g-pcie", 4, MIDDLE, CHAT, 1500),
        MachineLandscape("4xa100-70b", "chat", "a100-80g-pcie", 4, LARGE, CHAT, 3000),
    )
}
