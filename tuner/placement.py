"""`--gpus 0-3` → groups of GPUs with their NUMA node and the numactl words that bind to it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuner.errors import EnvironmentFaultError, UsageError


@dataclass(frozen=True, slots=True)
class GpuGroup:
    """GPUs that one server gets: empty on a machine without GPUs; `numactl` is empty where it would not help."""

    gpus: tuple[int, ...] = ()
    numactl: tuple[str, ...] = ()
    numa_node: int | None = None

    @property
    def name(self) -> str:
        return "gpu" + "-".join(map(str, self.gpus)) if self.gpus else "cpu"


def parse_gpus(text: str | None, present: Sequence[int]) -> tuple[int, ...]:
    """`0-3`, `0,2,5`, `all`; None is all GPUs of the machine, and no GPU where there is none."""
    if text is None or text.strip().lower() == "all":
        if text is not None and not present:
            raise EnvironmentFaultError(
                "--gpus all: no NVIDIA GPU is visible here", hint="leave --gpus out on a machine without GPUs"
            )
        return tuple(present)
    chosen: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise UsageError(f"--gpus {text!r} does not parse", hint="write 0-3, or 0,2,5, or all")
        chosen += range(int(match[1]), int(match[2] or match[1]) + 1)
    missing = sorted(set(chosen) - set(present))
    if missing:
        there = ", ".join(map(str, present)) or "none"
        raise EnvironmentFaultError(f"GPU {missing[0]} is not there", hint=f"GPUs of this machine: {there}")
    return tuple(dict.fromkeys(chosen))


def groups_of(gpus: tuple[int, ...], size: int, numa_node_of: Mapping[int, int | None]) -> tuple[GpuGroup, ...]:
    """GPUs cut into groups of `size` (the tensor-parallel size), neighbours on a NUMA node together."""
    if size < 1:
        raise UsageError(f"--tensor-parallel-size {size}", hint="at least 1")
    if not gpus:
        return (GpuGroup(),)
    if len(gpus) < size:
        raise UsageError(
            f"--tensor-parallel-size {size} needs {size} GPUs, --gpus gives {len(gpus)}",
            hint=f"give at least {size} GPUs",
        )
    ordered = sorted(gpus, key=lambda gpu: (numa_node_of.get(gpu) is None, numa_node_of.get(gpu) or 0, gpu))
    cut = [tuple(sorted(ordered[i : i + size])) for i in range(0, len(ordered) - size + 1, size)]
    return tuple(_group(part, numa_node_of) for part in sorted(cut))


def _group(gpus: tuple[int, ...], numa_node_of: Mapping[int, int | None]) -> GpuGroup:
    nodes = {numa_node_of.get(gpu) for gpu in gpus}
    node = nodes.pop() if len(nodes) == 1 else None
    if node is None or node < 0:
        return GpuGroup(gpus)
    words = (f"--cpunodebind={node}", f"--membind={node}")
    return GpuGroup(gpus, ("numactl", *words) if shutil.which("numactl") else (), node)
