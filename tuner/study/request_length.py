"""Longest request that servers accept, with its reason."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tuner.capacity import Span


class LengthSource(StrEnum):
    """Reason for the longest request that servers must accept. From NO_ROOM on it is only the workload's need."""

    ASKED = "asked"
    OWN_FLAG = "own-flag"
    SEARCHED = "searched"
    SPACE = "space"
    MODEL = "model"
    NO_ROOM = "no-room"
    MEMORY_UNKNOWN = "memory-unknown"
    LENGTH_UNKNOWN = "length-unknown"
    NOT_ON_DISK = "not-on-disk"


@dataclass(frozen=True, slots=True)
class RequestLength:
    """Longest request of a study, prompt and answer together.

    Attributes:
        tokens: Tokens that every server accepts; the least of them where the length is searched. None leaves it to
            vLLM.
        source: Reason for `tokens`.
        model: Tokens of the model's own length. None if not known.
        room: Tokens of KV cache at the default's memory setting. None if not known.
    """

    tokens: int | None
    source: LengthSource
    model: int | None = None
    room: Span | None = None

    @property
    def only_the_workload(self) -> bool:
        """True if servers refuse what is longer than the workload's own requests."""
        return self.source in _ONLY_THE_WORKLOAD

    @property
    def surely_too_long(self) -> bool:
        """True if the KV cache at the default's memory setting cannot hold one such request."""
        return self.room is not None and self.tokens is not None and self.room.high < self.tokens


_ONLY_THE_WORKLOAD = (
    LengthSource.NO_ROOM,
    LengthSource.MEMORY_UNKNOWN,
    LengthSource.LENGTH_UNKNOWN,
    LengthSource.NOT_ON_DISK,
)


def up_to(tokens: int) -> str:
    """Say how long a request may be."""
    return f"up to {tokens:,} tokens (prompt + answer)"


def reason(length: RequestLength) -> str:
    """Say why the length is what it is."""
    need = "what the workload needs"
    match length.source:
        case LengthSource.ASKED:
            return "as --max-model-len asks"
        case LengthSource.OWN_FLAG:
            return "by the flag after --"
        case LengthSource.SEARCHED:
            return "or more: the space searches the length"
        case LengthSource.SPACE:
            return "as the space fixes it"
        case LengthSource.MODEL:
            return "the model's own length"
        case LengthSource.NO_ROOM:
            room = 0 if length.room is None else length.room.low
            return f"{need}: the KV cache may hold only {room:,} of the model's {length.model or 0:,} tokens"
        case LengthSource.MEMORY_UNKNOWN:
            return f"{need}: the room of the KV cache for the model's {length.model or 0:,} tokens is not known"
        case LengthSource.LENGTH_UNKNOWN:
            return f"{need}: the model's own length is not known"
        case LengthSource.NOT_ON_DISK:
            return f"{need}: the model is not on this disk yet"


def cautions(length: RequestLength) -> list[str]:
    """Say what may surprise in production, with a next step."""
    if length.only_the_workload:
        return ["production will refuse longer requests; --max-model-len N sets the longest that it must accept"]
    if length.surely_too_long and length.room is not None:
        return [
            f"the KV cache holds at most {length.room.high:,} tokens at the default's setting: starts may be refused"
        ]
    return []
