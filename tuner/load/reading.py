"""Summary of a file of recorded traffic: what was read, what was left out and why. No text of a prompt is in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

DEFAULT_OUTPUT_TOKENS = 256
"""Output tokens where a row tells no length (`vllm bench serve --custom-output-len`)."""


class WhyLeftOut(StrEnum):
    """Reason why a row is left out."""

    NOT_JSON = "not-json"
    NO_ROW = "no-row"
    CUT = "cut"
    NOT_TEXT = "not-text"
    NOT_AN_OBJECT = "not-an-object"
    LENGTHS_ONLY = "lengths-only"
    NO_REQUEST = "no-request"
    OTHER_API = "other-api"
    EMPTY = "empty"
    NO_QUESTION = "no-question"
    UNKNOWN_ROLE = "unknown-role"
    NO_TEXT_TURN = "no-text-turn"
    MEDIA = "media"
    UNKNOWN_PART = "unknown-part"
    TOKEN_IDS = "token-ids"
    SEVERAL_PROMPTS = "several-prompts"
    BAD_FIELD = "bad-field"
    NO_OUTPUT = "no-output"
    NO_TIME = "no-time"
    FAILED = "failed"
    TOO_LONG = "too-long"


REASONS: dict[WhyLeftOut, str] = {
    WhyLeftOut.NOT_JSON: "not JSON",
    WhyLeftOut.NO_ROW: "with other columns than the header",
    WhyLeftOut.CUT: "cut off by the end of the file",
    WhyLeftOut.NOT_TEXT: "with bytes or escapes that are no text",
    WhyLeftOut.NOT_AN_OBJECT: "not an object",
    WhyLeftOut.LENGTHS_ONLY: "with lengths and no text",
    WhyLeftOut.NO_REQUEST: "with neither prompt nor messages",
    WhyLeftOut.OTHER_API: "of another API than chat or completions",
    WhyLeftOut.EMPTY: "with an empty conversation or prompt",
    WhyLeftOut.NO_QUESTION: "without a user's turn before the answer",
    WhyLeftOut.UNKNOWN_ROLE: "with a turn of an unknown role",
    WhyLeftOut.NO_TEXT_TURN: "with a turn without text",
    WhyLeftOut.MEDIA: "with images, audio or other files",
    WhyLeftOut.UNKNOWN_PART: "with a content part that is no text",
    WhyLeftOut.TOKEN_IDS: "with token ids for a prompt",
    WhyLeftOut.SEVERAL_PROMPTS: "with several prompts in one",
    WhyLeftOut.BAD_FIELD: "with tools or a format of an unknown form",
    WhyLeftOut.NO_OUTPUT: "with no or an impossible output length",
    WhyLeftOut.FAILED: "that failed when they were recorded",
    WhyLeftOut.NO_TIME: "without a time like the others'",
    WhyLeftOut.TOO_LONG: "longer than servers accept",
}
"""English words for each reason, behind a count."""


@dataclass(frozen=True, slots=True)
class FileRow:
    """One row of a file. `where` is its place for the user, `fault` the reason why it has no value."""

    where: str
    value: object = None
    fault: WhyLeftOut | None = None


class TimesFound(StrEnum):
    """Times of a file: replayed, not there, or not usable."""

    REPLAYED = "replayed"
    NONE = "none"
    ALL_ALIKE = "all-alike"
    TOO_FEW = "too-few"


TIMES: dict[TimesFound, str] = {
    TimesFound.REPLAYED: "arrival times found",
    TimesFound.NONE: "no arrival times",
    TimesFound.ALL_ALIKE: "arrival times not used: all the same",
    TimesFound.TOO_FEW: "arrival times not used: too few rows have one that can be read",
}
"""English words for what was found of arrival times."""

COUNTED: dict[str, str] = {
    "recorded": "as recorded",
    "capped": "from max_tokens, which may be only a cap",
    "assumed": f"not told, {DEFAULT_OUTPUT_TOKENS} assumed",
    "as_chat": "a plain prompt, sent as one user message of a chat",
    "tools": "with tools",
    "natural": "may end sooner (stop, response_format or the like)",
    "moved": "out of order, sorted",
    "mended": "in another unit, converted",
}
"""English words for each count of a `TrafficReading`, behind the count."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Rows that were left out for one reason. `first` is the place of the first."""

    why: WhyLeftOut
    count: int
    first: str

    def __str__(self) -> str:
        return f"{self.count:,} {REASONS[self.why]} (first: {self.first})"


