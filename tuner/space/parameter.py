"""Kinds of parameter (log-int, int, float, choice, flag), and numbers on an axis as a flag's values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from tuner.candidate import Value


class Kind(StrEnum):
    LOG_INT = "log-int"
    INT = "int"
    FLOAT = "float"
    CHOICE = "choice"
    FLAG = "flag"


FLOAT_DIGITS = 3
"""Decimals of a float flag. Thousandths of a GPU's memory are finer than vLLM's own profiling."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tuned flag, named as vLLM names it, without dashes.

    `low` and `high` bound the number kinds, inclusive; `multiple_of` rounds decoded integers; `choices` are a choice's
    values in an order that means something, because a sampler sees their positions.
    """

    flag: str
    kind: Kind
    low: float = 0
    high: float = 0
    multiple_of: int = 1
    choices: tuple[Value, ...] = ()

    @property
    def axis(self) -> tuple[float, float]:
        """Return the bounds of its number: positions for choices and flags, else the values."""
        match self.kind:
            case Kind.CHOICE:
                return 0, len(self.choices) - 1
            case Kind.FLAG:
                return 0, 1
            case _:
                return self.low, self.high

    def decode(self, number: float) -> Value:
        match self.kind:
            case Kind.CHOICE:
                return self.choices[round(number)]
            case Kind.FLAG:
                return round(number) == 1
            case Kind.FLOAT:
                return round(number, FLOAT_DIGITS)
            case _:
                return self._whole(number)

    def encode(self, value: Value) -> float:
        """Return the axis number of a value. A number outside the range goes to its nearest end, a strange choice to
        0."""
        match self.kind:
            case Kind.CHOICE:
                return float(self.choices.index(value)) if value in self.choices else 0.0
            case Kind.FLAG:
                return float(bool(value))
            case _:
                return min(max(float(value), self.low), self.high)

    def _whole(self, number: float) -> int:
        whole = round(number / self.multiple_of) * self.multiple_of
        lowest = math.ceil(self.low / self.multiple_of) * self.multiple_of
        highest = math.floor(self.high / self.multiple_of) * self.multiple_of
        return min(max(whole, lowest), highest)

    def __str__(self) -> str:
        match self.kind:
            case Kind.CHOICE:
                return " | ".join(str(choice) for choice in self.choices)
            case Kind.FLAG:
                return "on | off"
            case Kind.LOG_INT:
                return f"{self.low:.0f} … {self.high:.0f}, logarithmic"
            case Kind.INT:
                return f"{self.low:.0f} … {self.high:.0f}"
            case _:
                return f"{self.low:g} … {self.high:g}"
