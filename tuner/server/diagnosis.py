"""Server log → cause: the exceptions that ended the first process, read by tables of patterns."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum

from tuner.secrecy import mask
from tuner.server import logtext
from tuner.server.readiness import Endpoint, Obstacle
from tuner.vllm import knobs, log_lines, variables
from tuner.vllm.bounds import MessageContext
from tuner.vllm.cause import Bound, Cause, Fault
from tuner.vllm.fatal import Chain, fatal_chain, start_phase
from tuner.vllm.log_lines import StartPhase
from tuner.vllm.log_parse import LogLine, parse_log
from tuner.vllm.log_patterns import BROAD, GENERIC, KILLED_HINT, SILENT_DEATHS, SPECIFIC, tables
from tuner.vllm.memory import memory_figures
from tuner.vllm.pattern import Pattern

__all__ = ["Bound", "Cause", "Fault", "ServerPhase", "diagnose", "foreign_listener", "over_limit", "signal_name"]

_NOT_FOUND_EXITS = (126, 127)
_USAGE_EXIT = 2
_SHELL_SIGNALS = 128
"""Exit code of a signal 0, as a shell or a container engine reports it."""


class ServerPhase(StrEnum):
    """State of a server at its end."""

    STARTING = "starting"
    SERVING = "serving"


def diagnose(
    log_text: str,
    *,
    exit_code: int | None,
    phase: ServerPhase,
    held_by_others_gib: float | None = None,
    oom_kills: int | None = None,
) -> Cause:
    """Explain the end of a server. Exit code 0 is a crash too if it should have run.

    `exit_code` is None for a server that still runs, and negative for a signal. `held_by_others_gib` is the memory
    in use on the fullest of its GPUs before the start, None if unknown. `oom_kills` is how many processes the kernel
    ended meanwhile for want of memory, None if it does not tell.
    """
    text = logtext.clean(log_text)
    lines = parse_log(text)
    if phase is ServerPhase.SERVING:
        lines = _since_ready(lines)  # a message that the start survived explains no later death
    arguments = log_lines.ARGUMENTS.search(text)
    context = MessageContext(arguments[0] if arguments else "", held_by_others_gib)
    chain = fatal_chain(lines)
    cause = _from_log(lines, chain, phase, context) or _from_exit_code(lines, chain, exit_code, phase)
    if cause.kind in ("killed", "worker-died", "engine-died"):
        cause = _with_oom_kills(cause, oom_kills)
    if phase is ServerPhase.SERVING and cause.kind.startswith("oom"):
        return replace(cause, kind="oom-under-load")
    return cause


def _with_oom_kills(cause: Cause, oom_kills: int | None) -> Cause:
    """Say what the kernel's count tells of a silent death. Without it, a silent death proves nothing."""
    if oom_kills:
        words = f"{cause.explanation} The kernel ended it, since the machine ran out of host memory."
        return replace(cause, kind="killed", fault=Fault.ENVIRONMENT, explanation=words)
    if cause.kind == "killed" and oom_kills == 0:
        words = f"{cause.explanation} Not by the kernel for want of memory: somebody sent the signal."
        return replace(cause, explanation=words)
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


def _since_ready(lines: list[LogLine]) -> list[LogLine]:
    ready = next((at for at, line in enumerate(lines) if log_lines.READY.search(line.text)), None)
    return lines if ready is None else lines[ready + 1 :]


def _from_log(
    lines: Sequence[LogLine], chain: Chain | None, phase: ServerPhase, context: MessageContext
) -> Cause | None:
    """Name the cause from the exceptions that ended the first process, else from what the log says of its end."""
    silent = _first_line(lines, SILENT_DEATHS)
    if chain is not None and (silent is None or chain.begins < silent[0]):
        at = StartPhase.SERVING if phase is ServerPhase.SERVING else start_phase(lines, chain)
        context = replace(context, phase=at, figures=memory_figures(chain.text))
        for table in tables(chain, context):
            for text in (one.text for one in chain.raised):
                for pattern in table:
                    if (match := pattern.regex.search(text)) is not None:
                        return _cause(pattern, match, text, context)
    told = silent or _first_line(lines, SPECIFIC if chain is None else ())
    told = told or _first_line(lines, (*BROAD, *GENERIC) if chain is None or chain.is_lost_peer else GENERIC)
    if told is None:
        return None
    cause = _cause(told[1], told[2], lines[told[0]].text, context)
    is_told_first = chain is None or (chain.begins > told[0] and told[1] not in GENERIC)
    return cause if chain is None or is_told_first else replace(cause, line=_short(chain.quoted))


def _first_line(lines: Sequence[LogLine], table: Sequence[Pattern]) -> tuple[int, Pattern, re.Match[str]] | None:
    """Find the first line that reports a failure of a table, and the first pattern of the table that it has."""
    for at, line in enumerate(lines):
        if line.reports_failure:
            for pattern in table:
                if (match := pattern.regex.search(line.text)) is not None:
                    return at, pattern, match
    return None


def _cause(pattern: Pattern, match: re.Match[str], text: str, context: MessageContext) -> Cause:
    fault = pattern.fault if isinstance(pattern.fault, Fault) else pattern.fault(match, context)
    groups = {name: (value or "").strip() for name, value in match.groupdict().items()}
    line = _line_at(text, match.start("line") if "line" in groups else match.start())
    words = pattern.explanation.format(**{"line": line, **groups})
    return Cause(
        kind=pattern.kind,
        fault=fault,
        line=line,
        explanation=logtext.shorten(words),
        hint=pattern.hint,
        # Memory that others hold may be free at the next start: a bound from it would be wrong.
        bounds=pattern.learn(match, context) if fault is Fault.CANDIDATE else (),
    )


def _from_exit_code(lines: Sequence[LogLine], chain: Chain | None, exit_code: int | None, phase: ServerPhase) -> Cause:
    last = next((line.text for line in reversed(lines) if line.text.strip()), "")
    line = _short(last if chain is None else chain.quoted)
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
    if exit_code - _SHELL_SIGNALS in set(signal.Signals):
        return _from_signal(line, exit_code - _SHELL_SIGNALS)
    doing = "before it was ready" if phase is ServerPhase.STARTING else "while it should have served"
    words = f"The server ended by itself with exit code {exit_code} {doing}."
    return Cause("ended", Fault.UNKNOWN, line, words, "see the end of the log")


def _from_signal(line: str, number: int) -> Cause:
    name = signal_name(number)
    if number == signal.SIGKILL:
        return Cause("killed", Fault.ENVIRONMENT, line, "The server was killed with SIGKILL.", KILLED_HINT)
    if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        words = f"Somebody else ended the server with {name}."
        return Cause("terminated", Fault.ENVIRONMENT, line, words, "see who ends processes on this machine")
    if number == signal.SIGBUS:
        words = "The server met a bus error, as one does when /dev/shm is full."
        return Cause("shm-full", Fault.ENVIRONMENT, line, words, "enlarge /dev/shm (docker: --shm-size, --ipc=host)")
    return Cause("crashed", Fault.UNKNOWN, line, f"The server crashed with {name}.", "see the end of the log")


def _line_at(text: str, position: int) -> str:
    """Return the line around `position`, shortened if necessary."""
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    line = text[start : len(text) if end < 0 else end]
    if len(line) > logtext.MAX_LINE_CHARS:
        line = text[position : len(text) if end < 0 else end]
    return _short(line)


def _short(line: str) -> str:
    return logtext.shorten(mask(line))
