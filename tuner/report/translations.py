"""Every text of the page in a language. What a study recorded as text (log lines, hints) stays as it was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from tuner import formatting
from tuner.report.page_texts import PAGE_TEXTS
from tuner.report.record_texts import RECORD_TEXTS
from tuner.report.traffic_texts import TRAFFIC_TEXTS

if TYPE_CHECKING:  # the command line imports Language: it must not wait for numpy
    from tuner.load.arrivals import Arrivals
    from tuner.measurement import Load

TABLE = {**PAGE_TEXTS, **RECORD_TEXTS, **TRAFFIC_TEXTS}
"""English and Chinese text by key."""


class Language(StrEnum):
    ENGLISH = "en"
    CHINESE = "zh"


@dataclass(frozen=True, slots=True)
class Words:
    """The texts of one language: `words("key")` and `words("key", name=value)`. Raises KeyError if there is no key."""

    language: Language

    def __call__(self, key: str, /, **values: object) -> str:
        text = TABLE[key][0 if self.language is Language.ENGLISH else 1]
        return text.format_map(_Texts(values)) if values else text

    def load(self, load: Load | None, servers: int = 1) -> str:
        """Name a load that each of `servers` gets. A dash if there is none."""
        if load is None:
            return formatting.NOT_OBSERVED
        number = f"{load.level:g}" if load.kind == "closed" else formatting.significant(load.level)
        each = self(f"load-{load.kind}", n=number)
        return each if servers == 1 else f"{servers} × {each}"

    def arrivals(self, arrivals: Arrivals) -> str:
        """Name an arrival process."""
        return self(f"arrivals-{arrivals.kind}", shape=f"{arrivals.burstiness:g}")


class _Texts(dict[str, object]):
    def __init__(self, values: Mapping[str, object]) -> None:
        super().__init__({name: str(value) for name, value in values.items()})
