"""One row of recorded traffic → the body of its request and the length of its answer, in the spellings people have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from tuner.load.answers import (
    UnusableRowError,
    as_list,
    dumped,
    has_failed,
    output_lengths,
    parameters,
    parsed,
    recorded_answer,
)
from tuner.load.reading import WhyLeftOut
from tuner.load.spellings import (
    ANSWER_KEYS,
    BODY_KEYS,
    CHOICES,
    COMPLETION_ONLY,
    CONVERSATION_KEYS,
    ENDS_EARLY,
    FIELDS,
    HISTORY_KEYS,
    LENGTH_KEYS,
    MEDIA_KEYS,
    OTHER_APIS,
    OWN_FIELDS,
    PARTIAL_KEYS,
    PROMPT_KEYS,
    SYSTEM_KEYS,
    WHOLE_BODY_KEYS,
    snake,
    spelled,
)
from tuner.load.turns import is_conversation, role_of, split

Object = Mapping[str, object]
_DEEPEST = 3


@dataclass(frozen=True, slots=True)
class Body:
    """Request of a row. `messages` and `fields` go into its body as they are.

    `output_tokens` is the recorded length of the answer, `cap` its max_tokens, `answer` its text; None if not told.
    `natural` is True if the fields may end the answer sooner. `is_prompt` is True for a plain prompt.
    """

    messages: tuple[dict[str, object], ...]
    fields: dict[str, object]
    output_tokens: int | None
    cap: int | None
    answer: str | None
    natural: bool
    is_prompt: bool


def read_body(row: object) -> Body:
    """Read one row. Raises UnusableRowError with the reason if it cannot be sent."""
    row = parsed(row)
    if is_conversation(row):
        row = {"messages": row}
    if not isinstance(row, dict):
        raise UnusableRowError(WhyLeftOut.NOT_AN_OBJECT)
    row = spelled(row)
    if any(isinstance(url := row.get(key), str) and OTHER_APIS.search(url) for key in ("url", "endpoint", "call_type")):
        raise UnusableRowError(WhyLeftOut.OTHER_API)
    levels = list(_levels(row))
    if next(_found_texts(levels), None) is None:
        levels = [*islice(_hidden(row), 1), *levels]
    if any(level.get(key) for level in levels for key in MEDIA_KEYS):
        raise UnusableRowError(WhyLeftOut.MEDIA)
    messages, answer, is_prompt = _conversation(levels)
    output_tokens, cap = output_lengths(row, levels)
    answer = answer if answer is not None else recorded_answer(levels)
    if output_tokens is None and has_failed(row, is_answered=bool(answer)):
        raise UnusableRowError(WhyLeftOut.FAILED)
    if answer == "" and output_tokens is None:
        raise UnusableRowError(WhyLeftOut.NO_OUTPUT)
    fields = _fields(levels, is_prompt=is_prompt)
    copies = fields.get("n")
    if output_tokens is not None and isinstance(copies, int) and copies > 1:
        output_tokens = -(-output_tokens // copies)
    return Body(messages, fields, output_tokens, cap, answer, _ends_early(fields), is_prompt)


def prompt_text(messages: tuple[dict[str, object], ...], fields: Object) -> str:
    """Return everything of a request that a chat template puts into the prompt."""
    texts = [_text(message.get("content")) for message in messages]
    texts += [dumped(message[key]) for message in messages for key in ("tool_calls", "function_call") if key in message]
    texts += [dumped(tool) for tool in as_list(fields.get("tools"))]
    return "".join(texts)


def _levels(row: dict[str, object]) -> Iterator[dict[str, object]]:
    """Yield the objects that may hold the request's fields, the innermost body first."""
    for value in _objects(row, BODY_KEYS):
        level = spelled(value)
        yield from (spelled(body) for body in _objects(level, ("body",)))
        yield level
    yield row


def _objects(level: Object, keys: Iterable[str]) -> Iterator[dict[str, object]]:
    for key in keys:
        if isinstance(value := parsed(level.get(key)), dict):
            yield value


