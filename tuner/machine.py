"""This machine: GPUs, cache folder, and what distorts figures."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from tuner import formatting
from tuner.config import Machine
from tuner.environment import Gpu, cache_folder
from tuner.errors import EnvironmentFaultError, UsageError
from tuner.placement import parse_gpus
from tuner.secrecy import mask
from tuner.secret_words import part_command
from tuner.server.abandoned import abandoned
from tuner.server.ports import HOST, fresh_port
from tuner.space.files import read_space
from tuner.study.store import LEAST_DISK_BYTES
from tuner.telemetry.gpu import GpuHolders, GpuProcess, Installed, gpu_adapter, inventory
from tuner.vllm.flags import installed_vllm

_GIB = 2**30
_OPEN_FILES = 4096
"""Open files for a socket per request at both ends."""
_PLENTY_OF_DISK_BYTES = 10 * _GIB
"""Free disk for the files of an overnight run."""
_SHM_BYTES = _GIB
"""Free /dev/shm that NCCL and vLLM's message queues need. Docker gives 64 MiB."""
_HELD_WARNING, _HELD_ERROR = 0.02, 0.08
"""Shares of a GPU's memory in use by others. The first is more than the driver's own, the second too much for 0.92."""
_NUMBER_OF_NAPS, _NAP_S = 100, 0.001
_LATE_MS = 5.0
"""Lateness of a wake-up that would show in measured latencies."""
_SLOW_CLOCKS = ("hpet", "acpi_pm", "jiffies", "refined-jiffies")


def this_machine() -> Machine:
    """Ask the driver which GPUs are built in."""
    installed, driver = inventory()
    holders = gpu_adapter().holders([gpu.index for gpu in installed])
    return Machine(
        gpus=tuple(Gpu(gpu.index, gpu.name, gpu.memory_gib, gpu.uuid) for gpu in installed),
        numa_nodes=tuple(gpu.numa_node for gpu in installed),
        held=tuple(_share_of_others(held, gpu.memory_gib) for held, gpu in zip(holders, installed, strict=True)),
        driver=driver,
        without_p2p=tuple((a, b) for a, b, _ in _without_p2p([gpu.index for gpu in installed]) or ()),
    )


class Grade(StrEnum):
    """Weight of a finding. An error makes a study impossible."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about the machine. `todo` is empty if nothing is to be done."""

    what: str
    grade: Grade
    says: str
    todo: str = ""


def findings(vllm: str, gpus: str | None, studies: Path, say: Callable[[str], None]) -> Iterator[Finding]:
    """Look at everything that a study depends on."""
    installed, driver = inventory()
    chosen = parse_gpus(gpus, [gpu.index for gpu in installed])
    used = [gpu for gpu in installed if gpu.index in chosen]
    say(f"asking {mask(vllm)!r} which flags it has")
    yield from _vllm(vllm)
    yield from _gpus(used, driver)
    yield from _gpu_memory(used)
    yield from _throttled(used)
    yield from _numa(used)
    yield from _peer_to_peer(used)
    for servers in abandoned():
        yield Finding("servers", Grade.WARNING, str(servers), servers.todo)
    yield from _limits()
    yield from _disk(studies)
    yield _shared_memory()
    yield _ports()
    yield _clock()


def _vllm(vllm: str) -> Iterator[Finding]:
    try:
        found = installed_vllm(part_command(vllm).words, cache_folder() / "flags")
    except (EnvironmentFaultError, UsageError) as error:
        yield Finding("vLLM", Grade.ERROR, error.message, error.hint)
        return
    if found.version == "unknown":
        yield Finding("vLLM", Grade.WARNING, "does not say its version", "studies of different versions look alike")
    else:
        yield Finding("vLLM", Grade.OK, f"{found.version} ({mask(vllm)})")
    _, dropped = read_space("default").on(found.flags, found.version, ())
    names = ", ".join(d.flag for d in dropped)
    left_out = f", without {names} of the default space" if names else ", all of the default space among them"
    yield Finding("vLLM's flags", Grade.OK, f"{len(found.flags)}{left_out}")


