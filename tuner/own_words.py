"""Words of the user's own, after -- and in --vllm: what is refused among them, and relative paths made absolute.

A recorded path must mean the same when a study is resumed, or its start.sh called, in another folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tuner.errors import UsageError
from tuner.flagwords import Value, given_flags
from tuner.launch import is_container
from tuner.space.space import Space
from tuner.vllm import knobs

_NAMED = re.compile(r"(?P<name>[\w.-]+)=(?P<path>[^=]+)")
"""Value such as `adapter=./folder`, also a variable before a command."""
_SQLITE = re.compile(r"(?P<driver>sqlite(?:\+\w+)?:///)(?P<path>[^/:?][^?]*)")
"""URL of a SQLite file with a relative path."""
_ENV_FILE = "--env-file"
_MOUNTS = ("-v", "--volume", _ENV_FILE)
"""Options of a container engine that begin with a path of this machine."""


def check_own_flags(extra: Sequence[str], given: Mapping[str, Value]) -> None:
    """Refuse what would make every start or every level worthless."""
    if extra and not extra[0].startswith("-"):
        raise UsageError(f"{extra[0]!r} after -- is no flag of vLLM", hint="write --name value; the model is --model")
    for name in (knobs.HOST, knobs.PORT):
        if name in given:
            raise UsageError(
                f"--{name} after -- is the tuner's own: every server gets a free port",
                hint=f"set it where the winner is started: {name.upper()}=… ./start.sh",
            )
    if given.get(knobs.DISABLE_LOG_STATS):
        raise UsageError(
            f"--{knobs.DISABLE_LOG_STATS} hides preemptions, so no level could be feasible",
            hint="leave it out of the search",
        )


def check_whole_names(own_flags: Collection[str], flags: Collection[str]) -> None:
    """Refuse abbreviations, which argparse accepts: the search would not know which flag is the user's."""
    for name in sorted(set(own_flags).difference(flags)):
        if (whole := next((flag for flag in flags if flag.startswith(name)), None)) is not None:
            raise UsageError(f"--{name} abbreviates a flag of vLLM", hint=f"write the name in full, as --{whole}")


def absolute_flags(words: Sequence[str]) -> tuple[str, ...]:
    """Make relative paths among vLLM's flags absolute."""
    found: list[str] = []
    for flag in given_flags(words, short=knobs.SHORT_OPTIONS):
        is_path = flag.base in knobs.PATHS
        for word in flag.words:
            option, sign, text = _parted(word)
            found.append(word if option and not sign else f"{option}{sign}{_absolute(text, is_path=is_path)}")
    return tuple(found)


def absolute_space(space: Space) -> Space:
    """Make relative paths among the constant flags of a space absolute."""

    def flags(pairs: Sequence[tuple[str, Value]]) -> tuple[tuple[str, Value], ...]:
        return tuple(
            (flag, _absolute(value, is_path=flag in knobs.PATHS) if isinstance(value, str) else value)
            for flag, value in pairs
        )

    return replace(space, baseline=flags(space.baseline), fixed=flags(space.fixed), always=flags(space.always))


def absolute_command(words: Sequence[str]) -> tuple[str, ...]:
    """Make relative paths of a command absolute. In a container, those of its mounts alone: the rest are its own."""
    if not is_container(tuple(words)):
        return tuple(word if word.startswith("-") else _absolute(word) for word in words)
    found: list[str] = []
    for word in words:
        option, sign, text = _parted(word)
        mount = option or (found[-1] if found else "")
        if mount in _MOUNTS and text:
            path, colon, rest = text.partition(":")
            text = f"{_absolute(path, is_path=mount == _ENV_FILE)}{colon}{rest}"
        found.append(f"{option}{sign}{text}" if sign or not option else word)
    return tuple(found)


def absolute_storage(url: str) -> str:
    """Make the relative path of a SQLite file absolute."""
    match = _SQLITE.match(url)
    return url if match is None else f"{match['driver']}{Path.cwd() / match['path']}{url[match.end() :]}"


def _parted(word: str) -> tuple[str, str, str]:
    """Part an option from its value and the sign between them. A word that is no option is all value."""
    return word.partition("=") if word.startswith("--") else ("", "", word)


def _absolute(text: str, *, is_path: bool = False) -> str:
    """Make a value absolute if it is a path, or holds paths as JSON or behind a name."""
    if text.startswith(("{", "[")):
        return _absolute_json(text)
    if _looks_like_a_path(text, is_path=is_path):
        return str(Path(text).absolute())
    named = _NAMED.fullmatch(text)
    if named is not None and _looks_like_a_path(named["path"]):
        return f"{named['name']}={_absolute(named['path'])}"
    return text


def _absolute_json(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    changed = _absolute_tree(value)
    return text if changed == value else json.dumps(changed, ensure_ascii=False)


def _absolute_tree(value: object) -> object:
    if isinstance(value, dict):
        return {key: _absolute_tree(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_absolute_tree(part) for part in value]
    return _absolute(value) if isinstance(value, str) and not value.startswith(("{", "[")) else value


def _looks_like_a_path(text: str, *, is_path: bool = False) -> bool:
    """Return True for what is there. A plain word may be a value such as `auto`, unless only paths are taken."""
    if not text or text.startswith(("/", "~", "-")) or "://" in text:
        return False
    try:
        path = Path(text)
        return (is_path or "/" in text or (bool(path.suffix) and path.is_file())) and path.exists()
    except (OSError, ValueError):
        return False
