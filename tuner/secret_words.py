"""Secrets among the words of a command line → the environment. No process list and no file shows them then."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tuner.errors import UsageError
from tuner.flagwords import GivenFlag, given_flags
from tuner.launch import is_container
from tuner.secrecy import holds_secret, is_secret
from tuner.space.space import Space
from tuner.vllm import knobs, variables
from tuner.vllm.flags import split_command

SECRET_FLAGS: Mapping[str, str] = {knobs.API_KEY: variables.API_KEY, knobs.HF_TOKEN: "HF_TOKEN"}
"""Flags of vLLM with a secret, and the variables that it reads in their place."""

_ASSIGNMENT = re.compile(r"(?P<option>-e|--env=)?(?P<name>[A-Za-z_]\w*)=(?P<value>.+)", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Parted:
    """Words without secrets, and the secrets by variable. `keys` counts API keys, of which a variable takes one."""

    words: tuple[str, ...]
    secrets: Mapping[str, str]
    keys: int = 0


def part_flags(words: Sequence[str]) -> Parted:
    """Take secrets out of vLLM's flags. Raises UsageError for one that no variable carries."""
    kept: list[str] = []
    secrets: dict[str, str] = {}
    keys = 0
    for flag in given_flags(words, short=knobs.SHORT_OPTIONS):
        variable = SECRET_FLAGS.get(flag.name)
        if variable is None:
            _refuse_if_secret(flag)
            kept += flag.words
            continue
        if not flag.texts or not flag.texts[0]:
            raise UsageError(f"--{flag.name} needs a value", hint=f"or set {variable} in the environment")
        secrets[variable] = flag.texts[0]
        keys = max(keys, len(flag.texts) if flag.name == knobs.API_KEY else 0)
    return Parted(tuple(kept), secrets, keys)


def part_command(text: str) -> Parted:
    """Split `--vllm "…"` into words and take secrets out: VAR=value of env and of a container's -e, and vLLM's flags.
    Raises UsageError for a secret that cannot be taken out, and what `split_command` raises."""
    kept: list[str] = []
    secrets: dict[str, str] = {}
    words = split_command(text)
    for word in words:
        found = _ASSIGNMENT.fullmatch(word)
        if found is None or not is_secret(found["name"]):
            kept.append(word)
            continue
        name = found["name"]
        if is_container(words) and (found["option"] or kept[-1] in ("-e", "--env")):
            # Without a value it is taken from the environment.
            kept += ["-e", name] if found["option"] == "-e" else [f"{found['option'] or ''}{name}"]
        elif found["option"] or not _sets_variables(kept):
            raise UsageError(
                f"--vllm holds the value of {name}, which every process list would show",
                hint=f"export {name} before tuner, and leave it out of --vllm",
            )
        secrets[name] = found["value"]
    parted = part_flags(kept)
    return replace(parted, secrets={**secrets, **parted.secrets})


def part_space(space: Space) -> tuple[Space, dict[str, str]]:
    """Take secrets out of a space's variables. Raises UsageError for one among its flags."""
    for flag, value in (*space.baseline, *space.fixed, *space.always):
        if is_secret(flag) or (isinstance(value, str) and holds_secret(value)):
            raise UsageError(
                f"space {space.name!r} holds a secret: {flag}",
                hint=f"export {SECRET_FLAGS.get(flag, 'its variable')} before tuner",
            )
    secrets = {name: value for name, value in space.env if is_secret(name) or holds_secret(value)}
    return replace(space, env=tuple(pair for pair in space.env if pair[0] not in secrets)), secrets


def _sets_variables(before: Sequence[str]) -> bool:
    """Return True if the next word is a variable of env(1). Raises UsageError if env starts from nothing."""
    at = max((i for i, word in enumerate(before) if word.rsplit("/", 1)[-1] == "env"), default=None)
    if at is None:
        return False
    options = before[at + 1 :]
    if any(word in ("-i", "-", "--ignore-environment") for word in options):
        raise UsageError(
            "env -i of --vllm would hide the secret that stands beside it",
            hint="leave -i out: tuner hands its own environment on, and records no secret of it",
        )
    return all(word.startswith("-") or "=" in word for word in options)


def _refuse_if_secret(flag: GivenFlag) -> None:
    shown = (is_secret(flag.name) and flag.texts) or any(map(holds_secret, (*flag.words, " ".join(flag.words))))
    if shown:
        name = f"--{flag.name}" if flag.name else "--vllm"
        raise UsageError(
            f"{name} holds a secret, which every process list and record would show",
            hint="leave it out, or hand it over in a variable of the environment",
        )
