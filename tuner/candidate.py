"""One resolved point of the space, with a stable content id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from tuner.flagwords import Value

__all__ = ["Candidate", "Value"]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Resolved point: (flag without dashes, value) by name. Empty is vLLM's default."""

    values: tuple[tuple[str, Value], ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Value]) -> Candidate:
        return cls(tuple(sorted(values.items())))

    @property
    def id(self) -> str:
        """Return ten hex digits. Equal values give equal ids in every study and on every machine."""
        return hashlib.sha256(json.dumps(self.values, ensure_ascii=False).encode()).hexdigest()[:10]

    def as_dict(self) -> dict[str, Value]:
        return dict(self.values)
