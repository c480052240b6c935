"""Workload value: which requests, in which order, from which seed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts drawn uniformly from low..high, inclusive."""

    low: int
    high: int

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2


@dataclass(frozen=True, slots=True)
class Share:
    """A kind of request within a workload: `weight` of all requests, its prompt and output lengths in tokens.

    `shared_prefix` tokens at the start of the prompt are the same in every request (a system prompt).
    """

    weight: float
    prompt: Lengths
    output: Lengths
    shared_prefix: int = 0
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    source: str
    shares: tuple[Share, ...]
    natural_stops: bool = False

    @property
    def longest(self) -> int:
        """Tokens of the longest request, prompt and output: what max-model-len must hold, template aside."""
        return max(s.prompt.high + s.output.high for s in self.shares)
