"""Kinds of parameter (log-int, int, float, choice, flag) and how a number in [low, high] becomes a flag's value."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tuner.candidate import Value


class Kind(StrEnum):
    LOG_INT = "log-int"
    INT = "int"
    FLOAT = "float"
    CHOICE = "choice"
    FLAG = "flag"


@dataclass(frozen=True, slots=True)
class Parameter:
    """One tuned flag, named as vLLM names it, without dashes.

    `low` and `high` bound the number kinds, inclusive; `multiple_of` rounds decoded integers; `choices` are a choice's
    values in an order that means something (the sampler sees their positions).
    """

    flag: str
    kind: Kind
    low: float = 0
    high: float = 0
    multiple_of: int = 1
    choices: tuple[Value, ...] = ()