def left_out(found: Iterable[tuple[WhyLeftOut, str]]) -> tuple[LeftOut, ...]:
    """Count reasons, the most frequent first."""
    counts: dict[WhyLeftOut, int] = {}
    firsts: dict[WhyLeftOut, str] = {}
    for reason, where in found:
        counts[reason] = counts.get(reason, 0) + 1
        firsts.setdefault(reason, where)
    rows = [LeftOut(reason, count, firsts[reason]) for reason, count in counts.items()]
    return tuple(sorted(rows, key=lambda row: -row.count))


@dataclass(frozen=True, slots=True)
class LengthsSeen:
    """Token counts of the requests that are sent."""

    low: int
    p50: int
    p99: int
    high: int
    mean: float

    def __str__(self) -> str:
        return f"P50 {self.p50:,}, P99 {self.p99:,}, longest {self.high:,}"


def lengths_seen(tokens: Sequence[int]) -> LengthsSeen:
    """Summarise token counts. Percentiles are order statistics."""
    ordered = sorted(tokens)

    def at(share: float) -> int:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return LengthsSeen(ordered[0], at(0.5), at(0.99), ordered[-1], sum(ordered) / len(ordered))


@dataclass(frozen=True, slots=True)
class TrafficReading:
    """Summary of a file of recorded traffic.

    Attributes:
        rows: Rows of the file.
        requests: Rows that are sent.
        prompt: Tokens of their texts and tools, without the chat template.
        output: Tokens of their answers.
        longest: Most tokens of one row, prompt and output, with the marks between its turns.
        counted: True if a tokenizer counted; else lengths are estimates from bytes.
        limit: Most tokens of a request that servers accept, template included. None if no row was left out for it.
        left_out: Rows that are not sent, by reason.
        recorded, capped, assumed: Requests whose output length is recorded, is their max_tokens, or was not told.
        natural: Requests whose own fields may end the answer sooner.
        tools: Requests with tools.
        as_chat: Plain prompts. Each is sent as one user message.
        times: What was found of arrival times.
        moved: Rows that were not in the order of their times.
        mended: Rows whose time is in another unit than the first row's.
    """

    rows: int
    requests: int
    prompt: LengthsSeen
    output: LengthsSeen
    longest: int
    counted: bool = False
    limit: int | None = None
    left_out: tuple[LeftOut, ...] = ()
    recorded: int = 0
    capped: int = 0
    assumed: int = 0
    natural: int = 0
    tools: int = 0
    as_chat: int = 0
    times: TimesFound = TimesFound.NONE
    moved: int = 0
    mended: int = 0

    @property
    def mean(self) -> float:
        return self.prompt.mean + self.output.mean


def reading_line(reading: TrafficReading) -> str:
    """Say in one line what was read."""
    about = "" if reading.counted else "about "
    sources, moved = (_counts(reading, *names) for names in (("recorded", "capped", "assumed"), ("moved", "mended")))
    out = reading.rows - reading.requests
    parts = [
        f"{reading.requests:,} of {reading.rows:,} requests",
        f"prompts {about}{reading.prompt} tokens",
        f"outputs {about}{reading.output} ({', '.join(sources)})",
        TIMES[reading.times] + (f" ({', '.join(moved)})" if moved else ""),
        *_counts(reading, "as_chat", "tools", "natural"),
        f"left out {out:,}: {', '.join(map(str, reading.left_out))}" if out else "none left out",
    ]
    return "; ".join(parts)


def _counts(reading: TrafficReading, *names: str) -> list[str]:
    counts = ((int(getattr(reading, name)), COUNTED[name]) for name in names)
    return [f"{'all' if count == reading.requests else f'{count:,}'} {words}" for count, words in counts if count]
