"""Recorded traffic: ShareGPT, JSONL, and vLLM's custom data set."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path

from tuner.errors import UsageError

SUFFIXES = (".json", ".jsonl")
DEFAULT_OUTPUT_TOKENS = 256
"""Output tokens without a given length (`vllm bench serve --custom-output-len`)."""

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_OUTPUT_KEYS = ("max_tokens", "max_completion_tokens", "output_tokens", "output_len")
_TIME_KEYS = ("arrival_s", "arrival_time", "timestamp")
LATEST_S = 1e15
"""Latest plausible time, in milliseconds too. Above it a float cannot tell two gaps apart."""

_TIMES_HINT = (
    "seconds (12.5) or ISO 8601 (2026-11-25T08:00:00.250+00:00), all in one form, in every request or in none, and "
    "none before the one above it"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One recorded request. If `max_tokens` is None, the length of the recorded `answer` is requested. `arrival_s`
    are seconds since the file's first request. Either all entries of a file have one, ascending, or none has."""

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
    """Read the entries and the file's sha256. Raises UsageError that names the line or the entry, and the key."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"cannot read the workload {path}: {why}", hint="give a UTF-8 .json or .jsonl file") from error
    rows = [(where, raw, entry) for where, raw in _rows(path, text) if (entry := _entry(raw, where)) is not None]
    if not rows:
        raise UsageError(f"{path} has no request in it", hint='a line looks like {"prompt": "…", "max_tokens": 100}')
    entries = tuple(entry for _, _, entry in rows)
    times = _arrivals_s(path, [(where, _time(raw)) for where, raw, _ in rows])
    if times is not None:
        entries = tuple(replace(entry, arrival_s=at) for entry, at in zip(entries, times, strict=True))
    return entries, hashlib.sha256(data).hexdigest()


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


def _time(raw: object) -> object:
    """Return the row's arrival time as written. None if it has none."""
    return next((raw[key] for key in _TIME_KEYS if raw.get(key) is not None), None) if isinstance(raw, dict) else None


def _arrivals_s(path: Path, times: Sequence[tuple[str, object]]) -> list[float] | None:
    """Convert times to seconds since the first request. None if no row has a time. Raises UsageError that names the
    line."""
    without = [where for where, time in times if time is None]
    if len(without) == len(times):
        return None
    if without:
        raise UsageError(f"{without[0]} has no arrival time, and others have one", hint=_TIMES_HINT)
    read = [_seconds(time, where) for where, time in times]
    form, first_s = read[0]
    before_s = first_s
    for (where, time), (its_form, at_s) in zip(times, read, strict=True):
        if its_form is not form:
            raise UsageError(f"{where} has an arrival time of another form than the first: {time!r}", hint=_TIMES_HINT)
        if at_s < before_s:
            raise UsageError(f"{where} arrived before the request above it: {time!r}", hint=_TIMES_HINT)
        before_s = at_s
    if before_s == first_s:
        raise UsageError(f"the arrival times in {path} are all the same", hint="leave them out, or record finer ones")
    return [at_s - first_s for _, at_s in read]


class _TimeForm(Enum):
    """Form of an arrival time. Only times of one form can be compared."""

    SECONDS = "seconds"
    LOCAL = "without offset"
    ABSOLUTE = "with offset"


def _seconds(time: object, where: str) -> tuple[_TimeForm, float]:
    if isinstance(time, str):
        try:
            moment = datetime.fromisoformat(time)
        except ValueError:
            raise UsageError(f"{where} has an arrival time of {time!r}", hint=_TIMES_HINT) from None
        form = _TimeForm.LOCAL if moment.tzinfo is None else _TimeForm.ABSOLUTE
        # Any zone does for times without an offset, as long as it keeps their distances: UTC has no summer time.
        return form, (moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment).timestamp()
    if isinstance(time, int | float) and not isinstance(time, bool) and 0 <= time < LATEST_S:
        return _TimeForm.SECONDS, float(time)
    raise UsageError(f"{where} has an arrival time of {str(time)[:40]}", hint=_TIMES_HINT)


def _entry(raw: object, where: str) -> Entry | None:
    """Read one row. None for a conversation without a question; ShareGPT has some."""
    if not isinstance(raw, dict):
        raise _wrong(where, "is not an object")
    max_tokens = next((raw[key] for key in _OUTPUT_KEYS if raw.get(key) is not None), None)
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
        raise _wrong(where, f"has a max_tokens of {max_tokens!r}")
    if "conversations" in raw or "messages" in raw:
        turns = _turns(raw.get("conversations") or raw.get("messages"), where)
        asked = next((i for i, (role, _) in enumerate(turns) if role == "assistant"), len(turns))
        # Own traffic may end in an assistant's turn of the past; ShareGPT's first answer is what was answered then.
        if "messages" in raw:
            asked = len(turns) - (1 if turns and turns[-1][0] == "assistant" else 0)
        if not any(role == "user" for role, _ in turns[:asked]):
            return None
        answer = turns[asked][1] if asked < len(turns) else None
        return Entry(turns[:asked], max_tokens, answer)
    prompt = raw.get("prompt")
    if not isinstance(prompt, str) or not prompt or not _is_text(prompt):
        raise _wrong(where, "has neither prompt nor messages nor conversations")
    return Entry((("user", prompt),), max_tokens)


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
    """Return False for half a surrogate pair. JSON can escape it, but no request can carry it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _wrong(where: str, what: str) -> UsageError:
    return UsageError(
        f"{where} {what}",
        hint='write {"prompt": "…", "max_tokens": 100} or {"messages": [{"role": "user", "content": "…"}]}',
    )
