"""Log text → lines with process, level and message, in every form that vLLM's output takes.

vLLM prefixes a line with one or two processes, `VLLM_LOGGING_PREFIX`, level, time and source, or writes JSON. torch,
Ray, uvicorn and Python's logging have stamps of their own. Containers put their times and names before all that.
"""

from __future__ import annotations

import itertools
import json
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from tuner.vllm import log_lines


class LogLevel(StrEnum):
    """Level of a line that has a stamp."""

    DEBUG = "D"
    INFO = "I"
    WARNING = "W"
    ERROR = "E"
    CRITICAL = "C"

    @property
    def is_failure(self) -> bool:
        return self in (LogLevel.ERROR, LogLevel.CRITICAL)


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line without its prefixes.

    Attributes:
        process: Names of the processes that wrote it, outermost first. Empty if it names none.
        level: None for a line without a stamp: stderr, a traceback, the further lines of a message.
    """

    process: tuple[str, ...]
    level: LogLevel | None
    text: str

    @property
    def reports_failure(self) -> bool:
        """Return True if its words may name a failure, should the log have no exception."""
        if self.level is None or self.level.is_failure:
            return not log_lines.SURVIVED.search(self.text) and not log_lines.FRAME.match(self.text)
        # Of several API servers each is told to end by the main process, whatever the reason.
        is_one_of_several = any(name.startswith("ApiServer_") for name in self.process)
        return not is_one_of_several and log_lines.TOLD_QUIETLY.search(self.text) is not None


_LEVELS = r"DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL"
_CLOCK = r"\d\d:\d\d:\d\d(?:[.,]\d+)?"
_TIME = rf"\d{{4}}-\d\d-\d\d[T ]{_CLOCK}(?:Z|[+-]\d\d:?\d\d)?"

# Colours whose escape character a copy has lost, and spaces of a mail.
_COLOURS = re.compile(r"&nbsp;|(?:#033|\\x1b|\\033|\^\[|ESC)?\[\d{1,2}(?:;\d{1,3})*m")
_ENDS = re.compile(r"(?:#015|\\n|\s|\[repeated \d+x across cluster\])+$")
_CONTAINERS = re.compile(
    rf"\[?{_TIME}\]?\s*(?:(?:stdout|stderr) [FP] )?(?:\[(?:Info|Warning|Error|Debug)\] (?:\(\w+\) )?)?"
    rf"|\[(?:pod/[^\]\s]+|container|stdout|stderr|/[\w/]+|vllm[\w-]*)\]:? "
    rf"|[A-Z][a-z]{{2}} [ \d]\d {_CLOCK} \S+ [\w./@-]+(?:\[\d+\])?: "
    rf"|\| (?:{_LEVELS}) \| (?:stderr|stdout) \| "
    rf"|[A-Za-z][\w.-]*\s+\| "
    rf"|(?:\w+ )?(?:STDOUT|STDERR): "
    rf"|[a-z0-9]{{8,20}}\[(?:info|warn|error)\]|\d{{13}},\"?"
    rf"|[>▍│|] |\*\*\s?|{_CLOCK} |\[[\w/]+\.py:\d+\] "
)
_PROCESS = re.compile(
    r"\((?P<one>[^()]{0,120}?\bpid=\d+)[^()]{0,120}\) ?|\[(?P<two>rank\d+)\]:? ?"
    r"|\((?P<three>(?:APIServer|EngineCore|(?:Vllm|Ray)?Worker)\w*)\) "  # a person left the number out
)
# VLLM_LOGGING_PREFIX stands before the process, or before the level up to 0.29.
_OWN_PREFIX = re.compile(
    rf"[^'\"{{}}\s(][^'\"{{}}(]{{0,80}}?(?=(?:\([^()]*\bpid=\d+\) )?(?:{_LEVELS}) \d\d-\d\d {_CLOCK} "
    rf"\[?[\w./<>-]+:\d+\])"
)
_STAMPS = (
    re.compile(rf"(?P<level>{_LEVELS})(?: \d\d-\d\d(?: {_CLOCK})?)? \[?[\w./<>-]+:\d+\] ?"),  # vLLM
    # torch, C++ and Python
    re.compile(rf"\[?(?P<level>[IWEFC])\d{{0,4}} ?(?:{_CLOCK} )?(?:\d+ )?[\w./-]+\.\w+:\d+\] ?"),
    # Ray, Python's logging, uvicorn
    re.compile(rf"(?:- )?(?P<level>{_LEVELS})\s+(?:-\s+)?[\w.]+\.py:\d+(?: --? | - )"),
    re.compile(rf"- (?P<level>{_LEVELS}) - |\[(?P<level_2>{_LEVELS})\] |(?P<level_3>{_LEVELS}):\s+"),
)
_BY_LETTER = {level.value: level for level in LogLevel} | {"F": LogLevel.CRITICAL}

_JSON_LEVEL = ("levelname", "level", "severity")
_JSON_MESSAGE = ("message", "msg", "event")
_JSON_PROCESS = ("processName", "process", "pid")
_JSON_TRACEBACK = ("exc_info", "exc_text", "exception", "traceback", "stack_trace")

_LOGFMT = re.compile(r"(?:[\w.-]+=(?:\"(?:[^\"\\]|\\.)*\"|[^\s\"]*)(?: |$)){2,}")
_LOGFMT_MESSAGE = re.compile(r"(?:^| )(?:msg|message)=(?P<text>\"(?:[^\"\\]|\\.)*\")")

_TRACEBACK = "Traceback (most recent call last)"
_LEAST_BROKEN = 3
"""Number of broken lines that make a log one that a terminal broke."""
_WRAPPER = re.compile(
    rf"(?P<wrapper>.{{1,100}}?)"
    rf"(?=\([^()]*\bpid=\d+|(?:{_LEVELS}) (?:\d\d-\d\d {_CLOCK} |\[)|\[rank\d+\]|{re.escape(_TRACEBACK)})"
)


def parse_log(text: str) -> list[LogLine]:
    """Parse a log. Blank lines say nothing: some terminals and pages put one after every line."""
    raw_lines = _unbroken([raw.rstrip() for raw in textwrap.dedent(text).split("\n") if raw.strip()])
    if (wrapper := _unknown_wrapper(raw_lines)) is not None:
        raw_lines = [wrapper.sub("", raw, count=1) for raw in raw_lines]
    return list(_with_messages(line for raw in raw_lines for line in _parse(raw) if line.text.strip()))


def _unbroken(raw_lines: Sequence[str]) -> list[str]:
    """Join lines that a terminal broke at its width: those of this length have a prefix, the next ones have none."""
    width = max(map(len, raw_lines), default=0)
    pairs = [(one, other) for one, other in itertools.pairwise(raw_lines) if len(one) >= width - 1]
    begin = sum(_is_stamped(one) for one, _ in pairs)
    if begin < _LEAST_BROKEN or any(_is_stamped(other) for _, other in pairs):
        return list(raw_lines)
    joined: list[str] = []
    before = 0
    for raw in raw_lines:
        if before >= width - 1 and not _is_stamped(raw):
            joined[-1] += " " * (width - before) + raw  # a space at the edge is lost
        else:
            joined.append(raw)
        before = len(raw)
    return joined


def _with_messages(lines: Iterable[LogLine]) -> Iterator[LogLine]:
    """Yield the lines. What stands below a bare `ValueError:` is its message, though a copy lost the prefixes."""
    bare = None
    for line in lines:
        is_message = bare is not None and not line.process and line.level is None and _TRACEBACK not in line.text
        bare = bare if is_message else line if log_lines.BARE.match(line.text) else None
        yield replace(line, process=bare.process, level=bare.level) if bare is not None else line


def _unknown_wrapper(raw_lines: Sequence[str]) -> re.Pattern[str] | None:
    """Return what stands before most lines and is no form that is known: what precedes a traceback or a stamp,
    whatever its numbers are. None if lines are read without it."""
    wrapped = (raw for raw in raw_lines if _WRAPPER.match(raw) and not _is_stamped(raw))
    raw = next((raw for raw in raw_lines if _TRACEBACK in raw), None) or next(wrapped, "")
    known = any(line.process or line.level or line.text.lstrip().startswith(_TRACEBACK) for line in _parse(raw))
    match = None if known else _WRAPPER.match(raw)
    if match is None:
        return None
    wrapper = re.compile("^" + re.sub(r"(?:\\ )*\d+", r"\\s*\\d+", re.escape(match["wrapper"])))
    return wrapper if sum(wrapper.match(raw) is not None for raw in raw_lines) > len(raw_lines) / 2 else None


def _parse(raw: str) -> Iterator[LogLine]:
    if raw.lstrip().startswith("{") and (found := _object(raw)) is not None:
        yield from _of_object(found)
        return
    if '="' in raw and (found := _logfmt(raw)) is not None:
        yield from _of_object(found)
        return
    text = _COLOURS.sub("", raw)
    if _is_stamped(quoted := text.lstrip()):
        text = quoted
    process: list[str] = []
    level = None
    while text and not text[0].isspace():
        if (match := _PROCESS.match(text)) is not None:
            process.append(next(name for name in match.groups() if name))
            level = None  # a stamp before the process is that of a wrapper
        elif (match := _stamp(text)) is not None:
            level = _BY_LETTER[next(group for group in match.groupdict().values() if group)[0]]
        elif (match := _CONTAINERS.match(text) or _OWN_PREFIX.match(text)) is None:
            break
        text = text[match.end() :]
    if text.startswith("{") and (found := _object(text)) is not None:
        yield from _of_object(found, tuple(process))
    else:
        yield LogLine(tuple(process), level, _ENDS.sub("", text))


def _is_stamped(raw: str) -> bool:
    return _PROCESS.match(raw) is not None or _STAMPS[0].match(raw) is not None


def _stamp(text: str) -> re.Match[str] | None:
    return next((match for pattern in _STAMPS if (match := pattern.match(text)) is not None), None)


def _object(raw: str) -> dict[str, object] | None:
    try:
        found = json.loads(raw)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _logfmt(raw: str) -> dict[str, object] | None:
    """Return the record of a wrapper that writes `time=… level=… msg="…"` around each line."""
    message = _LOGFMT_MESSAGE.search(raw) if _LOGFMT.fullmatch(raw.strip()) else None
    return None if message is None else _object(f'{{"log": {message["text"]}}}')


def _of_object(found: dict[str, object], process: tuple[str, ...] = ()) -> Iterator[LogLine]:
    """Yield the lines of a JSON record, or of the plain line inside a container engine's record."""
    inner = found.get("log")
    if isinstance(inner, str):
        for line in inner.rstrip("\n").split("\n"):
            yield from _parse(line)
        return
    name = " ".join(str(found[key]) for key in _JSON_PROCESS if found.get(key))
    process = (*process, name) if name else process
    level = _BY_LETTER.get(_text(found, _JSON_LEVEL)[:1].upper())
    for part in (_text(found, _JSON_MESSAGE), _text(found, _JSON_TRACEBACK)):
        for line in part.split("\n") if part else ():
            for own in _parse(line):  # the message may be a line with prefixes again
                yield LogLine(process + own.process, own.level or level, own.text)


def _text(found: dict[str, object], names: tuple[str, ...]) -> str:
    """Return the first of these fields that is given, "" if none."""
    return next((str(found[name]) for name in names if found.get(name)), "")
