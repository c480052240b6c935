"""Recorded traffic: the requests of a file that nobody here wrote."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuner.errors import UsageError
from tuner.load.answers import UnusableRowError
from tuner.load.bodies import Body, prompt_text, read_body
from tuner.load.containers import FORMS, rows
from tuner.load.reading import (
    DEFAULT_OUTPUT_TOKENS,
    LeftOut,
    LengthsSeen,
    TimesFound,
    TrafficReading,
    WhyLeftOut,
    left_out,
    lengths_seen,
)
from tuner.load.recorded_times import Moment, moment, timeline

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz", ".zst")
FEWEST_LEFT = 0.1
"""Least share of a file's rows that must be sent. What fewer show is not the traffic of the file."""

BYTES_PER_TOKEN = 3
"""Bytes per token, estimated on the long side. English has about 4.3, Chinese and code about 3."""

TURN_TOKENS = 6
"""Tokens of a chat template around each turn after the first."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One recorded request. `body` holds its messages and further fields as JSON. `where` is its place in the file.

    `output_tokens` is the recorded length of the answer, `cap` its max_tokens, `answer` its text. `arrival_s` are
    seconds since the file's first request; all entries of a file have one, ascending, or none has.
    """

    body: bytes
    where: str
    turns: int
    prompt_bytes: int
    output_tokens: int | None = None
    cap: int | None = None
    answer: str | None = None
    natural: bool = False
    has_tools: bool = False
    is_prompt: bool = False
    arrival_s: float | None = None

    @property
    def content(self) -> dict[str, object]:
        """Return the messages and fields of the request's body."""
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found

    @property
    def prompt(self) -> str:
        """Return the text that is counted for the prompt."""
        content = self.content
        messages = content["messages"]
        assert isinstance(messages, list)
        return prompt_text(tuple(messages), content)

    def output(self, answer_tokens: int | None) -> int:
        """Return the length to ask for: the recorded one up to the cap, else the cap, else the default."""
        known = self.output_tokens or (None if answer_tokens is None else max(1, answer_tokens))
        if known is None:
            return self.cap or DEFAULT_OUTPUT_TOKENS
        return min(known, self.cap or known)


@dataclass(frozen=True, slots=True)
class RecordedFile:
    """Content of a file: the requests that can be sent, and what else was in it."""

    sha256: str
    rows: int
    entries: tuple[Entry, ...]
    left_out: tuple[tuple[WhyLeftOut, str], ...]
    times: TimesFound
    moved: int
    mended: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of each entry's prompt and output. `counted` is False for estimates from bytes."""

    prompt: NDArray[np.int64]
    output: NDArray[np.int64]
    counted: bool


def is_recording(text: str) -> bool:
    return text.endswith(SUFFIXES) or Path(text).is_file()


