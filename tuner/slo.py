"""Latency limits such as `p99 ttft <= 500ms`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tuner.errors import UsageError


class Metric(StrEnum):
    TTFT = "ttft"
    TPOT = "tpot"
    ITL = "itl"
    E2E = "e2e"


@dataclass(frozen=True, slots=True)
class Slo:
    """Limit on a latency's quantile: `quantile` in (0, 1), `limit_ms` > 0."""

    metric: Metric
    quantile: float
    limit_ms: float

    def __str__(self) -> str:
        return f"p{self.quantile * 100:g} {self.metric} <= {self.limit_ms:g}ms"


_PATTERN = re.compile(r"\s*p(\d+(?:\.\d+)?)\s+([a-z0-9]+)\s*(?:<=|<|≤)\s*(\d+(?:\.\d+)?)\s*(ms|s)\s*", re.IGNORECASE)


def _in_range(match: re.Match[str]) -> bool:
    return 0 < round(float(match[1]) / 100, 6) < 1 and 0 < float(match[3]) <= LONGEST


LONGEST = 1e9
"""Largest plausible limit in either unit. Beyond it a limit is a typing error."""


def parse_slo(text: str) -> Slo:
    match = _PATTERN.fullmatch(text)
    metrics = [str(m) for m in Metric]
    if not match or match[2].lower() not in metrics or not _in_range(match):
        raise UsageError(
            f"the limit {text!r} does not parse",
            hint=f"write it like 'p99 ttft <= 500ms'; latencies: {', '.join(metrics)}; units: ms, s",
        )
    limit_ms = float(match[3]) * (1000 if match[4].lower() == "s" else 1)
    return Slo(Metric(match[2].lower()), round(float(match[1]) / 100, 6), limit_ms)


def longest_wait_s(slos: Sequence[Slo]) -> float:
    """Return the wait that the tightest limit allows, in seconds. 0 if no limit is about waiting."""
    return min((slo.limit_ms / 1000 for slo in slos if slo.metric in (Metric.TTFT, Metric.E2E)), default=0.0)
