"""Flags of the installed vLLM: one probe of `--help=all`, cached by version."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tuner.errors import EnvironmentFaultError, UsageError
from tuner.jsonfile import TornFileError, dump, load
from tuner.vllm import knobs

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=", re.ASCII)
_OPERATOR = re.compile(r"^(?:&&|\|\|?|&>|\d?(?:>>?|<<?)&?|[;&]$)|;$")
"""Operators of a shell as words of their own, or a semicolon at a word's end."""
_BUILTINS = frozenset(
    {"cd", "pushd", "source", ".", "export", "set", "unset", "ulimit", "umask", "eval", "exec", "alias"}
)

UNKNOWN_VERSION = "unknown"
"""Version of a vLLM that does not say it."""

PROBE_LIMIT_S = 180
"""Seconds for the probe. It takes 8-15 s on 2 cores, and imports torch from a cold disk once."""


_LOOK_S = 0.2
"""Seconds between two looks at the probe's processes."""


@dataclass(frozen=True, slots=True)
class InstalledVllm:
    """Version (or UNKNOWN_VERSION) and flags of a vLLM, sorted, without dashes, `no-…` forms included."""

    version: str
    flags: tuple[str, ...]


def split_command(text: str) -> tuple[str, ...]:
    """Split `--vllm "…"` into words. Raises EnvironmentFaultError if the command is not there, UsageError if it is a
    line for a shell."""
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise EnvironmentFaultError(f"--vllm does not parse: {error}", hint="close the quotation mark") from error
    _refuse_shell_line(words)
    if words and words[0].startswith("~"):
        with suppress(RuntimeError):  # no such user
            words = (str(Path(words[0]).expanduser()), *words[1:])
    if not words or shutil.which(words[0]) is None:
        raise _not_there(words[0] if words else "command")
    return words


def _refuse_shell_line(words: tuple[str, ...]) -> None:
    """Raise UsageError for what only a shell understands."""
    if words and (found := _ASSIGNMENT.match(words[0])):
        raise UsageError(
            f"--vllm is a command without a shell: {found[1]}=… at its beginning sets no variable",
            hint=f'begin it with env: --vllm "env {found[1]}=… vllm serve", or export {found[1]} before tuner',
        )
    if found := next((match for word in words if (match := _OPERATOR.search(word))), None):
        what = found[0]
    elif words and (words[0] in _BUILTINS or words[0].startswith(("$", "`"))):
        what = words[0]
    else:
        return
    raise UsageError(
        f"--vllm is a command without a shell: {what!r} does nothing there",
        hint="""put the line into an executable script that ends with `exec vllm "$@"`: --vllm "./script serve\"""",
    )


def _not_there(program: str) -> EnvironmentFaultError:
    """Explain a program that cannot be executed."""
    whole = 'name the command: --vllm "/opt/vllm/bin/vllm serve"'
    path = Path(program)
    if "/" not in program:
        return EnvironmentFaultError(f"no {program!r} on PATH", hint=f"install vLLM in this environment, or {whole}")
    if not path.is_absolute():
        whole = f"a relative path counts from the current folder, {Path.cwd()}; {whole}"
    with suppress(OSError):
        if path.is_dir():
            return EnvironmentFaultError(f"{program} of --vllm is a folder", hint=whole)
        if path.exists():
            return EnvironmentFaultError(f"{program} of --vllm is not executable", hint=f"chmod +x {program}")
    return EnvironmentFaultError(f"there is no program {program}, which --vllm names", hint=whole)


def installed_vllm(command: tuple[str, ...], cache: Path) -> InstalledVllm:
    """Ask the command for its flags. Raises EnvironmentFaultError: a vLLM without a help cannot serve either."""
    version = _version_of_package(command)
    path = cache / f"{hashlib.sha256(repr((command, version)).encode()).hexdigest()[:16]}.json"
    if version:
        with suppress(OSError, TornFileError):  # not there, or not ours to read: asked again below
            return load(path, InstalledVllm)
    flags = parse_flags(_help_of(command))
    if knobs.MAX_NUM_SEQS not in flags:
        raise EnvironmentFaultError(
            f"{shlex.join(command)} does not look like vLLM: its help names no --max-num-seqs",
            hint="give the command that starts the OpenAI-compatible server, such as 'vllm serve'",
        )
    known = version or _version_of_command(command) or UNKNOWN_VERSION
    found = InstalledVllm(known, _usable(flags, known))
    if version:
        with suppress(OSError):  # no cache: the next command asks again
            cache.mkdir(parents=True, exist_ok=True)
            dump(path, found)
    return found


