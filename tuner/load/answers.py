"""Recorded answers and their lengths, in the spellings people have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from tuner.load.reading import WhyLeftOut
from tuner.load.spellings import ANSWER_KEYS, CAP_KEYS, OUTPUT_KEYS, PARAMETER_KEYS, USAGE_KEYS, spelled

_DEEPEST = 6
_CONTENTS = ("choices", "message", "delta", "body", "content", "value", "text", "parts", "candidates", "output",
             "response", "output_text")  # fmt: skip
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_ENVELOPE = frozenset(("choices", "usage", "candidates", "status_code"))
"""Names by which a text of JSON is an API's whole answer."""

_NOT_TOLD = (None, "")
_NO_CAP = (-1, -2, "-1", "inf")
"""Caps that say there is none: llama.cpp's and Langfuse's."""

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
            value = parsed(level.get(key))
            if key != "choices" and not (isinstance(value, dict) and value.keys() & _ENVELOPE):
                value = level.get(key)  # an answer may be JSON itself
            if key == "choices" and not all(isinstance(choice, dict) for choice in as_list(value)):
                continue  # those of a test
            if value is not None and (text := answer_text(value)) is not None:
                return text
    return None


def answer_text(value: object, depth: int = 0) -> str | None:
    """Dig the text out of an answer in any API's form, with what was thought before it and its tool calls."""
    if isinstance(value, str):
        return (answer_text(chunks, depth + 1) or "") if (chunks := _chunks(value)) else value
    if depth >= _DEEPEST or not isinstance(value, list | dict):
        return None
    if isinstance(value, list):
        texts = [answer_text(part, depth + 1) for part in value]
    else:
        thoughts = next((value[key] for key in _THOUGHTS if isinstance(value.get(key), str)), None)
        said = next((value[key] for key in _CONTENTS if value.get(key) is not None), None)
        said = said[:1] if said is value.get("choices") and isinstance(said, list) else said
        calls = next((value[key] for key in ("tool_calls", "function_call") if value.get(key)), None)
        calls = value if value.get("type") == "tool_use" else calls
        texts = [thoughts, answer_text(said, depth + 1), None if calls is None else _called(calls)]
    told = [text for text in texts if text is not None]
    return "".join(told) if told else None


def _called(calls: object) -> str:
    """Return the text of tool calls. A stream has them in pieces, of which the arguments alone count."""
    if isinstance(calls, list) and calls and all(isinstance(call, dict) and "index" in call for call in calls):
        functions = [call["function"] for call in calls if isinstance(call.get("function"), dict)]
        return "".join(f"{function.get('name') or ''}{function.get('arguments') or ''}" for function in functions)
    return dumped(calls)


def _chunks(text: str) -> list[object]:
    """Return the objects of a stream that was recorded as text. Empty for another text."""
    if not text.startswith(("data:", "event:")):
        return []
    lines = [line[5:].strip() for line in text.split("\n") if line.startswith("data:")]
    return [chunk for line in lines if isinstance(chunk := parsed(line), dict)]


def has_failed(row: dict[str, object], *, is_answered: bool) -> bool:
    """Return True if a row records that the request failed."""
    answers = [answer for key in ANSWER_KEYS if isinstance(answer := parsed(row.get(key)), dict)]
    for level in (row, *map(spelled, answers)):
        statuses = [level.get(key) for key in ("status_code", "http_status", "response_status", "status")]
        if any(_code(status) >= 400 or str(status).lower() in ("failure", "failed", "error") for status in statuses):
            return True
    errors = [row.get("error"), *(answer.get("error") for answer in answers)]
    return not is_answered and any(error and str(error).lower() not in ("none", "null", "false") for error in errors)


def _code(status: object) -> int:
    text = str(status)
    return int(text) if len(text) == 3 and text.isdecimal() else 0


def output_lengths(row: dict[str, object], levels: list[dict[str, object]]) -> tuple[int | None, int | None]:
    """Return the recorded length and the cap. Raises UnusableRowError for a length that no answer can have."""
    recorded = None
    for usage in _usages(row, levels):
        recorded = next((usage[key] for key in OUTPUT_KEYS if usage.get(key) not in _NOT_TOLD), None)
        if recorded is None and isinstance(usage.get("output"), int | float):
            recorded = usage["output"]
        total, prompt = usage.get("total_tokens"), usage.get("prompt_tokens")
        if recorded is None and isinstance(total, int) and isinstance(prompt, int) and total > prompt:
            recorded = total - prompt
        if recorded is not None:
            break
    caps = (source[key] for source in parameters(levels) for key in CAP_KEYS if source.get(key) not in _NOT_TOLD)
    cap = next((cap for cap in caps if cap not in _NO_CAP), None)
    if recorded is None and cap is None:
        return None, None
    if recorded is not None:
        return _tokens(recorded), _tokens(cap, strict=False)
    return None, _tokens(cap)


def _usages(row: dict[str, object], levels: list[dict[str, object]]) -> Iterator[dict[str, object]]:
    """Yield the objects that may hold a recorded length, those of the row before those of its answer."""
    for level in (row, *levels[:-1]):
        yield level
        yield from (spelled(usage) for key in USAGE_KEYS if isinstance(usage := parsed(level.get(key)), dict))
    for key in ANSWER_KEYS:
        answer = parsed(row.get(key))
        bodies = [answer, parsed(answer.get("body")) if isinstance(answer, dict) else None]
        if isinstance(answer, str):
            bodies = _chunks(answer)[::-1]
        for body in bodies:
            if isinstance(body, dict):
                found = spelled(body)
                yield found
                yield from (spelled(usage) for key in USAGE_KEYS if isinstance(usage := found.get(key), dict))


def _tokens(value: object, *, strict: bool = True) -> int | None:
    """Read a length as a number or as text. Raises UnusableRowError, or gives None, for what is no length."""
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,12}(?:\.0*)?\s*", value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= MOST_TOKENS or value % 1:
        if strict:
            raise UnusableRowError(WhyLeftOut.NO_OUTPUT)
        return None
    return int(value)


def parameters(levels: list[dict[str, object]]) -> Iterator[dict[str, object]]:
    """Yield the objects that hold parameters of the request, the most telling first."""
    for level in levels:
        yield level
        yield from (spelled(value) for key in PARAMETER_KEYS if isinstance(value := parsed(level.get(key)), dict))


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
