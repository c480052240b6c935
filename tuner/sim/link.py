"""Links between the GPUs of a machine, and what a transfer over them takes.

The model is NCCL's own (github.com/NVIDIA/nccl, src/graph/tuning.cc): a latency of the call, a latency of each hop,
and a bandwidth. A ring all-reduce of n ranks has 2·(n-1) hops, and each link passes 2·(n-1)/n of the payload. NCCL's
constants are 6.6 µs a call and 1.0 to 5.7 µs a hop over PCIe, by protocol.

| link | call | hop | bus bandwidth | why |
|---|---|---|---|---|
| NVLink | 8 µs | 0 | 230 to 700 GB/s | vLLM's own kernel reads all peers at once, so ranks add no hops |
| PCIe with P2P | 7 µs | 1 µs | 20 GB/s on PCIe 4 | NCCL's LL protocol. vLLM has no kernel for more than two such GPUs |
| PCIe through host memory | 7 µs | 3 to 3.5 µs | 12 of 32 GB/s on PCIe 4, 26 of 64 on PCIe 5 | two copies a hop |

- Without P2P every byte goes GPU → host memory → GPU. GeForce cards have no P2P: the driver does not offer it.
- vLLM's kernel needs NVLink between all GPUs, or only two GPUs (vllm/distributed/device_communicators/
  custom_all_reduce.py). Otherwise NCCL runs.
- For scale: flashinfer pull request 5023 measures NCCL over PCIe with P2P at 8 to 14 µs for one row, and at 35 GB/s
  for large ones.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Link:
    """Connection of two devices. `bus_bytes_per_s` is NCCL's bus bandwidth.

    `call_s` is the latency of one transfer, `hop_s` that of each step of a ring.
    """

    name: str
    bus_bytes_per_s: float
    call_s: float
    hop_s: float = 0.0

    def all_reduce_s(self, payload_bytes: float, ranks: int) -> float:
        """Time a ring all-reduce over `ranks` devices."""
        if ranks == 1:
            return 0.0
        hops = 2 * (ranks - 1)
        return self.call_s + hops * self.hop_s + hops / ranks * payload_bytes / self.bus_bytes_per_s

    def send_s(self, payload_bytes: float) -> float:
        """Time a transfer from one device to the next."""
        return self.call_s + self.hop_s + payload_bytes / self.bus_bytes_per_s


NVLINK3 = Link("NVLink 3", 230e9, 9e-6)
NVLINK4 = Link("NVLink 4", 360e9, 8e-6)
NVLINK5 = Link("NVLink 5", 700e9, 8e-6)
PCIE4 = Link("PCIe 4.0 x16", 20e9, 7e-6, 1e-6)
PCIE4_STAGED = Link("PCIe 4.0 x16 through host memory", 12e9, 7e-6, 3.5e-6)
PCIE5_STAGED = Link("PCIe 5.0 x16 through host memory", 26e9, 7e-6, 3e-6)
