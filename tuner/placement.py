"""GPUs or CPU cores of one server, with NUMA node and numactl words."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tuner.errors import EnvironmentFaultError, UsageError


@dataclass(frozen=True, slots=True)
class GpuGroup:
    """Place of one server.

    Attributes:
        gpus: Indices of its GPUs, one a rank. Empty on a machine without GPUs.
        numactl: Words in front of its command. Empty if they would not help.
        numa_node: NUMA node of all its GPUs. None if they have none in common.
        workers: Numbers of its shares of a machine without GPUs, one a rank. Empty if it has the machine alone.
        cores: CPU cores of each worker, such as `0-3`. Empty if they are not bound.
    """

    gpus: tuple[int, ...] = ()
    numactl: tuple[str, ...] = ()
    numa_node: int | None = None
    workers: tuple[int, ...] = ()
    cores: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        if self.gpus:
            return "gpu" + "-".join(map(str, self.gpus))
        return "cpu" + "-".join(map(str, self.workers))

    @property
    def units(self) -> frozenset[int]:
        """Return the GPUs or workers. Groups that share one cannot run at once."""
        return frozenset(self.gpus or self.workers or (0,))


def parse_gpus(text: str | None, present: Sequence[int]) -> tuple[int, ...]:
    """Parse `0-3`, `0,2,5` or `all`. None selects all GPUs of the machine, which may be none."""
    if text is None or text.strip().lower() == "all":
        if text is not None and not present:
            raise EnvironmentFaultError(
                "--gpus all: no NVIDIA GPU is visible here", hint="leave --gpus out on a machine without GPUs"
            )
        return tuple(present)
    chosen: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", part)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise UsageError(f"--gpus {text!r} does not parse", hint="write 0-3, or 0,2,5, or all")
        chosen += range(int(match[1]), int(match[2] or match[1]) + 1)
    missing = sorted(set(chosen) - set(present))
    if missing:
        there = ", ".join(map(str, present)) or "none"
        raise EnvironmentFaultError(f"GPU {missing[0]} is not there", hint=f"GPUs of this machine: {there}")
    return tuple(dict.fromkeys(chosen))


def groups_of(
    gpus: tuple[int, ...], size: int, numa_node_of: Mapping[int, int | None], workers: int | None = None
) -> tuple[GpuGroup, ...]:
    """Cut the GPUs into groups of `size`, NUMA neighbours together. `workers` is the number of servers at once on a
    machine without GPUs, and the most groups on one with GPUs. None means one server, or all groups."""
    if size < 1:
        raise UsageError(f"--tensor-parallel-size {size} is out of range", hint="at least 1")
    if not gpus:
        return (GpuGroup(),) if workers in (None, 1) else tuple(GpuGroup(workers=(i,)) for i in range(workers or 1))
    if len(gpus) < size:
        raise UsageError(
            f"--tensor-parallel-size {size} needs {size} GPUs, --gpus gives {len(gpus)}",
            hint=f"give at least {size} GPUs",
        )
    ordered = sorted(gpus, key=lambda gpu: (numa_node_of.get(gpu) is None, numa_node_of.get(gpu) or 0, gpu))
    cut = [tuple(sorted(ordered[i : i + size])) for i in range(0, len(ordered) - size + 1, size)]
    groups = tuple(_group(part, numa_node_of) for part in sorted(cut)[:workers])
    return _with_cpu_shares(groups, node_cpus) if len(groups) > 1 else groups


def node_cpus(node: int) -> tuple[int, ...]:
    """Return this process's CPUs on a NUMA node. Empty if the kernel does not tell."""
    try:
        text = Path(f"/sys/devices/system/node/node{node}/cpulist").read_text(encoding="ascii").strip()
    except OSError:
        return ()
    ends = (part.split("-") for part in text.split(",") if part)
    listed = {cpu for end in ends for cpu in range(int(end[0]), int(end[-1]) + 1)}
    return tuple(sorted(listed & os.sched_getaffinity(0)))


def _with_cpu_shares(groups: tuple[GpuGroup, ...], cpus_of: Callable[[int], tuple[int, ...]]) -> tuple[GpuGroup, ...]:
    """Split a NUMA node's CPUs evenly among its groups."""
    shared: list[GpuGroup] = []
    for group in groups:
        neighbours = [g for g in groups if g.numa_node == group.numa_node]
        cpus = cpus_of(group.numa_node) if group.numa_node is not None else ()
        share = len(cpus) // len(neighbours)
        if not group.numactl or not share:
            shared.append(group)
            continue
        at = neighbours.index(group) * share
        words = (
            "numactl",
            f"--physcpubind={','.join(map(str, cpus[at : at + share]))}",
            f"--membind={group.numa_node}",
        )
        shared.append(replace(group, numactl=words))
    return tuple(shared)


def _group(gpus: tuple[int, ...], numa_node_of: Mapping[int, int | None]) -> GpuGroup:
    nodes = {numa_node_of.get(gpu) for gpu in gpus}
    node = nodes.pop() if len(nodes) == 1 else None
    if node is None or node < 0:
        return GpuGroup(gpus)
    words = (f"--cpunodebind={node}", f"--membind={node}")
    return GpuGroup(gpus, ("numactl", *words) if shutil.which("numactl") else (), node)
