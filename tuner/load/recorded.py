"""Recorded traffic: ShareGPT JSON, JSONL of one's own, and vLLM's custom data set, read into one form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tuner.errors import UsageError

SUFFIXES = (".json", ".jsonl")
DEFAULT_OUTPUT_TOKENS = 256
"""As `vllm bench serve --custom-output-len` has it, where neither the file nor a recorded answer says."""

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_OUTPUT_KEYS = ("max_tokens", "max_completion_tokens", "output_tokens", "output_len")
_TIME_KEYS = ("arrival_s", "arrival_time", "timestamp")


@dataclass(frozen=True, slots=True)
class Entry:
    """One recorded request. `answer` is what was answered then: its length is asked for where `max_tokens` is None."""

    messages: tuple[tuple[str, str], ...]
    max_tokens: int | None = None
    answer: str | None = None
    arrival_s: float | None = None

    @property
    def prompt_bytes(self) -> int:
        return sum(len(content.encode()) for _, content in self.messages)


def is_recording(text: str) -> bool:
    return text.endswith(SUFFIXES) or Path(text).is_file()


def read_recording(path: Path) -> tuple[tuple[Entry, ...], str]:
    """The entries and the file's sha256. Raises UsageError that names the line or the entry, and the key."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read the workload {path}: {error}", hint="give a UTF-8 .json or .jsonl file"
        ) from error
    entries = tuple(entry for where, raw in _rows(path, text) if (entry := _entry(raw, where)) is not None)
    if not entries:
        raise UsageError(f"{path} has no request in it", hint='a line looks like {"prompt": "…", "max_tokens": 100}')
    return _ordered(entries), hashlib.sha256(data).hexdigest()


def _rows(path: Path, text: str) -> Iterator[tuple[str, object]]:
    try:
        if path.suffix == ".json":
            rows = json.loads(text)
            if not isinstance(rows, list):
                raise UsageError(f"{path} is not a list of conversations", hint="ShareGPT files are one JSON array")
            yield from ((f"{path}, entry {number}", row) for number, row in enumerate(rows, 1))
            return
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                where = f"{path}, line {number}"
                yield where, json.loads(line)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise UsageError(
            f"{path}: {error}", hint="one JSON object a line in .jsonl, one JSON array in .json"
        ) from error


def _entry(raw: object, where: str) -> Entry | None:
    """None for a conversation without a question, of which ShareGPT has some."""
    if not isinstance(raw, dict):
        raise _wrong(where, "is not an object")
    max_tokens = next((raw[key] for key in _OUTPUT_KEYS if raw.get(key) is not None), None)
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
        raise _wrong(where, f"has a max_tokens of {max_tokens!r}")
    arrival = next((raw[key] for key in _TIME_KEYS if raw.get(key) is not None), None)
    if arrival is not None and (isinstance(arrival, bool) or not isinstance(arrival, int | float)):
        raise _wrong(where, f"has an arrival time of {arrival!r}")
    try:
        arrival_s = None if arrival is None else float(arrival)
    except OverflowError:
        raise _wrong(where, "has an arrival time that is no time") from None
    if "conversations" in raw or "messages" in raw:
        turns = _turns(raw.get("conversations") or raw.get("messages"), where)
        asked = next((i for i, (role, _) in enumerate(turns) if role == "assistant"), len(turns))
        # Own traffic may end in an assistant's turn of the past; ShareGPT's first answer is what was answered then.
        if "messages" in raw:
            asked = len(turns) - (1 if turns and turns[-1][0] == "assistant" else 0)
        if not any(role == "user" for role, _ in turns[:asked]):
            return None
        answer = turns[asked][1] if asked < len(turns) else None
        return Entry(turns[:asked], max_tokens, answer, arrival_s)
    prompt = raw.get("prompt")
    if not isinstance(prompt, str) or not prompt or not _is_text(prompt):
        raise _wrong(where, "has neither prompt nor messages nor conversations")
    return Entry((("user", prompt),), max_tokens, None, arrival_s)


def _turns(raw: object, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(raw, list):
        raise _wrong(where, "has messages that are not a list")
    turns = []
    for turn in raw:
        role = _ROLES.get(str(turn.get("role") or turn.get("from"))) if isinstance(turn, dict) else None
        content = (turn.get("content") or turn.get("value")) if isinstance(turn, dict) else None
        if role is None or not isinstance(content, str) or not _is_text(content):
            raise _wrong(where, f"has a turn that is no text of a known role: {str(turn)[:60]}")
        turns.append((role, content))
    return tuple(turns)


def _is_text(text: str) -> bool:
    """JSON can escape half of a surrogate pair, which no request can carry."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _ordered(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    if all(entry.arrival_s is not None for entry in entries):
        return tuple(sorted(entries, key=lambda entry: entry.arrival_s or 0.0))
    return entries


def _wrong(where: str, what: str) -> UsageError:
    return UsageError(
        f"{where} {what}",
        hint='write {"prompt": "…", "max_tokens": 100} or {"messages": [{"role": "user", "content": "…"}]}',
    )