def _hidden(level: dict[str, object], depth: int = 0) -> Iterator[dict[str, object]]:
    """Yield objects with a conversation under a name that nobody knows, outside of answers."""
    values = {key: parsed(value) for key, value in level.items() if key not in (*ANSWER_KEYS, *HISTORY_KEYS)}
    for key, value in values.items():
        if is_conversation(value):
            yield {**level, "messages" if key.endswith(("messages", "contents")) else "conversation": value}
    for value in values.values() if depth < _DEEPEST else ():
        if isinstance(value, dict):
            yield from _hidden(spelled(value), depth + 1)


# ── messages


def _conversation(levels: list[dict[str, object]]) -> tuple[tuple[dict[str, object], ...], str | None, bool]:
    """Return what is sent, the recorded answer behind it, and whether it was a plain prompt."""
    found = next(_found_texts(levels), None)
    if found is None:
        lengths_only = any(key in level for level in levels for key in LENGTH_KEYS)
        raise UnusableRowError(WhyLeftOut.LENGTHS_ONLY if lengths_only else WhyLeftOut.NO_REQUEST)
    key, value = found
    is_prompt = not isinstance(value, list) or key in PROMPT_KEYS
    messages: tuple[dict[str, object], ...]
    if is_prompt:
        holder = next(level for level in levels if level.get(key) is not None)
        if "role" in holder and role_of(holder) not in ("user", None):  # a table of turns
            raise UnusableRowError(WhyLeftOut.NO_QUESTION)
        messages, answer = (*_history(holder), {"role": "user", "content": _prompt(key, value, holder)}), None
        is_prompt = len(messages) == 1
    else:
        goes_on = any(level.get("continue_final_message") is True for level in levels)
        messages, answer = split(key, as_list(value), goes_on=goes_on)
    system = next((_text(level[key]) for level in levels for key in SYSTEM_KEYS if level.get(key)), "")
    if system and messages[0].get("role") not in ("system", "developer"):
        messages = ({"role": "system", "content": system}, *messages)
    if not any(_text(message.get("content")) for message in messages):
        raise UnusableRowError(WhyLeftOut.EMPTY)
    return messages, answer, is_prompt


def _history(level: Object) -> tuple[dict[str, object], ...]:
    """Return the turns before a prompt. Raises UnusableRowError for a history that cannot be read."""
    raw = next((value for key in HISTORY_KEYS if (value := as_list(parsed(level.get(key))))), [])
    if all(isinstance(turn, str) for turn in raw):
        raw = [raw[at : at + 2] for at in range(0, len(raw), 2)]
    turns: list[object] = []
    for turn in raw:
        pair = as_list(turn)
        roles = ("user", "assistant") if len(pair) == 2 else ()
        turns += [{"role": role, "content": text} for role, text in zip(roles, pair, strict=False)] or [turn]
    return split("messages", turns, goes_on=True)[0] if turns else ()


def _found_texts(levels: list[dict[str, object]]) -> Iterator[tuple[str, object]]:
    """Yield the conversations or prompts of a row, the most telling first."""
    for level in levels:
        for key in CONVERSATION_KEYS:
            value = parsed(level.get(key))
            if isinstance(value, list):
                yield key, value
        for key in PROMPT_KEYS:
            value = parsed(level.get(key))
            value = value if key in BODY_KEYS or is_conversation(value) else level.get(key)
            if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
                yield "messages", value
            elif isinstance(value, str) or (isinstance(value, list) and value):
                yield key, value


def _prompt(key: str, value: object, holder: Object) -> str:
    """Return the text of a prompt, with the texts beside it that belong to it."""
    if isinstance(value, list):
        if not all(isinstance(part, str) for part in value):
            raise UnusableRowError(WhyLeftOut.TOKEN_IDS)
        if len(value) > 1:
            raise UnusableRowError(WhyLeftOut.SEVERAL_PROMPTS)
        value = value[0]
    text = str(value)
    if not text:
        raise UnusableRowError(WhyLeftOut.EMPTY)
    if key not in PARTIAL_KEYS:
        return text
    before = [holder.get(name) for name in (*HISTORY_KEYS, "context")]
    parts = [*before, *as_list(holder.get("context")), text, holder.get("input") if key == "instruction" else None]
    return "\n".join(part for part in parts if isinstance(part, str) and part)


# ── further fields