def _gpus(used: Sequence[Installed], driver: str | None) -> Iterator[Finding]:
    if driver is None:
        yield Finding("GPUs", Grade.WARNING, "no NVIDIA GPU is visible", "right for vLLM's CPU build; else: nvidia-smi")
        return
    yield Finding("driver", Grade.OK, driver)
    for gpu in used:
        yield Finding(f"GPU {gpu.index}", Grade.OK, f"{gpu.name}, {formatting.gib(gpu.memory_gib)}")
    if len({gpu.name for gpu in used}) > 1:
        yield Finding(
            "GPUs",
            Grade.WARNING,
            "they are not all of one kind",
            "choose equal ones with --gpus: figures of one kind say nothing of the other",
        )
        if os.environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
            yield Finding(
                "GPU order",
                Grade.WARNING,
                "CUDA puts the fastest GPU first, nvidia-smi goes by PCI bus",
                "export CUDA_DEVICE_ORDER=PCI_BUS_ID",
            )


def _gpu_memory(used: Sequence[Installed]) -> Iterator[Finding]:
    for holders in gpu_adapter().holders([gpu.index for gpu in used]):
        total_gib = next(gpu.memory_gib for gpu in used if gpu.index == holders.index)
        yield _held(f"GPU {holders.index} memory", holders, total_gib)


def _held(what: str, holders: GpuHolders, total_gib: float) -> Finding:
    """Grade the memory that processes hold. The driver's own share is no fault and is not mentioned."""
    if holders.held_bytes is None:
        return Finding(what, Grade.WARNING, "the driver does not say how much is in use", "look with nvidia-smi")
    held_gib = holders.held_bytes / _GIB
    share = _share_of_others(holders, total_gib)
    if not share:
        return Finding(what, Grade.OK, "free")
    grade = Grade.ERROR if share > _HELD_ERROR else Grade.WARNING
    of_total = f"{formatting.gib(held_gib)} of {formatting.gib(total_gib)} held"
    if not holders.processes:
        says = f"{of_total} by processes that cannot be seen from here"
        return Finding(what, grade, says, "name them with nvidia-smi, outside this container; then end them")
    names = ", ".join(_name(process) for process in holders.processes)
    todo = f"end {'it' if len(holders.processes) == 1 else 'them'}: servers would be refused, or slow, for no fault"
    return Finding(what, grade, f"{of_total} by {names}", todo)


def _share_of_others(holders: GpuHolders, total_gib: float) -> float:
    """Return the share of a GPU's memory that others hold. 0 if they are the driver alone, or are not known."""
    share = (holders.held_bytes or 0) / _GIB / total_gib
    return share if share > _HELD_WARNING or any(process.computes for process in holders.processes) else 0.0


def _name(process: GpuProcess) -> str:
    try:
        name = formatting.one_line(psutil.Process(process.pid).name())
    except psutil.Error:
        name = "process"
    size = "" if process.memory_bytes is None else f", {process.memory_bytes / 2**20:,.0f} MiB"
    return f"{name} (pid {process.pid}{size})"


def _throttled(used: Sequence[Installed]) -> Iterator[Finding]:
    for reading in gpu_adapter().read([gpu.index for gpu in used]):
        if reading.throttled:
            yield Finding(
                f"GPU {reading.index} clock",
                Grade.WARNING,
                f"throttled: {', '.join(reading.throttled)}",
                "wait until it has cooled, or look at its power limit",
            )


def _numa(used: Sequence[Installed]) -> Iterator[Finding]:
    nodes = len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) or 1
    of_gpus = {f"GPU {gpu.index} on node {gpu.numa_node}" for gpu in used if gpu.numa_node is not None}
    says = ", ".join([f"{nodes} node{'s' if nodes > 1 else ''}", *sorted(of_gpus)])
    if nodes > 1 and used and shutil.which("numactl") is None:
        yield Finding("NUMA", Grade.WARNING, f"{says}; no numactl", "install numactl: servers stay beside their GPU")
    else:
        yield Finding("NUMA", Grade.OK, says)


def _peer_to_peer(used: Sequence[Installed]) -> Iterator[Finding]:
    if len(used) < 2 or shutil.which("nvidia-smi") is None:
        return
    without = _without_p2p([gpu.index for gpu in used])
    if without is None:
        yield Finding("P2P", Grade.WARNING, "nvidia-smi does not say", "run: nvidia-smi topo -p2p r")
    elif without:
        pairs = ", ".join(f"{a}-{b} ({why})" for a, b, why in without)
        yield Finding(
            "P2P",
            Grade.WARNING,
            f"GPUs cannot read each other: {pairs}",
            "matters for servers of several GPUs only: NCCL goes through the host's memory",
        )
    else:
        yield Finding("P2P", Grade.OK, "every GPU reads every other")


