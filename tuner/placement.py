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


def gpu_places(gpus: Sequence[int], size: int, numa_node_of: Mapping[int, int | None]) -> tuple[GpuGroup, ...]:
    """Cut the GPUs into as many groups of `size` as they give, NUMA neighbours together."""
    ordered = sorted(gpus, key=lambda gpu: (numa_node_of.get(gpu) is None, numa_node_of.get(gpu) or 0, gpu))
    cut = [tuple(sorted(ordered[i : i + size])) for i in range(0, len(ordered) - size + 1, size)]
    groups = tuple(_group(part, numa_node_of) for part in sorted(cut))
    return _with_cpu_shares(groups, node_cpus) if len(groups) > 1 else groups


def worker_places(shares: Sequence[str], size: int) -> tuple[GpuGroup, ...]:
    """Cut a machine's shares of CPU cores into as many groups of `size` as they give."""
    starts = range(0, len(shares) - size + 1, size)
    return tuple(GpuGroup(workers=tuple(range(i, i + size)), cores=tuple(shares[i : i + size])) for i in starts)


def core_shares(workers: int, cpus: Sequence[int]) -> tuple[str, ...]:
    """Split the CPUs into equal shares of neighbours, such as `0-3`. Raises UsageError if there are too few."""
    each = len(cpus) // workers
    if not each:
        raise UsageError(
            f"--workers {workers} is more than the {len(cpus)} CPU cores that this process may use",
            hint=f"at most {len(cpus)}",
        )
    return tuple(_ranges(sorted(cpus[i * each : (i + 1) * each])) for i in range(workers))


def own_cores() -> tuple[int, ...]:
    """Return this process's CPUs, those of a NUMA node together.

    Two threads of one core slow each other down, so that only the first of them counts.
    """
    firsts: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        firsts.setdefault(_threads_of_core(cpu), cpu)
    return tuple(sorted(firsts.values(), key=lambda cpu: (_node_of_cpu(cpu), cpu)))


def _threads_of_core(cpu: int) -> str:
    """Return all threads of a CPU's core. Where the kernel does not tell, it is the only one."""
    try:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return str(cpu)


def _node_of_cpu(cpu: int) -> int:
    nodes = Path(f"/sys/devices/system/cpu/cpu{cpu}").glob("node[0-9]*")
    return next((int(path.name.removeprefix("node")) for path in nodes), 0)


def _ranges(cpus: Sequence[int]) -> str:
    """Write rising numbers as vLLM reads them: `0-3,8`."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def node_cpus(node: int) -> tuple[int, ...]:
    """Return this process's CPUs on a NUMA node. Empty if the kernel does not tell."""
    try:
        text = Path(f"/sys/devices/system/node/node{node}/cpulist").read_text(encoding="ascii").strip()
    except OSError:
        return ()
    return tuple(sorted(cpus_in(text) & os.sched_getaffinity(0)))


def cpus_in(text: str) -> set[int]:
    """Return the CPUs of a list such as `0-3,8`."""
    ends = (part.split("-") for part in text.split(",") if part)
    return {cpu for end in ends for cpu in range(int(end[0]), int(end[-1]) + 1)}


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