def file_sha256(path: Path) -> str:
    """Return the digest of a file. Raises UsageError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read the workload {path}: {error.strerror}", hint=FORMS) from error


_lock = threading.Lock()
_last: list[RecordedFile] = []
"""The file that was read last. Every start of a study sends the same one, and reading may take a minute."""


def read_recording(path: Path, sha256: str | None = None) -> RecordedFile:
    """Read a file of which `sha256` is the digest. Raises UsageError if hardly anything of it can be sent."""
    digest = sha256 or file_sha256(path)
    with _lock:
        if not _last or _last[0].sha256 != digest:
            _last[:] = [_read(path, digest)]
        return _last[0]


def _read(path: Path, digest: str) -> RecordedFile:
    entries: list[Entry] = []
    moments: list[Moment | None] = []
    out: list[tuple[WhyLeftOut, str]] = []
    count = 0
    for row in rows(path):
        count += 1
        try:
            if row.fault is not None:
                raise UnusableRowError(row.fault)
            entries.append(_entry(read_body(row.value), row.where))
            moments.append(moment(row.value))
        except (UnusableRowError, RecursionError) as error:
            out.append((error.reason if isinstance(error, UnusableRowError) else WhyLeftOut.NOT_JSON, row.where))
    check_left(path, count, len(entries), left_out(out))
    times = timeline(moments)
    if times.found is TimesFound.REPLAYED:
        placed = [(at_s, entry) for at_s, entry in zip(times.at_s, entries, strict=True) if at_s is not None]
        out += [(WhyLeftOut.NO_TIME, e.where) for at_s, e in zip(times.at_s, entries, strict=True) if at_s is None]
        placed.sort(key=lambda pair: pair[0])
        entries = [replace(entry, arrival_s=at_s) for at_s, entry in placed]
    return RecordedFile(digest, count, tuple(entries), tuple(out), times.found, times.moved, times.mended)


def check_left(path: Path, rows: int, left: int, out: Sequence[LeftOut]) -> None:
    """Raise UsageError if nothing of a file is left, or hardly anything."""
    if left > 0 and left >= FEWEST_LEFT * rows:
        return
    hint = 'a line looks like {"prompt": "…", "max_tokens": 100} or {"messages": [{"role": "user", "content": "…"}]}'
    if not out:
        raise UsageError(f"{path} has no request in it", hint=hint)
    if out[0].why is WhyLeftOut.LENGTHS_ONLY:
        raise UsageError(
            f"{path} is a trace of lengths without text, as Mooncake's, Azure's and BurstGPT's: {out[0]}",
            hint="such traces are not read; give a file with texts, or lengths alone: --workload random:IN,OUT",
        )
    reasons = ", ".join(map(str, out))
    if left:
        raise UsageError(f"only {left:,} of {rows:,} requests in {path} can be sent; left out: {reasons}", hint=hint)
    raise UsageError(f"{path} has no request that can be sent; left out: {reasons}", hint=hint)


def _entry(body: Body, where: str) -> Entry:
    content = {"messages": body.messages, **body.fields}
    try:
        data = json.dumps(content, ensure_ascii=False, default=str, allow_nan=False).encode()
        answer = None if body.answer is None else body.answer.encode().decode()
        prompt_bytes = len(prompt_text(body.messages, body.fields).encode())
    except UnicodeEncodeError:  # half a surrogate pair, which no request can carry
        raise UnusableRowError(WhyLeftOut.NOT_TEXT) from None
    except ValueError:  # a number that JSON does not have
        raise UnusableRowError(WhyLeftOut.BAD_FIELD) from None
    return Entry(
        body=data,
        where=where,
        turns=len(body.messages),
        prompt_bytes=prompt_bytes,
        output_tokens=body.output_tokens,
        cap=body.cap,
        answer=None if body.output_tokens is not None else answer,
        natural=body.natural,
        has_tools="tools" in body.fields,
        is_prompt=body.is_prompt,
    )


def estimated_sizes(entries: Sequence[Entry]) -> Sizes:
    """Estimate lengths from bytes, on the long side."""
    answers = [None if e.answer is None else -(-len(e.answer.encode()) // BYTES_PER_TOKEN) for e in entries]
    prompts = [max(1, -(-entry.prompt_bytes // BYTES_PER_TOKEN)) for entry in entries]
    outputs = [entry.output(tokens) for entry, tokens in zip(entries, answers, strict=True)]
    return Sizes(np.asarray(prompts, np.int64), np.asarray(outputs, np.int64), counted=False)


def fitting(recording: RecordedFile, sizes: Sizes, limit: int | None) -> list[int]:
    """List the entries that a server accepts whose longest request has `limit` tokens, template aside."""
    if limit is None:
        return list(range(len(recording.entries)))
    return [index for index in range(len(recording.entries)) if needed(recording.entries[index], sizes, index) <= limit]


def needed(entry: Entry, sizes: Sizes, index: int) -> int:
    """Return the tokens of an entry, with the template's around all turns but the first."""
    return int(sizes.prompt[index]) + int(sizes.output[index]) + TURN_TOKENS * (entry.turns - 1)


def reading_of(path: Path, recording: RecordedFile, sizes: Sizes, limit: int | None) -> TrafficReading:
    """Summarise what is sent of a file. Raises UsageError if hardly anything is."""
    kept = fitting(recording, sizes, limit)
    too_long = sorted(set(range(len(recording.entries))) - set(kept))
    out = left_out([*recording.left_out, *((WhyLeftOut.TOO_LONG, recording.entries[i].where) for i in too_long)])
    if not kept and limit is not None:
        least = min(needed(entry, sizes, index) for index, entry in enumerate(recording.entries))
        raise UsageError(
            f"every request of {path} is longer than servers accept: at most {limit:,} tokens and the chat template, "
            f"and the shortest needs {least:,}",
            hint="choose traffic with shorter requests, or a larger --max-model-len if the model takes more",
        )
    check_left(path, recording.rows, len(kept), out)
    entries = [recording.entries[index] for index in kept]
    recorded = sum(entry.output_tokens is not None or entry.answer is not None for entry in entries)
    capped = sum(e.output_tokens is None and e.answer is None and e.cap is not None for e in entries)
    return TrafficReading(
        rows=recording.rows,
        requests=len(entries),
        prompt=_seen(sizes.prompt, kept),
        output=_seen(sizes.output, kept),
        longest=max(needed(recording.entries[index], sizes, index) for index in kept),
        counted=sizes.counted,
        limit=limit,
        left_out=out,
        recorded=recorded,
        capped=capped,
        assumed=len(entries) - recorded - capped,
        natural=sum(entry.natural for entry in entries),
        tools=sum(entry.has_tools for entry in entries),
        as_chat=sum(entry.is_prompt for entry in entries),
        times=recording.times
        if is_timed(entries) or recording.times is not TimesFound.REPLAYED
        else TimesFound.ALL_ALIKE,
        moved=recording.moved,
        mended=recording.mended,
    )


def is_timed(entries: Sequence[Entry]) -> bool:
    """Return True if the entries have times with gaps between them."""
    return entries[0].arrival_s != entries[-1].arrival_s


def _seen(tokens: NDArray[np.int64], kept: Sequence[int]) -> LengthsSeen:
    return lengths_seen([int(tokens[index]) for index in kept])
