"""A server's own words without what they repeat of the request. A prompt's text must never reach a record or a log."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

from tuner.load.prompts import Request

_RUN = 16
"""Bytes in a row that count as repeated from the request. Chinese has three a character."""

MOST_TEXT = 400
"""Characters of a server's own words that are kept."""

_STEP = _RUN // 2
_LEAST = 3
"""Characters of a message that are looked for as a whole, or between quotes."""

_GONE = "…"
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_ESCAPE = re.compile(r"\\+(?:u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|x([0-9a-fA-F]{2})|([nrt]))")
_INPUT = re.compile(r"""(['"]input['"]\s*:|\binput_value=).*?(?=, input_type=|, ?['"](?:ctx|url)['"]:|$)""")
_QUOTED = re.compile(r"""(['"`])(.{3,}?)\1""")


def withheld(words: str, request: Request) -> str:
    """Replace what `words` repeat of a request's messages and fields, escaped or not, and pydantic's `input`."""
    said = _INPUT.sub(rf"\1 {_GONE}", _plain(words))
    messages = [_plain(text) for text in _messages(request)]
    for text in (*messages, *map(_plain, _strings({**request.extra_body, "messages": None}))):
        said = _without_runs(said, text)
    whole = sorted({text for text in messages if len(text) >= _LEAST and len(text.encode()) < _RUN}, key=len)
    for text in reversed(whole):
        said = re.sub(rf"(?<!\w){re.escape(text)}(?!\w)", _GONE, said)
    told = " ".join(messages)
    said = _QUOTED.sub(lambda match: f"{match[1]}{_GONE}{match[1]}" if match[2] in told else match[0], said)
    said = re.sub(rf"{_GONE}(?:\W?{_GONE})+", _GONE, said)
    return said if len(said) <= MOST_TEXT else f"{said[:MOST_TEXT]}{_GONE}"


def _messages(request: Request) -> Iterator[str]:
    for _, content in request.messages:
        yield content
    yield from _strings(request.extra_body.get("messages"))


def _strings(value: object) -> Iterator[str]:
    """Yield the texts inside a value, except the names of roles and types."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _strings(inner) if key not in ("role", "type") else ()
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _plain(text: str) -> str:
    """Undo escapes and let each run of spaces be one, since a server's quote may have other ones."""

    def sign(match: re.Match[str]) -> str:
        code = match[1] or match[2] or match[3]
        return chr(min(int(code, 16), sys.maxunicode)) if code else _ESCAPES[match[4]]

    text = _ESCAPE.sub(sign, text).replace("\\", "").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return re.sub(r"[\s\x00-\x1f]+", " ", text).strip()


def _without_runs(words: str, text: str) -> str:
    """Replace every run of `_RUN` bytes or more that is also in `text`."""
    said, told = words.encode(), text.encode()
    places: dict[bytes, list[int]] = {}
    for at in range(len(said) - _STEP + 1):
        places.setdefault(said[at : at + _STEP], []).append(at)
    gone = bytearray(len(said))
    # A run of two steps holds one that begins at a multiple of a step in `text`.
    for at in range(0, len(told) - _STEP + 1, _STEP):
        step = told[at : at + _STEP]
        if step in places:
            places[step] = [place for place in places[step] if not gone[place]]  # a text may repeat itself a lot
            for place in places[step]:
                start, end = (place, place) if gone[place] else _common(said, told, place, at)
                if end - start >= _RUN:
                    gone[start:end] = b"\1" * (end - start)
    kept = re.sub(b"\x01+", b"\x01", bytes(1 if out else byte for byte, out in zip(said, gone, strict=True)))
    return kept.decode(errors="ignore").replace("\x01", _GONE)


def _common(said: bytes, told: bytes, place: int, at: int) -> tuple[int, int]:
    """Return start and end in `said` of the longest common run around two equal places."""
    back = 0
    while place > back and at > back and said[place - back - 1] == told[at - back - 1]:
        back += 1
    on = _STEP
    while place + on < len(said) and at + on < len(told) and said[place + on] == told[at + on]:
        on += 1
    return place - back, place + on
