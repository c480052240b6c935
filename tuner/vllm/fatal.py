"""Parsed log → the exceptions that ended the first process to die.

A log of a failed start tells one failure many times: in the worker that died, in the engine that missed it, in the
server that missed the engine, and in the shutdown of all. It also tells of errors that were survived. The first
process that died of something of its own has the cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tuner.vllm import log_lines
from tuner.vllm.log_lines import StartPhase
from tuner.vllm.log_parse import LogLevel, LogLine

_MOST_MESSAGE_LINES = 24


@dataclass(frozen=True, slots=True)
class Raised:
    """One exception as printed: `text` is its type and message, over all lines. `at` is the index of its line."""

    at: int
    text: str


@dataclass(frozen=True, slots=True)
class Chain:
    """Exceptions that led to one another, root first, and the functions of their tracebacks.

    `has_traceback` is False for an exception that stands alone, as in a message. `begins` is the index of the first
    line.
    """

    begins: int
    raised: tuple[Raised, ...]
    functions: tuple[str, ...]
    has_traceback: bool
    is_caused: bool

    @property
    def text(self) -> str:
        """The texts of all exceptions, root first."""
        return "\n".join(one.text for one in self.raised)

    @property
    def quoted(self) -> str:
        """The line that names the failure: the root if each next exception was raised from it, else the last."""
        return (self.raised[0] if self.is_caused else self.raised[-1]).text.split("\n")[0]

    @property
    def is_consequence(self) -> bool:
        """Return True if no exception says more than that something else failed."""
        return all(log_lines.CONSEQUENCE.search(one.text) for one in self.raised)

    @property
    def is_clean_up(self) -> bool:
        """Return True if it was raised while a process cleaned up after its end."""
        return any(map(log_lines.CLEAN_UP.fullmatch, self.functions))

    @property
    def is_lost_peer(self) -> bool:
        """Return True if a process only missed another one."""
        return all(log_lines.LOST_PEER.search(one.text) for one in self.raised)


def fatal_chain(lines: Sequence[LogLine]) -> Chain | None:
    """Find the chain of the first process that died of something of its own. None if the log has none."""
    chains = sorted(_chains(lines), key=lambda chain: chain.begins)
    own = [chain for chain in chains if not (chain.is_consequence or chain.is_clean_up)]
    for chosen in (
        (chain for chain in own if chain.has_traceback and not chain.is_lost_peer),
        (chain for chain in own if not chain.is_lost_peer),
        own,
    ):
        if (first := next(iter(chosen), None)) is not None:
            return first
    return _relayed(chains)


def start_phase(lines: Sequence[LogLine], chain: Chain) -> StartPhase | None:
    """Return the phase that a start was in, from the functions that failed, else from what the log said before.

    None if the log tells neither.
    """
    for phase, pattern in log_lines.PHASE_FUNCTIONS:
        if any(map(pattern.fullmatch, chain.functions)):
            return phase
    for line in reversed(lines[: chain.begins]):
        for phase, pattern in log_lines.START_PHASES:
            if pattern.search(line.text):
                return phase
    return None


def _relayed(chains: Iterable[Chain]) -> Chain | None:
    """Take a worker's message from the engine's, of a log that lacks the worker's own."""
    for chain in chains:
        for one in chain.raised:
            if (match := log_lines.RELAYED.search(one.text)) is not None:
                return Chain(chain.begins, (Raised(one.at, match["text"]),), chain.functions, True, True)
    return None


def _chains(lines: Sequence[LogLine]) -> Iterator[Chain]:
    """Yield the chains of every process that did not outlive them."""
    streams: dict[tuple[str, ...], list[int]] = {}
    for at, line in enumerate(lines):
        streams.setdefault(line.process, []).append(at)
    for indexes in streams.values():
        last_progress = next((at for at in reversed(indexes) if _is_progress(lines[at])), -1)
        reader = _StreamReader()
        for at in indexes:
            reader.read(at, lines[at])
        yield from (chain for chain in reader.finish() if chain.raised[-1].at > last_progress)


