"""`--gpus 0-3` → groups of GPUs with their NUMA node and the numactl words that bind to it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GpuGroup:
    """GPUs that one server gets: empty on a machine without GPUs; `numactl` is empty where it would not help."""

    gpus: tuple[int, ...] = ()
    numactl: tuple[str, ...] = ()
    numa_node: int | None = None

    @property
    def name(self) -> str:
        return "gpu" + "-".join(map(str, self.gpus)) if self.gpus else "cpu"
