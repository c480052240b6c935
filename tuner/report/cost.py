"""Cost of served tokens and requests, from measured figures and the price of a GPU-hour."""

from __future__ import annotations

from typing import NamedTuple

from tuner.measurement import Measurement


class Cost(NamedTuple):
    """Cost at the measured load, in the unit of the GPU-hour's price. None if not known."""

    per_million_output_tokens: float | None
    per_thousand_requests: float | None


def cost(qps: float | None, level: Measurement | None, gpus: int, gpu_price: float) -> Cost:
    """Compute the cost at `qps`. `level` gives the output tokens of a request, `gpu_price` is per GPU-hour."""
    if not qps or not gpus:
        return Cost(None, None)
    per_request = gpu_price * gpus / 3600 / qps
    tokens = level.output_tokens / level.completed if level and level.completed else 0
    return Cost(per_request / tokens * 1e6 if tokens else None, per_request * 1000)