def _is_progress(line: LogLine) -> bool:
    """Return True for a line that only a living process writes."""
    if log_lines.ENDING.search(line.text):
        return False
    return line.level is LogLevel.INFO or any(pattern.search(line.text) for _, pattern in log_lines.START_PHASES)


@dataclass
class _StreamReader:
    """Reader of one process's lines: joins tracebacks, and exceptions to chains."""

    done: list[Chain] = field(default_factory=list)
    _raised: list[Raised] = field(default_factory=list)
    _functions: list[str] = field(default_factory=list)
    _begins: int = 0
    _in_traceback: bool = False
    _had_traceback: bool = False
    _linked: bool = False
    _is_caused: bool = True
    _ignored: bool = False
    _was_ignored: bool = False
    _source: str = ""
    _before: LogLevel | None = None  # level of the last stamped line
    _message_of: LogLevel | None = None
    _message: list[str] | None = None

    def read(self, at: int, line: LogLine) -> None:
        text = line.text
        if "Traceback (most recent call last)" in text:
            self._begin(at)
        elif (match := log_lines.FRAME.match(text)) is not None:
            self._end_message()
            self._in_traceback = self._had_traceback = True
            self._functions.append(match["function"])
        elif (link := log_lines.LINK.search(text)) is not None:
            self._end_message()
            self._linked = True
            self._ignored = self._was_ignored
            self._is_caused = self._is_caused and link[0].startswith("The above")
        elif log_lines.OUTLIVED.match(text) is not None:
            self._close()
            self._ignored = True
        elif (found := self._exception(line)) is not None:
            self._raise(at, line, found)
        elif self._message is not None and self._continues(line):
            self._message.append(text)
        else:
            self._end_message()
            if text.strip(" ^~"):
                self._source = text.strip()
        if line.level is not None:
            self._before = line.level

    def finish(self) -> list[Chain]:
        self._close()
        return self.done

    def _begin(self, at: int) -> None:
        if not self._linked:
            ignored = self._ignored
            self._close()
            self._was_ignored = False
            self._begins, self._ignored = at, ignored
        self._end_message()
        self._in_traceback = self._had_traceback = True
        self._linked, self._source = False, ""

    def _exception(self, line: LogLine) -> str | None:
        """Return the text of the exception that begins here. None if there is none, or it is part of a message."""
        if (match := log_lines.ABORT.search(line.text)) is not None:
            return next(text for text in match.groups() if text)
        if log_lines.USAGE.match(line.text) is not None:
            return line.text
        if log_lines.EXCEPTION.match(line.text) is None:
            return None
        level = line.level or self._before
        is_own = self._in_traceback or level is None or level.is_failure
        return line.text if is_own else None

    def _raise(self, at: int, line: LogLine, text: str) -> None:
        same_record = self._message is not None and line.level == self._message_of
        self._end_message()
        if not (self._in_traceback or self._linked or same_record):
            self._close()
            self._begins = at
        if ":" not in text and self._source:
            text = f"{text}: {self._source}"  # a bare AssertionError: its condition is in the source
        if self._ignored:
            self._close()
            self._was_ignored = True
            return
        self._raised.append(Raised(at, text))
        self._message, self._message_of, self._in_traceback, self._linked = [], line.level, False, False

    def _continues(self, line: LogLine) -> bool:
        assert self._message is not None
        ends = len(self._message) >= _MOST_MESSAGE_LINES or line.text.startswith("Process ")
        return line.level == self._message_of and not ends

    def _end_message(self) -> None:
        if self._message and self._raised:
            last = self._raised[-1]
            self._raised[-1] = Raised(last.at, "\n".join((last.text, *self._message)).rstrip())
        self._message = None

    def _close(self) -> None:
        self._end_message()
        if self._raised:
            functions = tuple(self._functions)
            self.done.append(Chain(self._begins, tuple(self._raised), functions, self._had_traceback, self._is_caused))
        self._raised, self._functions = [], []
        self._in_traceback = self._had_traceback = self._linked = self._ignored = False
        self._is_caused, self._source = True, ""
