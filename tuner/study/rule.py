"""Rules that keep a search from starting what vLLM would refuse: limits on flags, and what they exclude. Pure."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tuner.candidate import Value
from tuner.flagwords import as_number

_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">=": operator.ge, ">": operator.gt,
}  # fmt: skip
_SIGNS = {"<": "<", "<=": "≤", "==": "=", ">=": "≥", ">": ">"}


@dataclass(frozen=True, slots=True)
class FlagLimit:
    """`flag` `relation` `value`; `relation` is one of < <= == >= >. Only numbers have an order."""

    flag: str
    relation: str
    value: Value

    def holds(self, value: Value | None) -> bool:
        """Return True if `value` is beyond the limit. None, a flag without a known value, is beyond no limit."""
        if self.relation == "==":
            return value == self.value
        mine, limit = as_number(value), as_number(self.value)
        return mine is not None and limit is not None and _COMPARE[self.relation](mine, limit)

    def implies(self, other: FlagLimit) -> bool:
        """Return True if every value beyond this limit is beyond `other` too."""
        if self.flag != other.flag:
            return False
        if self.relation == "==":
            return other.holds(self.value)
        same_way = self.relation[0] == other.relation[0]
        return same_way and (other.holds(self.value) or self == other)

    def __str__(self) -> str:
        return f"{self.flag} {_SIGNS[self.relation]} {_text(self.value)}"


@dataclass(frozen=True, slots=True)
class LearntRule:
    """Corner of the space that the search does not start any more.

    `trial` was refused with a cause of the kind `cause`, which may be learnt.CAPACITY. `limits` are those on searched
    flags. `withdrawn_by` is a start that succeeded beyond them all, None while the rule holds. `saved` counts the
    candidates that were not started because of it.
    """

    trial: int
    cause: str
    limits: tuple[FlagLimit, ...]
    withdrawn_by: int | None = None
    saved: int = 0
    study: str = ""

    def rules_out(self, values: Mapping[str, Value]) -> bool:
        """Return True if a server with these values is beyond every limit."""
        return all(limit.holds(values.get(limit.flag)) for limit in self.limits)

    def is_implied_by(self, other: LearntRule) -> bool:
        """Return True if `other` rules out everything that this rule does."""
        return all(any(mine.implies(limit) for mine in self.limits) for limit in other.limits)

    @property
    def words(self) -> str:
        """The limits, one after the other."""
        return ", ".join(map(str, self.limits))

    def __str__(self) -> str:
        of = f" of {self.study}" if self.study else ""
        return f"{self.words} ({self.cause}, trial {self.trial:04d}{of})"


def _text(value: Value) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.3f}".rstrip("0") if abs(value) < 100 else f"{value:.0f}"
    return f"{value:,.0f}" if isinstance(value, (int, float)) else value
