"""Words of a command line ↔ flags with values. The one reader and the one writer of `--flag value`.

The rules are those of argparse as vLLM uses it (vllm/utils/argparse_utils.py): `_` in a name is `-`, `--flag=value`
and `--flag value` are the same, `--no-flag` switches off, and the last of several equal flags wins.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

Value = bool | int | float | str
"""Type of a flag's value. An absent flag is left to the server's own default."""

_NAME = re.compile(r"--[A-Za-z][\w.-]*\+?|-[A-Za-z][\w-]*")
"""Name of a flag. `-1`, `-.5`, `-` and text with a space are values, as argparse has it."""

_DECIMAL, _BINARY = "kmgt", "KMGT"


@dataclass(frozen=True, slots=True)
class GivenFlag:
    """A flag as it was written once.

    `name` has no leading dashes, `-` for `_`, and no `no-`. It is empty for the words before the first flag.
    `words` are the flag and its values exactly as they were written. `is_on` is False for `--no-flag`.
    """

    name: str
    texts: tuple[str, ...]
    words: tuple[str, ...]
    is_on: bool = True

    @property
    def base(self) -> str:
        """The name up to its first dot: `--a-config.key 1` sets a part of `--a-config`."""
        return self.name.partition(".")[0]

    @property
    def text(self) -> str | None:
        """All values as one text. None if the flag stands alone."""
        return " ".join(self.texts) if self.texts else None

    @property
    def value(self) -> Value:
        """Return a bool, a number or else the text."""
        if self.text is None or not self.is_on:
            return self.is_on
        found = number(self.text)
        return self.text if found is None else found


def given_flags(words: Sequence[str], *, short: Mapping[str, str]) -> list[GivenFlag]:
    """Split words into flags with their values, in order. Words before the first flag come first, without a name.
    `short` maps short options (without the dash) to the long names that they stand for."""
    return [_given(group, short) for group in _groups(words)]


def flag_values(words: Sequence[str], *, short: Mapping[str, str]) -> dict[str, Value]:
    """Return the values that take effect, by flag. Of a repeated flag the last value counts."""
    return {flag.name: flag.value for flag in given_flags(words, short=short) if flag.name}


def flag_names(words: Sequence[str], *, short: Mapping[str, str]) -> frozenset[str]:
    """Return the names of all flags in the words."""
    return frozenset(flag.base for flag in given_flags(words, short=short) if flag.name)


def words_for(flag: str, value: Value) -> tuple[str, ...]:
    """Write one flag. Inverse of `flag_values` for every value."""
    if isinstance(value, bool):
        return (f"--{flag}" if value else f"--no-{flag}",)
    text = value_text(value)
    # argparse takes a word that begins with a dash for an option, unless it is a plain negative number.
    is_word = not text.startswith("-") or re.fullmatch(r"-\d+|-\d*\.\d+", text, re.ASCII)
    return (f"--{flag}", text) if is_word else (f"--{flag}={text}",)


def value_text(value: Value) -> str:
    """Write a value for a command line, switches as on and off."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


def as_number(value: Value | None) -> int | float | None:
    """Return a value that is a number. None if it is text, on or off, or None."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def number(text: str) -> int | float | None:
    """Read a number as vLLM does. 16k is 16,000 and 16K is 16,384. None if the text is not a number."""
    if match := re.fullmatch(rf"([0-9]+(?:\.[0-9]+)?)([{_DECIMAL}])", text):
        return int(float(match[1]) * 10 ** (3 * (_DECIMAL.index(match[2]) + 1)))
    if match := re.fullmatch(rf"([0-9]+)([{_BINARY}])", text):
        return int(match[1]) << (10 * (_BINARY.index(match[2]) + 1))
    if re.fullmatch(r"[+-]?[0-9]{1,300}", text):
        return int(text)
    if re.fullmatch(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", text):
        found = float(text)
        return found if math.isfinite(found) else None
    return None


def _groups(words: Sequence[str]) -> Iterator[tuple[str, ...]]:
    group: list[str] = []
    for word in words:
        if group and _is_flag(word):
            yield tuple(group)
            group = []
        group.append(word)
    if group:
        yield tuple(group)


def _is_flag(word: str) -> bool:
    return _NAME.fullmatch(word.partition("=")[0]) is not None


def _given(words: tuple[str, ...], short: Mapping[str, str]) -> GivenFlag:
    first, *rest = words
    if not _is_flag(first):
        return GivenFlag("", words, words)
    written, equals, value = first.partition("=")
    texts = (value, *rest) if equals else tuple(rest)
    if written.startswith("--"):
        base, dot, keys = written[2:].partition(".")
        base = base.replace("_", "-")
        return GivenFlag(base.removeprefix("no-") + dot + keys, texts, words, is_on=not base.startswith("no-"))
    name = written[1:]
    if name not in short and name[0] in short:  # a value may be glued to a letter: -O3
        return GivenFlag(short[name[0]], (first[2:].removeprefix("="), *rest), words)
    return GivenFlag(short.get(name, name), texts, words)
