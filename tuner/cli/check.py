"""Command `tuner check`: is this machine ready for a long search? One line each, with what to do."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from tuner import formatting
from tuner.cli.tables import Form, print_drawn, print_json
from tuner.cli.tables import lines as drawn_lines
from tuner.errors import EnvironmentFaultError
from tuner.machine import cache_folder
from tuner.placement import parse_gpus
from tuner.server.ports import fresh_port
from tuner.space.files import read_space
from tuner.study.loop import LEAST_DISK_BYTES
from tuner.telemetry.gpu import Installed, gpu_adapter, inventory
from tuner.vllm.flags import installed_vllm, split_command

_GIB = 2**30
_OPEN_FILES = 4096
"""Open files that a search may need: one socket a request here and one in the server."""
_PLENTY_OF_DISK_BYTES = 10 * _GIB
"""Disk for logs, tables of requests and a compile cache for each shape."""
_SHM_BYTES = _GIB
"""Docker gives 64 MiB, where NCCL and vLLM's message queues want hundreds."""
_HELD_WARNING, _HELD_ERROR = 0.01, 0.08
"""Shares of a GPU's memory in use by others. Above the second less than vLLM's default of 0.92 is left."""
_NUMBER_OF_NAPS, _NAP_S = 100, 0.001
_LATE_MS = 5.0
_SLOW_CLOCKS = ("hpet", "acpi_pm", "jiffies", "refined-jiffies")


class Grade(StrEnum):
    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """`todo` is empty where nothing is to be done."""

    what: str
    grade: Grade
    says: str
    todo: str = ""


@dataclass(frozen=True, slots=True)
class _Findings:
    findings: tuple[Finding, ...]
    schema: int = 1


def check_machine(vllm: str, gpus: str | None, studies: Path, form: Form) -> None:
    """Raises EnvironmentFaultError, after everything was shown, when a finding is an error."""
    found = tuple(findings(vllm, gpus, studies))
    if form is Form.JSON:
        print_json(_Findings(found))
    else:
        print_drawn(drawn_lines([line for f in found for line in _lines(f)]))
    wrong = [f.what for f in found if f.grade is Grade.ERROR]
    if wrong:
        raise EnvironmentFaultError(
            f"this machine is not ready: {', '.join(wrong)}", hint="do what the lines above say, then check again"
        )


def findings(vllm: str, gpus: str | None, studies: Path) -> Iterator[Finding]:
    installed, driver = inventory()
    chosen = parse_gpus(gpus, [gpu.index for gpu in installed])
    used = [gpu for gpu in installed if gpu.index in chosen]
    yield from _vllm(vllm)
    yield from _gpus(used, driver)
    yield from _held_by_others(used)
    yield from _numa(used)
    yield from _peer_to_peer(used)
    yield from _limits()
    yield from _disk(studies)
    yield _shared_memory()
    yield _ports()
    yield from _clock()


_STYLES = {Grade.OK: "green", Grade.WARNING: "yellow", Grade.ERROR: "bold red"}


def _lines(f: Finding) -> Iterator[tuple[tuple[str, str], ...]]:
    yield ((f"{f.grade:<8}", _STYLES[f.grade]), (f"{f.what:<15}", "bold"), (f.says, ""))
    if f.todo:
        yield ((f"{'':<23}→ {f.todo}", ""),)


def _vllm(vllm: str) -> Iterator[Finding]:
    print(f"asking {vllm!r} which flags it has", file=sys.stderr)
    try:
        found = installed_vllm(split_command(vllm), cache_folder() / "flags")
    except EnvironmentFaultError as error:
        yield Finding("vLLM", Grade.ERROR, error.message, error.hint)
        return
    if found.version == "unknown":
        yield Finding("vLLM", Grade.WARNING, "does not tell its version", "studies of different versions look alike")
    else:
        yield Finding("vLLM", Grade.OK, f"{found.version} ({vllm})")
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


