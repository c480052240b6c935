"""Lengths of the traffic while it is served."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tuner.load.workload import Share, Workload

_P99 = 2.33
"""Standard deviations between mean and P99 of a normal distribution."""

_NEARLY_ALWAYS = 3.0
"""Standard deviations of the requests' sum that must still fit."""


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """Lengths of the traffic, in tokens: the means of prompts and answers, and what a request holds at a moment of its
    service. That is `resident` on average, its prompt and half its answer, with a standard deviation of `spread`. Long
    answers weigh more, as they stay longer."""

    prompt: float
    output: float
    resident: float
    spread: float

    @classmethod
    def of(cls, workload: Workload) -> Lifetimes:
        if (seen := workload.reading) is not None:
            prompt, output = seen.prompt.mean, seen.output.mean
            spread = max(0.0, seen.prompt.p99 - prompt) / _P99, max(0.0, seen.output.p99 / 2 - output / 2) / _P99
            return cls(prompt, output, prompt + output / 2, math.hypot(*spread))
        whole = sum(share.weight for share in workload.shares)
        prompt = sum(share.weight * share.prompt.mean for share in workload.shares) / whole
        output = sum(share.weight * share.output.mean for share in workload.shares) / whole
        served = sum(share.weight * share.output.mean for share in workload.shares)
        moments = [(share.weight * share.output.mean / served, *_moments(share)) for share in workload.shares]
        resident = sum(weight * mean for weight, mean, _ in moments)
        spread_of = sum(weight * square for weight, _, square in moments) - resident**2
        return cls(prompt, output, resident, math.sqrt(max(0.0, spread_of)))

    def surely_fit(self, tokens: float) -> float:
        """Return how many requests fit a KV cache of so many tokens nearly always: n r + 3 s √n = tokens."""
        root = (math.hypot(_NEARLY_ALWAYS * self.spread, 2 * math.sqrt(self.resident * tokens))
                - _NEARLY_ALWAYS * self.spread) / (2 * self.resident)  # fmt: skip
        return root**2


def _moments(share: Share) -> tuple[float, float]:
    """Return mean and mean square of what a request of a kind holds at a moment of its service."""
    prompt, output = share.prompt.mean, share.output.mean
    variance = (share.prompt.high - share.prompt.low) ** 2 / 12
    return prompt + output / 2, variance + prompt**2 + prompt * output + output**2 / 3
