"""One row of recorded traffic → the body of its request and the length of its answer, in the spellings people have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tuner.load.answers import (
    UnusableRowError,
    answer_text,
    as_list,
    dumped,
    output_lengths,
    parameters,
    parsed,
    recorded_answer,
)
from tuner.load.reading import WhyLeftOut
from tuner.load.spellings import (
    ANTHROPIC_CHOICES,
    BODY_KEYS,
    COMPLETION_ONLY,
    CONVERSATION_KEYS,
    ENDS_EARLY,
    FIELDS,
    LENGTH_KEYS,
    MEDIA_KEYS,
    MEDIA_PARTS,
    OTHER_APIS,
    OWN_FIELDS,
    PROMPT_KEYS,
    ROLES,
    SYSTEM_KEYS,
    TEXT_PARTS,
    TURN_FIELDS,
    WHOLE_BODY_KEYS,
)

Object = Mapping[str, object]


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
    if not isinstance(row, dict):
        raise UnusableRowError(WhyLeftOut.NOT_AN_OBJECT)
    if any(isinstance(url := row.get(key), str) and OTHER_APIS.search(url) for key in ("url", "endpoint", "call_type")):
        raise UnusableRowError(WhyLeftOut.OTHER_API)
    levels = list(_levels(row))
    if any(level.get(key) for level in levels for key in MEDIA_KEYS):
        raise UnusableRowError(WhyLeftOut.MEDIA)
    messages, answer, is_prompt = _conversation(levels)
    output_tokens, cap = output_lengths(row, levels)
    answer = answer if answer is not None else recorded_answer(levels)
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
    inner = [value for key in BODY_KEYS if isinstance(value := parsed(row.get(key)), dict)]
    for value in inner:
        yield from ([body] if isinstance(body := parsed(value.get("body")), dict) else [])
        yield value
    yield row


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
        messages, answer = ({"role": "user", "content": _prompt(value, levels)},), None
    else:
        messages, answer = _turns(key, as_list(value))
    system = next((_text(level[key]) for level in levels for key in SYSTEM_KEYS if level.get(key)), "")
    if system and messages[0].get("role") not in ("system", "developer"):
        messages = ({"role": "system", "content": system}, *messages)
    if not any(_text(message.get("content")) for message in messages):
        raise UnusableRowError(WhyLeftOut.EMPTY)
    return messages, answer, is_prompt


def _found_texts(levels: list[dict[str, object]]) -> Iterator[tuple[str, object]]:
    """Yield the conversations or prompts of a row, the most telling first."""
    for level in levels:
        for key in CONVERSATION_KEYS:
            value = parsed(level.get(key))
            if isinstance(value, list):
                yield key, value
        for key in PROMPT_KEYS:
            value = parsed(level.get(key)) if key in ("input", "messages") else level.get(key)
            if isinstance(value, list) and value and all(isinstance(turn, dict) and "role" in turn for turn in value):
                yield "messages", value
            elif isinstance(value, str) or (isinstance(value, list) and value):
                yield key, value


def _prompt(value: object, levels: list[dict[str, object]]) -> str:
    if isinstance(value, list):
        if not all(isinstance(part, str) for part in value):
            raise UnusableRowError(WhyLeftOut.TOKEN_IDS)
        if len(value) > 1:
            raise UnusableRowError(WhyLeftOut.SEVERAL_PROMPTS)
        value = value[0]
    text = str(value)
    if not text:
        raise UnusableRowError(WhyLeftOut.EMPTY)
    more = levels[-1].get("input")
    if "instruction" in levels[-1] and value == levels[-1]["instruction"] and isinstance(more, str) and more:
        return f"{text}\n{more}"  # Alpaca's form
    return text


def _turns(key: str, raw: list[object]) -> tuple[tuple[dict[str, object], ...], str | None]:
    """Return the turns that are sent and the answer behind them.

    A request body is sent whole, up to an answer at its end. Of a recorded conversation only what stands before
    the first answer is sent, and only that must be readable.
    """
    if not raw:
        raise UnusableRowError(WhyLeftOut.EMPTY)
    raw = [{"role": "user", "content": turn} if isinstance(turn, str) else turn for turn in raw]
    if key == "turns":
        raw = [
            turn if _role(turn) is not None or not isinstance(turn, dict) else {"role": "user", **turn} for turn in raw
        ]
    answers = [index for index, turn in enumerate(raw) if _role(turn) == "assistant"]
    if key == "messages":
        asked = len(raw) - 1 if answers and answers[-1] == len(raw) - 1 else len(raw)
    else:
        asked = answers[0] if answers else len(raw)
        if key == "turns" and not answers:
            asked = min(asked, 1 + next((i for i, turn in enumerate(raw) if _role(turn) == "user"), asked))
    messages = tuple(_turn(turn, whole=key == "messages") for turn in raw[:asked])
    if not any(message["role"] == "user" for message in messages):
        raise UnusableRowError(WhyLeftOut.NO_QUESTION)
    answered = asked < len(raw) and _role(raw[asked]) == "assistant"
    return messages, answer_text(raw[asked]) if answered else None


def _role(turn: object) -> str | None:
    """Return the role of a turn in the words of the chat API. None if it has none that is known."""
    if not isinstance(turn, dict):
        return None
    role = turn.get("role") or turn.get("from") or turn.get("speaker")
    return ROLES.get(role.lower()) if isinstance(role, str) else None


def _turn(raw: object, *, whole: bool) -> dict[str, object]:
    if not isinstance(raw, dict):
        raise UnusableRowError(WhyLeftOut.NO_TEXT_TURN)
    role = _role(raw)
    if role is None:
        raise UnusableRowError(WhyLeftOut.UNKNOWN_ROLE)
    said = next((raw[key] for key in ("content", "value", "text") if raw.get(key) is not None), None)
    kept = {key: value for key, value in raw.items() if value is not None and (whole or key in TURN_FIELDS)}
    kept = {key: value for key, value in kept.items() if key not in ("role", "from", "value", "text", "content")}
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


# ── further fields


def _fields(levels: list[dict[str, object]], *, is_prompt: bool) -> dict[str, object]:
    """Collect what goes into the body beside the messages. Of a wrapped body that is all, else what an API knows."""
    fields: dict[str, object] = {}
    for source in reversed(list(parameters(levels))):
        fields |= {
            key: value for key, value in source.items() if isinstance(value, FIELDS.get(key, ())) and value is not None
        }
    for body in _whole_bodies(levels[-1]):
        fields |= {key: value for key, value in body.items() if key not in OWN_FIELDS and value is not None}
    if "stop" not in fields and isinstance(stops := _first(levels, "stop_sequences"), list):
        fields["stop"] = stops
    for key in COMPLETION_ONLY if is_prompt else ():
        fields.pop(key, None)
    if "tools" in fields:
        fields["tools"] = [_tool(tool) for tool in _checked(parsed(fields["tools"]), list)]
    if not fields.get("tools"):
        fields.pop("tools", None)
        fields.pop("tool_choice", None)
        fields.pop("parallel_tool_calls", None)
    elif "tool_choice" in fields:
        fields["tool_choice"] = _tool_choice(fields["tool_choice"])
    if "response_format" in fields:
        _checked(fields["response_format"], dict)
    return fields


def _whole_bodies(row: dict[str, object]) -> Iterator[dict[str, object]]:
    for key in WHOLE_BODY_KEYS:
        if isinstance(body := parsed(row.get(key)), dict):
            yield body
    if isinstance(request := parsed(row.get("request")), dict):
        yield from _whole_bodies(request)


def _first(levels: list[dict[str, object]], key: str) -> object:
    return next((level[key] for level in levels if level.get(key) is not None), None)


def _checked(value: object, kind: type) -> list[object]:
    if not isinstance(value, kind):
        raise UnusableRowError(WhyLeftOut.BAD_FIELD)
    return as_list(value)


def _tool(tool: object) -> object:
    """Return a tool in the chat API's form. Anthropic's and LLaMA-Factory's have no `function` around them."""
    if not isinstance(tool, dict):
        raise UnusableRowError(WhyLeftOut.BAD_FIELD)
    if "function" in tool or not isinstance(tool.get("name"), str):
        return tool
    own = {key: value for key, value in tool.items() if key in ("name", "description", "parameters", "strict")}
    return {"type": "function", "function": {**own, "parameters": tool.get("input_schema", own.get("parameters", {}))}}


def _tool_choice(choice: object) -> object:
    kind = choice.get("type") if isinstance(choice, dict) and "function" not in choice else None
    if isinstance(choice, dict) and kind == "tool" and isinstance(choice.get("name"), str):
        return {"type": "function", "function": {"name": choice["name"]}}
    return ANTHROPIC_CHOICES.get(kind, choice) if isinstance(kind, str) else choice


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
    return "".join(
        part if isinstance(part, str) else str(part.get("text", "")) if isinstance(part, dict) else ""
        for part in as_list(content)
    )
