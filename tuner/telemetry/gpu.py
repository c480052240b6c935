"""GPUs through NVML: utilisation, memory and who holds it, power, temperature, clocks, throttle reasons."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import pynvml

from tuner.errors import EnvironmentFaultError
from tuner.server.gpu_memory import GpuMemory, NoGpuMemory

T = TypeVar("T")

THROTTLE_REASONS: tuple[tuple[int, str], ...] = (
    (pynvml.nvmlClocksEventReasonSwPowerCap, "power cap"),
    (pynvml.nvmlClocksThrottleReasonHwSlowdown, "hardware slowdown"),
    (pynvml.nvmlClocksEventReasonSwThermalSlowdown, "software thermal slowdown"),
    (pynvml.nvmlClocksThrottleReasonHwThermalSlowdown, "hardware thermal slowdown"),
    (pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown, "power brake"),
)
"""Reasons that slow a load down. Idle, application clocks and sync boost are left out: they are no trouble."""


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU now, in NVML's terms. None if the driver does not say. `pids` are the processes that compute on it."""

    index: int
    utilization: float | None
    memory_used_bytes: int | None
    power_w: float | None
    temperature_c: float | None
    sm_clock_mhz: float | None
    throttled: tuple[str, ...] = ()
    pids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process that holds memory on a GPU. `memory_bytes` is None if the driver does not say."""

    pid: int
    memory_bytes: int | None
    computes: bool


@dataclass(frozen=True, slots=True)
class GpuHolders:
    """Memory of one GPU that processes hold, without the driver's own share. `processes` are those that can be seen
    from here: from a container, others are hidden."""

    index: int
    held_bytes: int | None
    processes: tuple[GpuProcess, ...] = ()


class GpuAdapter(GpuMemory, Protocol):
    """Source of GPU readings. Indices are NVML's, as nvidia-smi shows them, whatever CUDA_VISIBLE_DEVICES says."""

    def read(self, indices: Sequence[int]) -> tuple[GpuReading, ...]:
        """Read each GPU once."""
        ...


class NoGpu(NoGpuMemory):
    """A machine without an NVIDIA GPU: nothing to read."""

    def read(self, indices: Sequence[int]) -> tuple[GpuReading, ...]:
        return ()

    def holders(self, indices: Sequence[int]) -> tuple[GpuHolders, ...]:
        return ()


class Nvml:
    """The driver of this machine. Made by `gpu_adapter`, which has initialised NVML."""

    def read(self, indices: Sequence[int]) -> tuple[GpuReading, ...]:
        return tuple(_read(index) for index in indices)

    def holders(self, indices: Sequence[int]) -> tuple[GpuHolders, ...]:
        """Find out who holds memory on each GPU."""
        return tuple(_holders(index) for index in indices)

    def used_bytes(self, gpus: tuple[int, ...]) -> dict[int, int] | None:
        try:
            return {index: _used_bytes(index) for index in gpus}
        except pynvml.NVMLError_NotSupported:
            return None
        except pynvml.NVMLError as error:
            raise _fails(error) from error

    def processes(self, gpus: Sequence[int]) -> dict[int, dict[int, int | None]]:
        return {gpu.index: {p.pid: p.memory_bytes for p in gpu.processes} for gpu in self.holders(gpus)}


def gpu_adapter() -> Nvml | NoGpu:
    """Return NVML, or an adapter that reads nothing."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return NoGpu()
    return Nvml()


def _fails(error: pynvml.NVMLError) -> EnvironmentFaultError:
    return EnvironmentFaultError(
        f"the NVIDIA driver fails: {error}",
        hint="nvidia-smi and dmesg say more; a lost GPU needs a reset or a reboot",
    )


def _used_bytes(index: int) -> int:
    return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index)).used)


def _read(index: int) -> GpuReading:
    handle = _answer(lambda: pynvml.nvmlDeviceGetHandleByIndex(index))
    if handle is None:
        return GpuReading(index, None, None, None, None, None)
    reasons = _answer(lambda: int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))) or 0
    return GpuReading(
        index=index,
        utilization=_answer(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
        memory_used_bytes=_answer(lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)),
        power_w=_answer(lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        temperature_c=_answer(lambda: float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))),
        sm_clock_mhz=_answer(lambda: float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))),
        throttled=tuple(name for bit, name in THROTTLE_REASONS if reasons & bit),
        pids=_answer(lambda: tuple(p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle))),
    )


def _holders(index: int) -> GpuHolders:
    handle = _answer(lambda: pynvml.nvmlDeviceGetHandleByIndex(index))
    if handle is None:
        return GpuHolders(index, None)
    # The second version of this call sets the driver's reserve apart; drivers before 510 know the first alone.
    held = _answer(lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used))
    if held is None:
        held = _answer(lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).used))
    computing = _answer(lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle)) or ()
    drawing = _answer(lambda: pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle)) or ()
    found = {p.pid: GpuProcess(p.pid, p.usedGpuMemory, computes=False) for p in drawing}
    found |= {p.pid: GpuProcess(p.pid, p.usedGpuMemory, computes=True) for p in computing}
    return GpuHolders(index, held, tuple(found.values()))


def _answer(ask: Callable[[], T]) -> T | None:
    """Ask the driver. None if the board says "not supported"."""
    try:
        return ask()
    except pynvml.NVMLError:
        return None


@dataclass(frozen=True, slots=True)
class Installed:
    """One GPU as it is built in. `numa_node` is None if the kernel does not know it."""

    index: int
    name: str
    memory_gib: float
    uuid: str
    numa_node: int | None


def inventory() -> tuple[tuple[Installed, ...], str | None]:
    """Return GPUs and driver version, nothing without a driver. Raises EnvironmentFaultError if the driver fails."""
    if isinstance(gpu_adapter(), NoGpu):
        return (), None
    try:
        found = tuple(_installed(i) for i in range(pynvml.nvmlDeviceGetCount()))
        return found, str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as error:
        raise _fails(error) from error


def _installed(index: int) -> Installed:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    return Installed(
        index=index,
        name=str(pynvml.nvmlDeviceGetName(handle)),
        memory_gib=round(pynvml.nvmlDeviceGetMemoryInfo(handle).total / 2**30, 2),
        uuid=str(pynvml.nvmlDeviceGetUUID(handle)),
        numa_node=_numa_node(str(pynvml.nvmlDeviceGetPciInfo(handle).busId)),
    )


def _numa_node(bus_id: str) -> int | None:
    """Look up the NUMA node of a PCI address; None if the kernel says -1 or nothing. NVML writes 00000000:65:00.0,
    the kernel 0000:65:00.0."""
    domain, _, rest = bus_id.lower().partition(":")
    try:
        node = int(Path(f"/sys/bus/pci/devices/{domain[-4:]}:{rest}/numa_node").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None
