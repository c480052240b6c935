"""Turns of a conversation in the chat API's form, from those of other APIs: Anthropic, Responses, Gemini, LangChain."""

from __future__ import annotations

from collections.abc import Iterator

from tuner.load.answers import UnusableRowError, answer_text, as_list, dumped
from tuner.load.reading import WhyLeftOut
from tuner.load.spellings import MEDIA_PARTS, ROLES, TEXT_PARTS, TURN_FIELDS

_CONTENT_KEYS = ("content", "value", "text", "parts")
_THOUGHTS = ("thinking", "redacted_thinking", "reasoning")
"""Parts and items that an API leaves out of the next prompt."""

_TOOL_PARTS = ("tool_use", "tool_result", *_THOUGHTS)
"""Anthropic's parts of a turn that are none in the chat API."""


def role_of(turn: object) -> str | None:
    """Return the role of a turn in the words of the chat API. None if it has none that is known."""
    if not isinstance(turn, dict):
        return None
    role = turn.get("role") or turn.get("from") or turn.get("speaker") or turn.get("type")
    return ROLES.get(role.lower()) if isinstance(role, str) else None


def is_conversation(value: object) -> bool:
    """Return True for a list of nothing but turns of known roles, one of them a user's."""
    roles = [role_of(turn) for turn in as_list(value)]
    return "user" in roles and None not in roles


def split(key: str, raw: list[object], *, goes_on: bool) -> tuple[tuple[dict[str, object], ...], str | None]:
    """Return the turns that are sent and the answer behind them.

    A request body is sent whole, up to an answer at its end unless the model `goes_on` with that. Of a recorded
    conversation only what stands before the first answer is sent, and only that must be readable.
    """
    if not raw:
        raise UnusableRowError(WhyLeftOut.EMPTY)
    raw = [{"role": "user", "content": turn} if isinstance(turn, str) else turn for turn in raw]
    if key == "turns":
        raw = [turn if role_of(turn) or not isinstance(turn, dict) else {"role": "user", **turn} for turn in raw]
    whole = key == "messages"
    if whole:
        raw = list(_merged(raw))
    answers = [index for index, turn in enumerate(raw) if role_of(turn) == "assistant"]
    if whole:
        ends = bool(answers) and answers[-1] == len(raw) - 1 and not goes_on
        asked = len(raw) - 1 if ends else len(raw)
    else:
        asked = answers[0] if answers else len(raw)
        if key == "turns" and not answers:
            asked = min(asked, 1 + next((i for i, turn in enumerate(raw) if role_of(turn) == "user"), asked))
    messages = tuple(_turn(turn, whole=whole) for turn in raw[:asked])
    if not any(message["role"] == "user" for message in messages):
        raise UnusableRowError(WhyLeftOut.NO_QUESTION)
    answered = asked < len(raw) and role_of(raw[asked]) == "assistant"
    return messages, answer_text(raw[asked]) if answered else None


def _merged(raw: list[object]) -> Iterator[object]:
    """Yield turns of the chat API. Calls that are items of their own become one turn."""
    calls: list[object] = []
    for turn in raw:
        kind = turn.get("type") if isinstance(turn, dict) else None
        if isinstance(turn, dict) and kind == "function_call" and "role" not in turn:
            calls.append(_call(turn.get("call_id"), turn.get("name"), turn.get("arguments")))
            continue
        if calls:
            yield {"role": "assistant", "content": None, "tool_calls": calls}
            calls = []
        if isinstance(turn, dict) and kind == "function_call_output":
            yield {"role": "tool", "tool_call_id": turn.get("call_id"), "content": turn.get("output")}
        elif kind not in _THOUGHTS:
            yield from _without_tool_parts(turn)
    if calls:
        yield {"role": "assistant", "content": None, "tool_calls": calls}


def _without_tool_parts(turn: object) -> Iterator[object]:
    """Split Anthropic's parts: calls belong to the turn, results are turns of their own."""
    parts = as_list(turn.get("content")) if isinstance(turn, dict) else []
    kinds = [part.get("type") if isinstance(part, dict) else None for part in parts]
    if not isinstance(turn, dict) or not any(kind in _TOOL_PARTS for kind in kinds):
        yield turn
        return
    named = [(kind, part) for kind, part in zip(kinds, parts, strict=True) if isinstance(part, dict)]
    for kind, part in named:
        if kind == "tool_result":
            yield {"role": "tool", "tool_call_id": part.get("tool_use_id"), "content": part.get("content") or ""}
    calls = [_call(part.get("id"), part.get("name"), part.get("input")) for kind, part in named if kind == "tool_use"]
    rest = [part for kind, part in zip(kinds, parts, strict=True) if kind not in _TOOL_PARTS]
    if rest or calls:
        yield {**turn, "content": rest or None, **({"tool_calls": calls} if calls else {})}


def _call(identity: object, name: object, arguments: object) -> dict[str, object]:
    text = arguments if isinstance(arguments, str) else dumped(arguments or {})
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": text}}


def _turn(raw: object, *, whole: bool) -> dict[str, object]:
    if not isinstance(raw, dict):
        raise UnusableRowError(WhyLeftOut.NO_TEXT_TURN)
    role = role_of(raw)
    if role is None:
        raise UnusableRowError(WhyLeftOut.UNKNOWN_ROLE)
    if isinstance(raw.get("data"), dict):  # LangChain's form on disk
        raw = {"role": role, **raw["data"]}
    said = next((raw[key] for key in _CONTENT_KEYS if raw.get(key) is not None), None)
    kept = {key: value for key, value in raw.items() if value is not None and (whole or key in TURN_FIELDS)}
    kept = {key: value for key, value in kept.items() if key not in ("role", "from", "type", *_CONTENT_KEYS)}
    calls = kept.get("tool_calls") or kept.get("function_call")
    if said is None and not (role == "assistant" and calls):
        raise UnusableRowError(WhyLeftOut.NO_TEXT_TURN)
    return {"role": role, "content": _content(said), **kept}


def _content(said: object) -> str | list[object] | None:
    if said is None or isinstance(said, str):
        return said
    if isinstance(said, dict):
        said = [said]
    if not isinstance(said, list):
        raise UnusableRowError(WhyLeftOut.NO_TEXT_TURN)
    return [_part(part) for part in said]


def _part(part: object) -> dict[str, object]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        raise UnusableRowError(WhyLeftOut.UNKNOWN_PART)
    kind = part.get("type")
    if kind in MEDIA_PARTS or any(part.get(key) for key in MEDIA_PARTS):
        raise UnusableRowError(WhyLeftOut.MEDIA)
    if (kind is None or kind in TEXT_PARTS) and isinstance(part.get("text"), str):
        return part if kind == "text" else {"type": "text", "text": part["text"]}
    raise UnusableRowError(WhyLeftOut.UNKNOWN_PART)
