"""Workload value: the requests, their order and their seed."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tuner.errors import UsageError
from tuner.load.reading import TimesFound, TrafficReading
from tuner.load.recorded import Sizes, estimated_sizes, is_recording, read_recording, reading_of

BodyValue = bool | int | float | str | None | list["BodyValue"] | Mapping[str, "BodyValue"]
"""Value of a field in a request's JSON body."""

OWN_FIELDS = ("model", "messages", "max_tokens", "max_completion_tokens", "stream", "stream_options", "n")
"""Fields of a request's body that tuner sets, or that would make one request several."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts drawn uniformly from low..high, inclusive."""

    low: int
    high: int

    @property
    def mean(self) -> float:
        return (self.low + self.high) / 2


@dataclass(frozen=True, slots=True)
class Share:
    """Kind of request with its `weight` and lengths. `shared_prefix` tokens at the start of the prompt are the same
    in every request (a system prompt)."""

    weight: float
    prompt: Lengths
    output: Lengths
    shared_prefix: int = 0
    thinking: bool = False


@dataclass(frozen=True, slots=True)
class Workload:
    """Description of the traffic. Prompt lengths count the generated words; the chat template's tokens come on top.

    `file` is the absolute path of recorded traffic, `file_sha256` its content at planning, `reading` its summary (None
    in older plans). `timed` tells if its requests have arrival times. A `temperature` of None leaves sampling to the
    model. `extra_body` are further fields of every request, with their values as JSON. A field of null is left out of
    all.
    """

    name: str
    source: str
    shares: tuple[Share, ...]
    natural_stops: bool = False
    file: str | None = None
    file_sha256: str | None = None
    timed: bool = False
    reading: TrafficReading | None = None
    temperature: float | None = None
    extra_body: tuple[tuple[str, str], ...] = ()

    @property
    def longest(self) -> int:
        """Return the longest request's tokens, without the template. max-model-len must hold it."""
        if self.reading is not None:
            return self.reading.longest
        return max(s.prompt.high + s.output.high for s in self.shares)

    @property
    def mean(self) -> float:
        """Return the mean request's tokens, without the template."""
        if self.reading is not None:
            return self.reading.mean
        return sum(s.weight * (s.prompt.mean + s.output.mean) for s in self.shares) / sum(s.weight for s in self.shares)


def _one(name: str, source: str, prompt: tuple[int, int], output: tuple[int, int], shared_prefix: int = 0) -> Workload:
    return Workload(name, source, (Share(1.0, Lengths(*prompt), Lengths(*output), shared_prefix),))


_MIXED = Workload(
    "mixed",
    "own: four of five requests answered directly, one of five thinks first, for up to 1,024 tokens",
    (
        Share(0.8, Lengths(20, 80), Lengths(50, 50)),
        Share(0.2, Lengths(40, 200), Lengths(256, 1024), thinking=True),
    ),
)

PRESETS: dict[str, Workload] = {
    workload.name: workload
    for workload in (
        _one(
            "short-qa",
            "lengths near the Alpaca questions in the PagedAttention paper (SOSP 2023: 19 in, 58 out on average)",
            (12, 40),
            (50, 50),
        ),
        _one(
            "chat",
            "prompts near ShareGPT in the PagedAttention paper (161 tokens in on average), 150 to 256 out",
            (60, 260),
            (150, 256),
        ),
        _MIXED,
        _one(
            "rag",
            "own: passages of 3,000 to 8,000 tokens behind one system prompt of 512 that every request shares, 200 out",
            (3000, 8000),
            (200, 200),
            shared_prefix=512,
        ),
        _one(
            "summary",
            "own: news articles and reports (CNN/DailyMail articles have about 800 words), 500 out",
            (800, 2000),
            (500, 500),
        ),
        _one(
            "code",
            "prompts around the median of the coding trace in the Splitwise paper (ISCA 2024: 1,500 tokens), 80 out",
            (1000, 2000),
            (80, 80),
        ),
        _one(
            "translate",
            "own: one or two sentences in, as much out",
            (30, 80),
            (50, 50),
        ),
    )
}

_RANGE = r"(\d{1,9})(?:-(\d{1,9}))?"
_RANDOM = re.compile(rf"random:{_RANGE},{_RANGE}")
_PREFIX = re.compile(rf"prefix:(\d{{1,9}}),{_RANGE},{_RANGE}")
FORMS = ("random:IN,OUT", "prefix:SHARED,OWN,OUT", "a .json, .jsonl, .csv or .parquet file")


