"""Reader of GPUs through NVML: utilisation, memory, power, temperature, clocks, throttle reasons, processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import pynvml

T = TypeVar("T")

THROTTLE_REASONS: tuple[tuple[int, str], ...] = (
    (pynvml.nvmlClocksEventReasonSwPowerCap, "power cap"),
    (pynvml.nvmlClocksThrottleReasonHwSlowdown, "hardware slowdown"),
    (pynvml.nvmlClocksEventReasonSwThermalSlowdown, "software thermal slowdown"),
    (pynvml.nvmlClocksThrottleReasonHwThermalSlowdown, "hardware thermal slowdown"),
    (pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown, "power brake"),
)
"""Throttle reasons that mean trouble. Idle, application clocks and sync boost do not."""


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU now, in NVML's units. None if the driver does not tell."""

    index: int
    utilization: float | None
    memory_used_bytes: int | None
    power_w: float | None
    temperature_c: float | None
    sm_clock_mhz: float | None
    throttled: tuple[str, ...] = ()
    pids: tuple[int, ...] | None = None


class GpuAdapter(Protocol):
    """Source of GPU readings. Indices are NVML's, as in nvidia-smi, whatever CUDA_VISIBLE_DEVICES says."""

    def read(self, indices: Sequence[int]) -> tuple[GpuReading, ...]: ...

    def used_bytes(self, gpus: tuple[int, ...]) -> dict[int, int] | None:
        """Return the bytes in use on each GPU by any process. They must fall back before the next start."""
        ...


class NoGpu:
    """Machine without an NVIDIA GPU, where there is nothing to read."""

    def read(self, indices: Sequence[int]) -> tuple[GpuReading, ...]:
        return ()

    def used_bytes(self, gpus: tuple[int, ...]) -> dict[int, int] | None:
        return None


class Nvml:
    """Driver of this machine. Made by `gpu_adapter`, which has initialised NVML."""

    def read(self, indices: Sequence[int]) -> tuple[GpuReading, ...]:
        return tuple(_read(index) for index in indices)

    def used_bytes(self, gpus: tuple[int, ...]) -> dict[int, int] | None:
        handles = {index: pynvml.nvmlDeviceGetHandleByIndex(index) for index in gpus}
        return {index: int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for index, handle in handles.items()}


def gpu_adapter() -> GpuAdapter:
    """Return NVML if a driver answers, else an adapter that reads nothing."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return NoGpu()
    return Nvml()


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


def _answer(ask: Callable[[], T]) -> T | None:
    """Ask the driver. None if the board answers "not supported", as many do to some question."""
    try:
        return ask()
    except pynvml.NVMLError:
        return None


@dataclass(frozen=True, slots=True)
class Installed:
    """One installed GPU. `numa_node` is None if the kernel does not know it."""

    index: int
    name: str
    memory_gib: float
    uuid: str
    numa_node: int | None


def inventory() -> tuple[tuple[Installed, ...], str | None]:
    """Return the GPUs of this machine and the driver's version. Empty and None without an NVIDIA driver."""
    if isinstance(gpu_adapter(), NoGpu):
        return (), None
    return tuple(_installed(i) for i in range(pynvml.nvmlDeviceGetCount())), str(pynvml.nvmlSystemGetDriverVersion())


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
    """Return the NUMA node of a bus id. NVML writes 00000000:65:00.0, the kernel 0000:65:00.0, with node -1 for
    unknown."""
    domain, _, rest = bus_id.lower().partition(":")
    try:
        node = int(Path(f"/sys/bus/pci/devices/{domain[-4:]}:{rest}/numa_node").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None