def _without_p2p(gpus: Sequence[int]) -> list[tuple[int, int, str]] | None:
    """Ask for the pairs of GPUs without P2P, each with the driver's word for it. None if it gives no answer."""
    if len(gpus) < 2:
        return []
    try:
        answer = subprocess.run(
            ("nvidia-smi", "topo", "-p2p", "r"), capture_output=True, text=True, errors="replace", timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if answer.returncode != 0 else peers_without(answer.stdout, gpus)


def peers_without(matrix: str, gpus: Sequence[int]) -> list[tuple[int, int, str]] | None:
    """List the pairs among `gpus` that `nvidia-smi topo -p2p r` does not call OK; None if it cannot be read."""
    rows = [line.split() for line in matrix.replace("\t", " ").splitlines() if line.strip().startswith("GPU")]
    head = next((row for row in rows if len(row) > 1 and all(word.startswith("GPU") for word in row)), None)
    cells = {row[0]: row[1:] for row in rows if row is not head and head and len(row) == len(head) + 1}
    names = [f"GPU{index}" for index in gpus]
    if head is None or any(name not in head or name not in cells for name in names):
        return None
    pairs = [(a, b) for i, a in enumerate(gpus) for b in gpus[i + 1 :]]
    answers = [(a, b, cells[f"GPU{a}"][head.index(f"GPU{b}")]) for a, b in pairs]
    return [(a, b, word) for a, b, word in answers if word != "OK"]


def _limits() -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    says = "open files " + ("without limit" if soft == resource.RLIM_INFINITY else f"up to {soft:,}")
    if soft == resource.RLIM_INFINITY or soft >= _OPEN_FILES:
        yield Finding("limits", Grade.OK, says)
    else:
        most = 65_536 if hard == resource.RLIM_INFINITY else min(65_536, hard)
        raise_it = f"ulimit -n {most}" if most >= _OPEN_FILES else "raise nofile in /etc/security/limits.conf"
        yield Finding("limits", Grade.ERROR if soft < 1024 else Grade.WARNING, says, raise_it)
    processes, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if processes != resource.RLIM_INFINITY and processes < _OPEN_FILES:
        yield Finding("limits", Grade.WARNING, f"processes and threads up to {processes:,}", "ulimit -u 65536")


def _disk(studies: Path) -> Iterator[Finding]:
    folder = studies.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield Finding("studies", Grade.ERROR, f"{there} cannot be written", "choose another with --studies DIR")
        return
    free = shutil.disk_usage(there).free
    says = f"{formatting.gib(free / _GIB)} free for {folder}"
    if free < LEAST_DISK_BYTES:
        yield Finding("disk", Grade.ERROR, says, f"free at least {formatting.gib(LEAST_DISK_BYTES / _GIB)}")
    elif free < _PLENTY_OF_DISK_BYTES:
        yield Finding("disk", Grade.WARNING, says, "logs and compile caches of a long search may take more")
    else:
        yield Finding("disk", Grade.OK, says)


def _shared_memory() -> Finding:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return Finding("/dev/shm", Grade.ERROR, "is not there", "mount a tmpfs there: vLLM's processes talk through it")
    says = f"{formatting.gib(usage.free / _GIB)} of {formatting.gib(usage.total / _GIB)} free"
    if usage.free >= _SHM_BYTES:
        return Finding("/dev/shm", Grade.OK, says)
    todo = "in Docker: --ipc=host or --shm-size=8g; else remove what dead programs left there"
    return Finding("/dev/shm", Grade.WARNING, says, todo)


def _ports() -> Finding:
    try:
        port = fresh_port()
    except OSError as error:
        return Finding("ports", Grade.ERROR, str(error), "see what listens: ss -ltn")
    return Finding("ports", Grade.OK, f"free ones on {HOST}, such as {port}")


def _clock() -> Finding:
    source = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    name = source.read_text(encoding="ascii").strip() if source.is_file() else "unknown"
    late_ms = _late_ms()
    says = f"{name}; wakes up {formatting.ms(late_ms)} late (P98 of {_NUMBER_OF_NAPS} naps)"
    if name in _SLOW_CLOCKS:
        return Finding("clock", Grade.WARNING, says, "boot with clocksource=tsc: reading this one takes microseconds")
    if late_ms > _LATE_MS:
        return Finding("clock", Grade.WARNING, says, "something else keeps the CPUs busy and would show in latencies")
    return Finding("clock", Grade.OK, says)


def _late_ms() -> float:
    """Measure the 98th percentile of late wake-ups. One late nap in a hundred is normal."""
    late = []
    for _ in range(_NUMBER_OF_NAPS):
        began = time.monotonic()
        time.sleep(_NAP_S)
        late.append((time.monotonic() - began - _NAP_S) * 1000)
    return statistics.quantiles(late, n=50)[-1]