def _held_by_others(used: Sequence[Installed]) -> Iterator[Finding]:
    for reading in gpu_adapter().read([gpu.index for gpu in used]):
        total = next(gpu.memory_gib for gpu in used if gpu.index == reading.index)
        what = f"GPU {reading.index} memory"
        if reading.memory_used_bytes is None:
            yield Finding(what, Grade.WARNING, "the driver does not tell how much is in use", "look with nvidia-smi")
            continue
        held = reading.memory_used_bytes / _GIB
        says = f"{formatting.gib(held)} of {formatting.gib(total)} in use{_by(reading.pids)}"
        share = held / total
        if reading.pids or share > _HELD_WARNING:
            grade = Grade.ERROR if share > _HELD_ERROR else Grade.WARNING
            yield Finding(what, grade, says, "end what holds it: starts would be refused, or slow, for no fault")
        else:
            yield Finding(what, Grade.OK, says)
        if reading.throttled:
            yield Finding(f"GPU {reading.index} clock", Grade.WARNING, f"throttled: {', '.join(reading.throttled)}",
                          "wait until it has cooled, or look at its power limit")  # fmt: skip


def _by(pids: Sequence[int] | None) -> str:
    names = []
    for pid in pids or ():
        try:
            names.append(f"{psutil.Process(pid).name()} ({pid})")
        except psutil.Error:
            names.append(f"pid {pid}")
    return f" by {', '.join(names)}" if names else ""


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
    try:
        told = subprocess.run(
            ("nvidia-smi", "topo", "-p2p", "r"), capture_output=True, text=True, errors="replace", timeout=30
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding("P2P", Grade.WARNING, f"nvidia-smi gave no answer: {error}", "run: nvidia-smi topo -p2p r")
        return
    without = peers_without(told.stdout, [gpu.index for gpu in used])
    if told.returncode != 0 or without is None:
        yield Finding("P2P", Grade.WARNING, "nvidia-smi does not tell", "run: nvidia-smi topo -p2p r")
    elif without:
        pairs = ", ".join(f"{a}-{b} ({why})" for a, b, why in without)
        yield Finding("P2P", Grade.WARNING, f"GPUs cannot read each other: {pairs}",
                      "matters for --tensor-parallel-size > 1 only: NCCL goes through the host's memory")  # fmt: skip
    else:
        yield Finding("P2P", Grade.OK, "every GPU reads every other")


def peers_without(matrix: str, gpus: Sequence[int]) -> list[tuple[int, int, str]] | None:
    """List the pairs of `gpus` that `nvidia-smi topo -p2p r` does not call OK. None if it cannot be read."""
    rows = [line.split() for line in matrix.replace("\t", " ").splitlines() if line.strip().startswith("GPU")]
    head = next((row for row in rows if len(row) > 1 and all(word.startswith("GPU") for word in row)), None)
    cells = {row[0]: row[1:] for row in rows if row is not head and head and len(row) == len(head) + 1}
    names = [f"GPU{index}" for index in gpus]
    if head is None or any(name not in head or name not in cells for name in names):
        return None
    pairs = [(a, b) for i, a in enumerate(gpus) for b in gpus[i + 1 :]]
    told = [(a, b, cells[f"GPU{a}"][head.index(f"GPU{b}")]) for a, b in pairs]
    return [(a, b, word) for a, b, word in told if word != "OK"]


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
        port = fresh_port("127.0.0.1")
    except OSError as error:
        return Finding("ports", Grade.ERROR, str(error), "see what listens: ss -ltn")
    return Finding("ports", Grade.OK, f"free ones on 127.0.0.1, such as {port}")


def _clock() -> Iterator[Finding]:
    source = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    name = source.read_text(encoding="ascii").strip() if source.is_file() else "unknown"
    late_ms = _late_ms()
    says = f"{name}; wakes up {formatting.ms(late_ms)} late (P98 of {_NUMBER_OF_NAPS} naps)"
    if name in _SLOW_CLOCKS:
        yield Finding("clock", Grade.WARNING, says, "boot with clocksource=tsc: reading this one takes microseconds")
    elif late_ms > _LATE_MS:
        yield Finding("clock", Grade.WARNING, says, "something else keeps the CPUs busy: latencies would be its doing")
    else:
        yield Finding("clock", Grade.OK, says)


def _late_ms() -> float:
    """Return the 98th percentile of lateness. One late nap in a hundred is normal."""
    late = []
    for _ in range(_NUMBER_OF_NAPS):
        began = time.monotonic()
        time.sleep(_NAP_S)
        late.append((time.monotonic() - began - _NAP_S) * 1000)
    return statistics.quantiles(late, n=50)[-1]
