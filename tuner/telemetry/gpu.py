"""GPUs through NVML: utilisation, memory, power, temperature, clocks, throttle reasons, processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import pynvml

T = TypeVar("T")

_THROTTLE_REASONS: tuple[tuple[int, str], ...] = (
    (pynvml.nvmlClocksEventReasonSwPowerCap, "power cap"),
    (pynvml.nvmlClocksThrottleReasonHwSlowdown, "hardware slowdown"),
    (pynvml.nvmlClocksEventReasonSwThermalSlowdown, "software thermal slowdown"),
    (pynvml.nvmlClocksThrottleReasonHwThermalSlowdown, "hardware thermal slowdown"),
    (pynvml.nvmlClocksThrottleReasonHwPowerBrakeSlowdown, "power brake"),
)
"""Idle, application clocks and sync boost are reasons too, and no trouble."""


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU now; None where the driver does not tell. `utilization` and `memory_used_bytes` as NVML has them."""

    index: int
    utilization: float | None
    memory_used_bytes: int | None
    power_w: float | None
    temperature_c: float | None
    sm_clock_mhz: float | None
    throttled: tuple[str, ...] = ()
    pids: tuple[int, ...] | None = None


class GpuAdapter(Protocol):
    """Indices are NVML's, the ones that nvidia-smi shows, whatever CUDA_VISIBLE_DEVICES says."""

    def read(self, indices: Sequence[int]) -> tuple[GpuReading, ...]: ...

    def used_bytes(self, gpus: tuple[int, ...]) -> dict[int, int] | None:
        """Bytes in use on each GPU, by whatever process: what must fall back before the next start."""
        ...


class NoGpu:
    """A machine without an NVIDIA GPU: nothing to read."""

    def read(self, indices: Sequence[int]) -> tuple[GpuReading, ...]:
        return ()

    def used_bytes(self, gpus: tuple[int, ...]) -> dict[int, int] | None:
        return None


class Nvml:
    """The driver of this machine. Made by `gpu_adapter`, which has initialised NVML."""

    def read(self, indices: Sequence[int]) -> tuple[GpuReading, ...]:
        return tuple(_read(index) for index in indices)

    def used_bytes(self, gpus: tuple[int, ...]) -> dict[int, int] | None:
        handles = {index: pynvml.nvmlDeviceGetHandleByIndex(index) for index in gpus}
        return {index: int(pynvml.nvmlDeviceGetMemoryInfo(handle).used) for index, handle in handles.items()}


def gpu_adapter() -> GpuAdapter:
    """NVML where a driver answers, else an adapter that reads nothing."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return NoGpu()
    return Nvml()


def _read(index: int) -> GpuReading:
    handle = _told(lambda: pynvml.nvmlDeviceGetHandleByIndex(index))
    if handle is None:
        return GpuReading(index, None, None, None, None, None)
    reasons = _told(lambda: int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))) or 0
    return GpuReading(
        index=index,
        utilization=_told(lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100),
        memory_used_bytes=_told(lambda: int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)),
        power_w=_told(lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        temperature_c=_told(lambda: float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))),
        sm_clock_mhz=_told(lambda: float(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))),
        throttled=tuple(name for bit, name in _THROTTLE_REASONS if reasons & bit),
        pids=_told(lambda: tuple(p.pid for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle))),
    )


def _told(ask: Callable[[], T]) -> T | None:
    """Many boards answer "not supported" to one question or another."""
    try:
        return ask()
    except pynvml.NVMLError:
        return None


@dataclass(frozen=True, slots=True)
class Installed:
    """One GPU as it is built in; `numa_node` is None where the kernel does not know it."""

    index: int
    name: str
    memory_gib: float
    uuid: str
    numa_node: int | None


def inventory() -> tuple[tuple[Installed, ...], str | None]:
    """The GPUs of this machine and the driver's version; nothing and None without an NVIDIA driver."""
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
    """NVML writes 00000000:65:00.0, the kernel 0000:65:00.0. The kernel says -1 where the board does not tell."""
    domain, _, rest = bus_id.lower().partition(":")
    try:
        node = int(Path(f"/sys/bus/pci/devices/{domain[-4:]}:{rest}/numa_node").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None