def parse_flags(help_text: str) -> tuple[str, ...]:
    """Parse an argparse help. Option lines begin with the option; prose that mentions a flag does not."""
    lines = (line for line in help_text.splitlines() if re.match(r"\s+-{1,2}[a-zA-Z]", line))
    return tuple(sorted({name for line in lines for name in re.findall(r"(?:^|[\s,])--([a-z0-9][\w-]*)", line)}))


def _usable(flags: tuple[str, ...], version: str) -> tuple[str, ...]:
    """Drop flags that the version lists and then refuses ("Concurrent Partial Prefill is not supported")."""
    number = re.match(r"(\d+)\.(\d+)", version)
    if number and (0, 10) <= (int(number[1]), int(number[2])) <= (0, 26):
        return tuple(f for f in flags if f not in (knobs.MAX_NUM_PARTIAL_PREFILLS, knobs.MAX_LONG_PARTIAL_PREFILLS))
    return flags


def _help_of(command: tuple[str, ...]) -> str:
    ended = None
    for option in ("--help=all", "--help"):  # --help=all is `vllm serve`'s own; the module entry points know --help
        ended = _run((*command, option))
        if ended.returncode == 0 and f"--{knobs.MAX_NUM_SEQS}" in ended.stdout:
            return ended.stdout
    assert ended is not None
    if ended.returncode != 0:
        said = (ended.stderr or ended.stdout).strip().splitlines() or ["no output"]
        raise EnvironmentFaultError(
            f"{shlex.join(command)} --help ends with exit code {ended.returncode}: {said[-1]}",
            hint="run it by hand: this vLLM cannot start",
        )
    return ended.stdout


def _run(words: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    # A wide terminal: argparse otherwise breaks long option lists over lines.
    env = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    deadline = time.monotonic() + PROBE_LIMIT_S
    try:
        child = subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace", env=env,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except OSError as error:
        raise EnvironmentFaultError(f"{words[0]} does not start: {error}", hint="check --vllm") from error
    with child:
        while True:
            try:
                out, said = child.communicate(timeout=_LOOK_S)
            except subprocess.TimeoutExpired:
                _refuse_other_users(child.pid, words[0])
                if time.monotonic() < deadline:
                    continue
                child.kill()
                raise EnvironmentFaultError(
                    f"{shlex.join(words)} gave no answer within {PROBE_LIMIT_S} s",
                    hint="run it by hand and see where it hangs",
                ) from None
            return subprocess.CompletedProcess(words, child.returncode, out, said)


def _refuse_other_users(pid: int, program: str) -> None:
    """Raise EnvironmentFaultError if the command runs as somebody else, as through sudo. None could end its server."""
    with suppress(psutil.Error):
        leader = psutil.Process(pid)
        for process in (leader, *leader.children(recursive=True)):
            try:
                os.kill(process.pid, 0)
            except PermissionError:
                raise EnvironmentFaultError(
                    f"{program} runs as another user: tuner could not end its servers",
                    hint="leave sudo out of --vllm, and run tuner itself as that user: sudo -u USER tuner search …",
                ) from None
            except ProcessLookupError:
                continue


def _version_of_package(command: tuple[str, ...]) -> str | None:
    """Return the version of the package behind the command, without importing it. None if it is not vLLM's own."""
    module = command[command.index("-m") + 1] if "-m" in command[:-1] else None
    if not (Path(command[0]).name == "vllm" or (module or "").startswith("vllm.")):
        return None
    python = _python_behind(command[0])
    code = "import importlib.metadata as m; print(m.version('vllm'))"
    ended = _run((python, "-c", code)) if python else None
    return ended.stdout.strip() if ended and ended.returncode == 0 else None


def _python_behind(program: str) -> str | None:
    path = shutil.which(program)
    if path is None or Path(path).name.startswith("python"):
        return path
    try:
        with Path(path).open("rb") as file:
            first = file.readline(512)
    except OSError:  # executable and not readable
        return None
    words = first[2:].split() if first.startswith(b"#!") else []
    return os.fsdecode(words[0]) if len(words) == 1 else None


def _version_of_command(command: tuple[str, ...]) -> str | None:
    if command[-1] != "serve":
        return None
    ended = _run((*command[:-1], "--version"))
    words = ended.stdout.split()
    return words[-1] if ended.returncode == 0 and words else None
