"""The geometry of a parameter's range: values, the numbers that stand for them, and their place between the ends."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from tuner.candidate import Value
from tuner.space.parameter import Kind, Parameter

_INWARDS = (0.0, 0.01, 0.02)
"""Shares of the range by which a value is moved to get within a limit."""


@dataclass(frozen=True, slots=True)
class ParameterAxis:
    """Axis of one parameter, linear or logarithmic, as a sampler sees it."""

    parameter: Parameter

    @property
    def is_discrete(self) -> bool:
        """Return True if its numbers are positions of choices."""
        return self.parameter.kind in (Kind.CHOICE, Kind.FLAG)

    @property
    def is_log(self) -> bool:
        return self.parameter.kind is Kind.LOG_INT

    @property
    def ends(self) -> tuple[float, float]:
        return self.parameter.axis

    def number(self, value: Value | None) -> float:
        """Return the number of a value; None, a value that is not known, stands in the middle."""
        if value is None:
            return self.at(0.5)
        number = self.parameter.encode(value)
        return int(number) if self.is_discrete else number

    def share(self, number: float) -> float:
        """Return where a number lies, from 0 at the low end to 1 at the high end."""
        low, high = self.ends
        if self.is_log:
            low, high, number = math.log(low), math.log(high), math.log(number)
        return (number - low) / (high - low) if high > low else 0.0

    def at(self, share: float) -> float:
        """Return the number at a share of the range; beyond an end, that end."""
        low, high = self.ends
        if self.is_log:
            number = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        else:
            number = low + share * (high - low)
        return min(max(number, low), high)

    def drawn(self, draw: random.Random) -> float:
        """Draw a number uniformly over the axis."""
        low, high = self.ends
        return draw.randint(int(low), int(high)) if self.is_discrete else self.at(draw.random())

    def stepped(self, number: float, sd: float, draw: random.Random) -> float:
        """Draw a number near another: the next position, or a normal step of `sd` as a share of the range."""
        if self.is_discrete:
            low, high = self.ends
            return min(max(int(number) + draw.choice((-1, 1)), int(low)), int(high))
        return self.at(self.share(number) + draw.gauss(0.0, sd))

    def inwards(self, value: Value, direction: int) -> Iterator[Value]:
        """Yield the value's nearest one on the axis, then values a little further in a direction, 1 or -1."""
        low, high = self.ends
        at = self.parameter.encode(value)
        for share in _INWARDS:
            yield self.parameter.decode(min(max(at + direction * share * (high - low), low), high))
