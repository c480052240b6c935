"""Server log → cause, by a table of patterns."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from enum import StrEnum

from tuner.server import logtext
from tuner.server.readiness import Endpoint, Obstacle
from tuner.vllm import knobs, log_lines, variables
from tuner.vllm.bounds import MessageContext
from tuner.vllm.cause import Bound, Cause, Fault
from tuner.vllm.log_patterns import BROAD, GENERIC, SPECIFIC, Pattern

__all__ = ["Bound", "Cause", "Fault", "ServerPhase", "diagnose", "foreign_listener", "over_limit", "signal_name"]

_NOT_FOUND_EXITS = (126, 127)
_USAGE_EXIT = 2


class ServerPhase(StrEnum):
    """State of a server at its end."""

    STARTING = "starting"
    SERVING = "serving"


def diagnose(
    log_text: str, *, exit_code: int | None, phase: ServerPhase, held_by_others_gib: float | None = None
) -> Cause:
    """Explain the end of a server. Exit code 0 is a crash too if it should have run.

    `exit_code` is None for a server that still runs, and negative for a signal. `held_by_others_gib` is the memory
    in use on the fullest of its GPUs before the start, None if unknown.
    """
    text = logtext.clean(log_text)
    arguments = log_lines.ARGUMENTS.search(text)
    context = MessageContext(arguments[0] if arguments else "", held_by_others_gib, first_exception=None)
    cause = _from_tables(text, phase, context) or _from_exit_code(text, exit_code, phase)
    if phase is ServerPhase.SERVING and cause.kind == "oom":
        return replace(cause, kind="oom-under-load")
    return cause


def over_limit(limit_s: float, cause: Cause) -> Cause:
    """Explain a start that took too long. `cause` stays if it says more than "unknown"."""
    if cause.fault is not Fault.UNKNOWN:
        return cause
    return Cause(
        "start-limit",
        Fault.UNKNOWN,
        cause.line,
        f"The server was not ready after {limit_s:.0f} s.",
        "see the end of the log; a model that needs longer needs a longer start limit",
    )


def foreign_listener(port: int) -> Cause:
    """Explain a start whose port another process took."""
    return Cause(
        "foreign-listener",
        Fault.ENVIRONMENT,
        "",
        f"A process that is not ours listens on port {port}, which was free a moment before.",
        "start again: every start takes a fresh port",
    )


_OBSTACLES = {
    Obstacle.KEY: (
        "asks for a key that tuner does not have: {url}/v1/models answers 401 or 403",
        f"set {variables.API_KEY} to the server's key; tuner hands it to every server",
    ),
    Obstacle.ENCRYPTED: ("speaks TLS, and tuner plain HTTP", "leave its certificate out of the search"),
    Obstacle.NO_LISTENER: (
        "calls itself ready and does not listen on port {port}",
        "leave the words that choose its address to tuner: host, port, socket file",
    ),
    Obstacle.NOT_REACHED: (
        "calls itself ready, and no connection to {url} succeeds",
        "a container needs the machine's network: docker run --network host …",
    ),
    Obstacle.OTHER_MODEL: (
        "is ready, and {url}/v1/models does not list {model}",
        f"leave --{knobs.SERVED_MODEL_NAME} out in a container, or name the same model to --model",
    ),
    Obstacle.OTHER_PAGES: (
        "calls itself ready, and {url} does not answer as vLLM does on /health and /v1/models",
        "check the command that starts it (--vllm): it is another program, or serves under a prefix",
    ),
}


def obstructed(obstacle: Obstacle, endpoint: Endpoint) -> Cause:
    """Explain a server that will never be ready."""
    words, hint = _OBSTACLES[obstacle]
    seen = words.format(url=endpoint.base_url, port=endpoint.port, model=endpoint.model)
    return Cause(f"obstructed-{obstacle.value}", Fault.STUDY, "", f"The server {seen}.", hint)


def signal_name(number: int) -> str:
    """Name a signal as `kill -l` does."""
    return signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"


def _from_tables(text: str, phase: ServerPhase, context: MessageContext) -> Cause | None:
    if phase is ServerPhase.SERVING and (ready := log_lines.READY.search(text)) is not None:
        text = text[ready.end() :]  # a message that the start survived explains no later death
    text = log_lines.NO_FAILURE.sub("", text)
    for table in (SPECIFIC, BROAD, GENERIC):
        if (found := _first(table, text)) is not None:
            root = _root_exception(text)
            known = replace(context, first_exception=None if root is None else root.start())
            return _cause(*found, text, known)
    return None


def _first(table: tuple[Pattern, ...], text: str) -> tuple[Pattern, re.Match[str]] | None:
    matches = [(pattern, match) for pattern in table if (match := pattern.regex.search(text)) is not None]
    if table is GENERIC:
        return matches[0] if matches else None
    return min(matches, key=lambda found: found[1].start(), default=None)


def _cause(pattern: Pattern, match: re.Match[str], text: str, context: MessageContext) -> Cause:
    fault = pattern.fault if isinstance(pattern.fault, Fault) else pattern.fault(match, context)
    groups = {name: (value or "").strip() for name, value in match.groupdict().items()}
    line = _line_at(text, match.start("line") if "line" in groups else match.start())
    if pattern in GENERIC and context.first_exception is not None:
        line = _line_at(text, context.first_exception)
    return Cause(
        kind=pattern.kind,
        fault=fault,
        line=line,
        explanation=logtext.shorten(pattern.explanation.format(**groups)),
        hint=pattern.hint,
        # Memory that others hold may be free at the next start: a bound from it would be wrong.
        bounds=pattern.learn(match, context) if fault is Fault.CANDIDATE else (),
    )


def _from_exit_code(text: str, exit_code: int | None, phase: ServerPhase) -> Cause:
    root = _root_exception(text)
    line = _last_line(text) if root is None else _line_at(text, root.start("line"))
    if exit_code is None:
        return Cause("no-answer", Fault.UNKNOWN, line, "The server runs and does not answer.", "see the end of the log")
    if exit_code in _NOT_FOUND_EXITS:
        words = "The command that starts vLLM cannot be executed."
        return Cause("command-not-found", Fault.ENVIRONMENT, line, words, "check --vllm")
    if exit_code == _USAGE_EXIT and phase is ServerPhase.STARTING:
        words = "vLLM refuses its command line."
        return Cause("bad-argument", Fault.CANDIDATE, line, words, "correct the space or the words after --")
    if exit_code < 0:
        return _from_signal(line, -exit_code)
    doing = "before it was ready" if phase is ServerPhase.STARTING else "while it should have served"
    words = f"The server ended by itself with exit code {exit_code} {doing}."
    return Cause("ended", Fault.UNKNOWN, line, words, "see the end of the log")


def _from_signal(line: str, number: int) -> Cause:
    name = signal_name(number)
    if number == signal.SIGKILL:
        words = "The server was killed with SIGKILL, probably by the kernel's out-of-memory killer."
        return Cause("killed", Fault.ENVIRONMENT, line, words, "check `dmesg | grep -i oom`")
    if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        words = f"Somebody else ended the server with {name}."
        return Cause("terminated", Fault.ENVIRONMENT, line, words, "see who ends processes on this machine")
    if number == signal.SIGBUS:
        words = "The server met a bus error, as one does when /dev/shm is full."
        return Cause("shm-full", Fault.ENVIRONMENT, line, words, "enlarge /dev/shm (docker: --shm-size, --ipc=host)")
    return Cause("crashed", Fault.UNKNOWN, line, f"The server crashed with {name}.", "see the end of the log")


def _root_exception(text: str) -> re.Match[str] | None:
    """Find the first exception that does not merely report another."""
    return next((m for m in log_lines.EXCEPTION.finditer(text) if not log_lines.CONSEQUENCE.search(m["line"])), None)


def _line_at(text: str, position: int) -> str:
    """Return the line around `position`, shortened if necessary."""
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    line = text[start : len(text) if end < 0 else end]
    if len(line) > logtext.MAX_LINE_CHARS:
        line = text[position : len(text) if end < 0 else end]
    return logtext.shorten(logtext.redact(line))


def _last_line(text: str) -> str:
    lines = text.rstrip().rsplit("\n", 1)
    return logtext.shorten(logtext.redact(lines[-1]))
