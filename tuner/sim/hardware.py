"""Cost of a step and size of memory on a named device: a roofline with one constant for each physical limit.

Public specifications (NVIDIA data sheets and architecture white papers; dense rates, no sparsity, BF16 with FP32
accumulation):

| profile | memory | bandwidth | BF16 dense | link between GPUs | source |
|---|---|---|---|---|---|
| rtx4090 | 24 GB | 1008 GB/s | 165 TFLOP/s | PCIe 4.0 x16, no P2P | Ada white paper |
| rtx5090 | 32 GB | 1792 GB/s | 209 TFLOP/s | PCIe 5.0 x16, no P2P | RTX Blackwell white paper |
| l40s | 48 GB | 864 GB/s | 362 TFLOP/s | PCIe 4.0 x16 | L40S data sheet |
| a100-80g | 80 GB | 2039 GB/s | 312 TFLOP/s | NVLink 3, 600 GB/s | A100 80GB SXM data sheet |
| a100-80g-pcie | 80 GB | 1935 GB/s | 312 TFLOP/s | PCIe 4.0 x16 | A100 80GB PCIe data sheet |
| h100 | 80 GB | 3350 GB/s | 989 TFLOP/s | NVLink 4, 900 GB/s | H100 SXM data sheet |
| h200 | 141 GB | 4800 GB/s | 989 TFLOP/s | NVLink 4, 900 GB/s | H200 SXM data sheet |
| b200 | 180 GB | 8000 GB/s | 2250 TFLOP/s | NVLink 5, 1800 GB/s | DGX B200 data sheet, one of eight |
| cpu | of this host | see CPU | see CPU | none | docs/stand-in.md, calibrated on the real vLLM CPU build |

Values that are on no data sheet, with their reasons:

- `bandwidth_share` 0.85, `flops_share` 0.70: share of the specified peak that large GEMVs and GEMMs of tuned libraries
  reach.
- links: tuner/sim/link.py.
- `disturbance` 0.2 % a neighbour, 1 % without P2P, where all servers copy through the same host memory: assumed. On
  two CPU cores two servers of real vLLM disturb each other more.
- `step_overhead_s` 1 ms: graph replay, sampler and hand-over between two steps with asynchronous scheduling.
- `sequence_overhead_s` 10 µs: sampling and input preparation of one sequence.
- `launch_s_per_layer` 80 µs: about 12 kernels of 6 µs if no CUDA graph covers the step (eager mode, large prefill).
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tuner.model import ModelShape
from tuner.sim.link import NVLINK3, NVLINK4, NVLINK5, PCIE4, PCIE4_STAGED, PCIE5_STAGED, Link

GIB = 1 << 30
GB = 10**9


class Device(enum.Enum):
    GPU = "cuda"
    CPU = "cpu"


@dataclass(frozen=True, slots=True)
class StartTimes:
    """Seconds of a start by phase. `import_s` passes before the first argument is read."""

    import_s: float = 8.0
    engine_s: float = 10.0
    load_bytes_per_s: float = 2.0e9
    compile_cold_s_per_layer: float = 0.6
    compile_warm_s_per_layer: float = 0.1
    profile_s: float = 2.0
    capture_s_per_graph: float = 0.2


@dataclass(frozen=True, slots=True)
class Hardware:
    """One device and its number in the host. Rates are specified peaks; the shares say how much of them is reached.

    `frontend_s_per_request` and `frontend_s_per_token` are CPU time of the API server's single thread (HTTP,
    tokeniser, detokeniser, JSON). This stage is in series with the engine and can become the bottleneck. Measured on
    vLLM's CPU build: docs/stand-in.md.
    `disturbance` is the share of its speed that each other server on the machine costs.
    """

    name: str
    device: Device
    memory_bytes: int
    bandwidth_bytes_per_s: float
    flops_per_s: float
    link: Link
    devices: int = 8
    bandwidth_share: float = 0.85
    flops_share: float = 0.70
    attention_share: float = 0.35
    step_overhead_s: float = 1.0e-3
    sequence_overhead_s: float = 10e-6
    launch_s_per_layer: float = 80e-6
    frontend_s_per_request: float = 0.8e-3
    frontend_s_per_token: float = 20e-6
    runtime_bytes: int = 900 * (1 << 20)
    disturbance: float = 0.002
    start: StartTimes = StartTimes()


def _host_memory_bytes() -> int:
    """Return the physical memory, or a smaller control group's limit. vLLM's CPU backend budgets from it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdigit() else total


def _gpu(name: str, memory_gib: float, bandwidth_gb_s: float, tflops: float, link: Link) -> Hardware:
    disturbance = 0.010 if link in (PCIE4_STAGED, PCIE5_STAGED) else 0.002
    memory_bytes, bandwidth, flops = int(memory_gib * GIB), bandwidth_gb_s * GB, tflops * 1e12
    return Hardware(name, Device.GPU, memory_bytes, bandwidth, flops, link, disturbance=disturbance)