def _fields(levels: list[dict[str, object]], *, is_prompt: bool) -> dict[str, object]:
    """Collect what goes into the body beside the messages. Of a wrapped body that is all, else what an API knows."""
    fields: dict[str, object] = {}
    for source in reversed(list(parameters(levels))):
        typed = {key: _number(value, FIELDS[key]) for key, value in source.items() if key in FIELDS}
        fields |= {key: value for key, value in typed.items() if isinstance(value, FIELDS[key])}
    for body in _whole_bodies(levels[-1]):
        fields |= {key: value for key, value in body.items() if snake(key) not in OWN_FIELDS and value is not None}
    stops = next((level["stop_sequences"] for level in levels if "stop_sequences" in level), None)
    if "stop" not in fields and isinstance(stops, list):
        fields["stop"] = stops
    for key in COMPLETION_ONLY if is_prompt else ():
        fields.pop(key, None)
    for old, new in (("functions", "tools"), ("function_call", "tool_choice")):  # the names of before 2024
        if old in fields:
            fields.setdefault(new, fields.pop(old))
    if "tools" in fields:
        fields["tools"] = [_tool(tool) for tool in _checked(parsed(fields["tools"]), list)]
    if not fields.get("tools"):
        fields.pop("tools", None)
        fields.pop("tool_choice", None)
        fields.pop("parallel_tool_calls", None)
    elif "tool_choice" in fields:
        fields["tool_choice"] = _tool_choice(fields["tool_choice"], as_list(fields["tools"]))
    if "response_format" in fields:
        _checked(fields["response_format"], dict)
    return fields


def _number(value: object, kinds: object) -> object:
    """Return the number that a text holds where a field takes no text, as in CSV."""
    if not isinstance(value, str) or kinds is object or kinds is str or (isinstance(kinds, tuple) and str in kinds):
        return value
    try:
        return json.loads(value.lower())
    except (ValueError, RecursionError):
        return value


def _whole_bodies(row: dict[str, object]) -> Iterator[dict[str, object]]:
    yield from _objects(row, WHOLE_BODY_KEYS)
    for request in _objects(row, ("request",)):
        yield from _whole_bodies(spelled(request))


def _checked(value: object, kind: type) -> list[object]:
    if not isinstance(value, kind):
        raise UnusableRowError(WhyLeftOut.BAD_FIELD)
    return as_list(value)


def _tool(tool: object) -> object:
    """Return a tool in the chat API's form. Anthropic's and LLaMA-Factory's have no `function` around them."""
    if isinstance(tool, dict) and "function" not in tool and isinstance(tool.get("name"), str):
        own = {key: value for key, value in tool.items() if key in ("name", "description", "parameters", "strict")}
        inputs = tool.get("input_schema", own.get("parameters", {}))
        return {"type": "function", "function": {**own, "parameters": inputs}}
    if _name(tool) is None:
        raise UnusableRowError(WhyLeftOut.BAD_FIELD)
    return tool


def _name(tool: object) -> str | None:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def _tool_choice(choice: object, tools: list[object]) -> object:
    """Return a choice in the chat API's form. Raises UnusableRowError for one that servers refuse."""
    kind = choice.get("type") if isinstance(choice, dict) else choice
    if isinstance(choice, dict) and "function" not in choice and isinstance(choice.get("name"), str):
        choice = {"type": "function", "function": {"name": choice["name"]}}
    elif isinstance(kind, str) and kind in CHOICES:
        return CHOICES[kind]
    if _name(choice) not in {_name(tool) for tool in tools} - {None}:
        raise UnusableRowError(WhyLeftOut.BAD_FIELD)
    return choice


def _ends_early(fields: Object) -> bool:
    """Return True if the answer may end before its length: at a stop word, or where its grammar ends."""
    formatted = fields.get("response_format")
    if isinstance(formatted, dict) and formatted.get("type") != "text":
        return True
    choice = fields.get("tool_choice")
    return choice == "required" or isinstance(choice, dict) or any(fields.get(key) for key in ENDS_EARLY)


def _text(content: object) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        return str(content.get("text") or "") or _text(content.get("parts") or content.get("content"))
    return "".join(map(_text, as_list(content)))