def workload(text: str) -> Workload:
    """Resolve a preset, a form such as `random:256,32`, or a file. Raises UsageError with the known names."""
    if text in PRESETS:
        return PRESETS[text]
    if match := _RANDOM.fullmatch(text):
        return _synthetic(text, 0, _lengths(match[1], match[2]), _lengths(match[3], match[4]))
    if match := _PREFIX.fullmatch(text):
        return _synthetic(text, int(match[1]), _lengths(match[2], match[3]), _lengths(match[4], match[5]))
    if is_recording(text):
        return _recorded(text)
    close = difflib.get_close_matches(text, [*PRESETS, *FORMS], n=1, cutoff=0.5)
    guess = f"did you mean {close[0]!r}? " if close else ""
    raise UsageError(
        f"there is no workload {text!r}",
        hint=f"{guess}workloads: {', '.join(PRESETS)}, {', '.join(FORMS)}",
    )


def with_body(load: Workload, *, natural_stops: bool, extra_body: str | None) -> Workload:
    """Return the workload with the bodies that were asked for. Raises UsageError."""
    try:
        fields = json.loads(extra_body or "{}", parse_constant=_no_number)
    except ValueError as error:
        raise UsageError(f"--extra-body is not JSON: {error}", hint=_BODY_HINT) from error
    if not isinstance(fields, dict):
        raise UsageError(f"--extra-body {extra_body!r} is no JSON object", hint=_BODY_HINT)
    if own := next((name for name in OWN_FIELDS if name in fields), None):
        raise UsageError(f"--extra-body names {own!r}, which tuner sets", hint="leave it out")
    body = tuple((name, json.dumps(value, ensure_ascii=False)) for name, value in sorted(fields.items()))
    return replace(load, natural_stops=natural_stops, extra_body=body)


def extra_body_text(load: Workload) -> str | None:
    """Return the --extra-body that gives these fields. None without any."""
    return (
        f"{{{', '.join(f'{json.dumps(name)}: {value}' for name, value in load.extra_body)}}}"
        if load.extra_body
        else None
    )


_BODY_HINT = """write an object, such as --extra-body '{"chat_template_kwargs": {"enable_thinking": false}}'"""


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _lengths(low: str, high: str | None) -> Lengths:
    return Lengths(int(low), int(high if high is not None else low))


def _recorded(text: str) -> Workload:
    name = Path(text).name
    try:
        str(Path(text).absolute()).encode()
    except UnicodeEncodeError as error:
        shown = text.encode("utf-8", "replace").decode()
        raise UsageError(f"the name of the workload {shown!r} is not UTF-8", hint="rename the file") from error
    recording = read_recording(Path(text))
    # Absolute, so that a study is resumed from any folder.
    found = Workload(name, "", (), file=str(Path(text).absolute()), file_sha256=recording.sha256)
    return measured(found, estimated_sizes(recording.entries))


def measured(workload: Workload, sizes: Sizes, limit: int | None = None) -> Workload:
    """Return the workload of a file with the lengths of its entries. Those that need more tokens than `limit` are left
    out. Raises UsageError if hardly anything is left."""
    assert workload.file is not None
    path = Path(workload.file)
    reading = reading_of(path, read_recording(path, workload.file_sha256), sizes, limit)
    prompt, output = (Lengths(max(1, seen.low), max(1, seen.high)) for seen in (reading.prompt, reading.output))
    timed = reading.times is TimesFound.REPLAYED
    source = f"recorded traffic: {reading.requests} requests" + (" with their arrival times" if timed else "")
    return replace(workload, source=source, shares=(Share(1.0, prompt, output),), timed=timed, reading=reading)


def _synthetic(text: str, shared: int, own: Lengths, output: Lengths) -> Workload:
    if not 0 < own.low <= own.high or not 0 < output.low <= output.high:
        raise UsageError(
            f"the lengths in {text!r} are not a range of tokens",
            hint="write the smaller number first, at least 1: 'random:256,32' or 'random:128-512,16-64'",
        )
    prompt = Lengths(shared + own.low, shared + own.high)
    return Workload(text, "lengths from the command line, random words", (Share(1.0, prompt, output, shared),))
