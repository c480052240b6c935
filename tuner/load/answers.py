"""Recorded answers and their lengths, in the spellings people have."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tuner.load.reading import WhyLeftOut
from tuner.load.spellings import ANSWER_KEYS, CAP_KEYS, OUTPUT_KEYS, PARAMETER_KEYS, USAGE_KEYS

_DEEPEST = 6
MOST_TOKENS = 10**9


class UnusableRowError(Exception):
    """A row that cannot be sent."""

    def __init__(self, reason: WhyLeftOut) -> None:
        super().__init__(reason)
        self.reason = reason


def recorded_answer(levels: list[dict[str, object]]) -> str | None:
    """Return the text that was answered. None if the row does not tell."""
    for level in reversed(levels):
        for key in ANSWER_KEYS:
            if level.get(key) is not None and (text := answer_text(level[key])) is not None:
                return text
    return None


def answer_text(value: object, depth: int = 0) -> str | None:
    """Dig the text out of an answer in any API's form."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        texts = (
            [text for part in value if (text := answer_text(part, depth + 1)) is not None] if depth < _DEEPEST else []
        )
        return "".join(texts) if texts else None
    if not isinstance(value, dict) or depth >= _DEEPEST:
        return None
    if calls := value.get("tool_calls") or value.get("function_call"):
        return (answer_text(value.get("content"), depth + 1) or "") + dumped(calls)
    for key in ("choices", "message", "body", "content", "value", "text", "output", "response", "output_text"):
        if value.get(key) is not None:
            inner = value[key][:1] if key == "choices" and isinstance(value[key], list) else value[key]
            return answer_text(inner, depth + 1)
    return None


def output_lengths(row: dict[str, object], levels: list[dict[str, object]]) -> tuple[int | None, int | None]:
    """Return the recorded length and the cap. Raises UnusableRowError for a length that no answer can have."""
    recorded = None
    for usage in _usages(row, levels):
        recorded = next((usage[key] for key in OUTPUT_KEYS if usage.get(key) is not None), recorded)
        if recorded is None and isinstance(usage.get("output"), int | float):
            recorded = usage["output"]
        if recorded is not None:
            break
    cap = next((source[key] for source in parameters(levels) for key in CAP_KEYS if source.get(key) is not None), None)
    if recorded is None and cap is None:
        return None, None
    if recorded is not None:
        return _tokens(recorded), _tokens(cap, strict=False)
    return None, _tokens(cap)


def _usages(row: dict[str, object], levels: list[dict[str, object]]) -> Iterator[dict[str, object]]:
    for level in (row, *levels[:-1]):
        yield level
        for key in USAGE_KEYS:
            if isinstance(usage := parsed(level.get(key)), dict):
                yield usage
    for key in ("response", "output", "completion"):
        answer = parsed(row.get(key))
        for value in (answer, answer.get("body") if isinstance(answer, dict) else None):
            if isinstance(value, dict) and isinstance(usage := value.get("usage"), dict):
                yield usage


def _tokens(value: object, *, strict: bool = True) -> int | None:
    """Read a length as a number or as text. Raises UnusableRowError, or gives None, for what is no length."""
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit() and len(value) < 20:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= MOST_TOKENS or value % 1:
        if strict:
            raise UnusableRowError(WhyLeftOut.NO_OUTPUT)
        return None
    return int(value)


def parameters(levels: list[dict[str, object]]) -> Iterator[dict[str, object]]:
    """Yield the objects that hold parameters of the request, the most telling first."""
    for level in levels:
        yield level
        for key in PARAMETER_KEYS:
            if isinstance(value := parsed(level.get(key)), dict):
                yield value


def parsed(value: object) -> object:
    """Return the object or list that a text holds as JSON, else the value itself."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return parsed if isinstance(parsed, dict | list) else value
    return value


def dumped(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def as_list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