# Memory is what the driver reports as total (nvidia-smi), a little under the number on the box.
PROFILES: Mapping[str, Hardware] = {
    hardware.name: hardware
    for hardware in (
        _gpu("rtx4090", 23.52, 1008, 165, PCIE4_STAGED),
        _gpu("rtx5090", 31.36, 1792, 209, PCIE5_STAGED),
        _gpu("l40s", 44.40, 864, 362, PCIE4),
        _gpu("a100-80g", 79.25, 2039, 312, NVLINK3),
        _gpu("a100-80g-pcie", 79.25, 1935, 312, PCIE4),
        _gpu("h100", 79.19, 3350, 989, NVLINK4),
        _gpu("h200", 139.81, 4800, 989, NVLINK4),
        _gpu("b200", 178.35, 8000, 2250, NVLINK5),
        Hardware(
            name="cpu",
            device=Device.CPU,
            memory_bytes=_host_memory_bytes(),
            bandwidth_bytes_per_s=12e9,
            flops_per_s=30e9,
            link=Link("none", 10e9, 20e-6),
            devices=1,
            bandwidth_share=1.0,
            flops_share=1.0,
            attention_share=0.5,
            step_overhead_s=4e-3,
            sequence_overhead_s=145e-6,
            launch_s_per_layer=0.51e-3,
            frontend_s_per_request=1.3e-3,
            frontend_s_per_token=100e-6,
            runtime_bytes=700 * (1 << 20),
            start=StartTimes(import_s=8.0, engine_s=14.0, compile_cold_s_per_layer=5.0, compile_warm_s_per_layer=2.0),
        ),
    )
}


def hardware_profile(name: str) -> Hardware:
    """Find a profile by name ("RTX 5090", "this CPU"). KeyError lists the known ones."""
    key = "".join(character for character in name.lower() if character.isalnum())
    key = {"thiscpu": "cpu", "a100": "a10080g"}.get(key, key)
    for profile in PROFILES.values():
        if profile.name.replace("-", "") == key:
            return profile
    raise KeyError(f"unknown hardware profile {name!r}; there are {', '.join(PROFILES)}")


@dataclass(slots=True)
class StepWork:
    """Work of one engine step. Mutable: the scheduler fills one in place for every step. `prefill_attention` counts
    the pairs that attention visits: chunk tokens × mean context length, over all `prefill_chunks`."""

    decode_tokens: int = 0
    decode_context_tokens: int = 0
    prefill_tokens: int = 0
    prefill_chunks: int = 0
    prefill_attention: float = 0.0
    sampled: int = 0


class StepCost:
    """Seconds of a step of one engine. Constant factors of the roofline are multiplied in advance.

    With pipeline stages a step is a round: each of as many batches as there are stages passes through all of them.
    Every sequence gets one token in it. The stages work at once, each on another batch, so a round takes as long as
    one batch through the whole model. Prompts spread over the batches; a lone prompt is in one of them.
    """

    __slots__ = (
        "_capture_max", "_context_s", "_hardware", "_launch_s", "_model", "_pair_s", "_ranks", "_reduce_bytes",
        "_stages", "_step_tokens",
    )  # fmt: skip

    def __init__(
        self,
        hardware: Hardware,
        model: ModelShape,
        ranks: int,
        kv_bytes: int,
        capture_max_tokens: int,
        stages: int = 1,
        step_tokens: int = 1 << 30,
    ) -> None:
        """Prepare the constants.

        `capture_max_tokens` is the largest step that a CUDA graph covers; 0 in eager mode. `ranks` share the
        matrices of each of `stages`. A batch holds at most `step_tokens`.
        """
        self._hardware = hardware
        self._model = model
        self._ranks = ranks
        self._stages = stages
        self._step_tokens = step_tokens
        self._capture_max = capture_max_tokens
        bandwidth = hardware.bandwidth_bytes_per_s * hardware.bandwidth_share
        self._context_s = model.kv_bytes_per_token(kv_bytes, ranks) / bandwidth
        pair_flops = 4.0 * model.heads * model.head_dim * model.attention_layers / ranks
        self._pair_s = pair_flops / (hardware.flops_per_s * hardware.attention_share)
        self._reduce_bytes = model.hidden * model.activation_bytes
        self._launch_s = hardware.launch_s_per_layer * model.layers

    def linear_s(self, tokens: float, sampled: float) -> float:
        """Time the matrices by the slower of reads and multiplications.

        The last stage alone has the output matrix, and all stages wait for the slowest.
        """
        hardware, model = self._hardware, self._model
        again = (self._stages - 1) * model.head_parameters
        read_bytes = model.weights_read_bytes(tokens) + again * model.activation_bytes
        flops = model.flops(tokens, sampled) + 2.0 * again * sampled
        read_s = read_bytes / (hardware.bandwidth_bytes_per_s * hardware.bandwidth_share)
        return max(read_s, flops / (hardware.flops_per_s * hardware.flops_share)) / self._ranks

    def all_reduce_s(self, tokens: float) -> float:
        """Time two all-reduces a layer over the step's activations."""
        once = self._hardware.link.all_reduce_s(tokens * self._reduce_bytes, self._ranks)
        return 2 * self._model.layers * once

    def send_s(self, tokens: float) -> float:
        """Time the hand-over of the step's activations from stage to stage."""
        return (self._stages - 1) * self._hardware.link.send_s(tokens * self._reduce_bytes)

    def seconds(self, work: StepWork) -> float:
        stages, hardware = self._stages, self._hardware
        # Batches that share the prompts: as many as there are prompts, or more if they do not fit.
        spread = min(stages, max(1, work.prefill_chunks, -(-work.prefill_tokens // self._step_tokens)))
        tokens = work.decode_tokens / stages + work.prefill_tokens / spread
        compute_s = self.linear_s(tokens, work.sampled / stages)
        compute_s += work.decode_context_tokens / stages * self._context_s
        compute_s += work.prefill_attention / spread * self._pair_s
        if tokens > self._capture_max:
            # The host launches kernels ahead of the device, so launching costs time only if it is slower.
            # A CPU has no queue between the two, so launching always adds.
            cpu = hardware.device is Device.CPU
            compute_s = compute_s + self._launch_s if cpu else max(compute_s, self._launch_s)
        overhead_s = stages * hardware.step_overhead_s + work.sampled * hardware.sequence_overhead_s
        return compute_s + self.all_reduce_s(tokens) + self.send_s(tokens) + overhead_s
