"""search_spaces/*.yaml → Space; an error names file, line, key and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import yaml

from tuner.candidate import Value
from tuner.errors import UsageError
from tuner.space.parameter import Kind, Parameter
from tuner.space.space import WORKLOAD, Space

_HERE = Path(__file__).resolve().parents[1]
FOLDERS = (_HERE / "search_spaces", _HERE.parent / "search_spaces")
"""Folders of the presets: inside the package in an installed wheel, beside it in a checkout."""

KEYS = ("description", "parameters", "baseline", "fixed", "always", "env")
_NUMBER_KINDS = (Kind.LOG_INT, Kind.INT, Kind.FLOAT)


def presets() -> dict[str, Path]:
    return {path.stem: path for folder in FOLDERS for path in sorted(folder.glob("*.yaml"))}


def read_space(name_or_file: str) -> Space:
    known = presets()
    path = known.get(name_or_file) or Path(name_or_file)
    if not path.is_file():
        close = difflib.get_close_matches(name_or_file, known, 1)
        raise UsageError(
            f"no space {name_or_file!r}",
            hint=f"did you mean {close[0]}?" if close else f"a file, or one of: {', '.join(sorted(known))}",
        )
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UsageError(f"{at}: not YAML", hint=str(error).splitlines()[0]) from error
    space = _Reader(path).space(root)
    return space if name_or_file in known else replace(space, file=str(path.absolute()))


LARGEST = 2**53
"""Largest whole number that a float, and with it the search, can hold."""


class _Reader:
    """Reader of one file. It walks the nodes rather than the loaded values, because only nodes know their line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def space(self, root: yaml.Node | None) -> Space:
        if root is None:
            raise UsageError(f"{self._path}: empty", hint="a space has at least the key 'parameters'")
        sections = self._mapping(root)
        for key in sections:
            if key not in KEYS:
                self._fail(sections[key], f"unknown key {key!r}", f"allowed: {', '.join(KEYS)}")
        if "parameters" not in sections:
            self._fail(root, "no key 'parameters'", "say which flags are searched, and over which range")
        return Space(
            name=self._path.stem,
            parameters=tuple(self._parameter(f, n) for f, n in self._mapping(sections["parameters"]).items()),
            baseline=self._values(sections.get("baseline")),
            fixed=self._values(sections.get("fixed")),
            always=self._values(sections.get("always")),
            env=tuple((name, str(value)) for name, value in self._values(sections.get("env"))),
        )

    def _parameter(self, flag: str, node: yaml.Node) -> Parameter:
        if flag.startswith("-"):
            self._fail(node, f"{flag!r} has dashes in front", f"write {flag.lstrip('-')}")
        if isinstance(node, yaml.ScalarNode) and node.value == Kind.FLAG:
            return Parameter(flag, Kind.FLAG)
        body = self._mapping(node)
        kinds = [key for key in body if key in list(Kind)]
        extra = [key for key in body if key not in list(Kind) and key != "multiple-of"]
        if extra or len(kinds) != 1:
            what = f"unknown key {extra[0]!r}" if extra else "exactly one kind is needed"
            self._fail(node, f"{flag}: {what}", f"allowed: {', '.join(Kind)}, and multiple-of beside an int")
        kind = Kind(kinds[0])
        if kind is Kind.CHOICE:
            return Parameter(flag, kind, choices=self._choices(flag, body[kind]))
        low, high = self._range(flag, kind, body[kind])
        return Parameter(flag, kind, low, high, self._multiple(flag, body))

    def _range(self, flag: str, kind: Kind, node: yaml.Node) -> tuple[float, float]:
        ends = self._scalars(node)
        if kind not in _NUMBER_KINDS or len(ends) != 2:
            self._fail(node, f"{flag}: a range is [low, high]", f"for example {flag}: {{{kind}: [1, 64]}}")
        low, high = (0 if end == WORKLOAD else end for end in ends)
        for end in (low, high):
            allowed = (int, float) if kind is Kind.FLOAT else (int,)
            if isinstance(end, bool) or not isinstance(end, allowed) or abs(end) > LARGEST:
                self._fail(node, f"{flag}: {end!r} is not a number for {kind}", "whole numbers, but for float")
        assert isinstance(low, (int, float)) and isinstance(high, (int, float))
        if low > high or (kind is Kind.LOG_INT and low < 1 and ends[0] != WORKLOAD):
            self._fail(node, f"{flag}: the range {low}…{high} is empty", "low ≤ high, and low ≥ 1 for log-int")
        return max(float(low), 1.0) if kind is Kind.LOG_INT else float(low), float(high)

    def _choices(self, flag: str, node: yaml.Node) -> tuple[Value, ...]:
        choices = self._scalars(node)
        if not choices:
            self._fail(node, f"{flag}: no choices", "list at least one value, in an order that means something")
        return choices

    def _multiple(self, flag: str, body: Mapping[str, yaml.Node]) -> int:
        if "multiple-of" not in body:
            return 1
        value = self._scalar(body["multiple-of"])
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self._fail(body["multiple-of"], f"{flag}: multiple-of {value!r}", "a whole number, at least 1")
        return int(value)

    def _values(self, node: yaml.Node | None) -> tuple[tuple[str, Value], ...]:
        if node is None:
            return ()
        return tuple((key, self._scalar(child)) for key, child in self._mapping(node).items())

    def _mapping(self, node: yaml.Node) -> dict[str, yaml.Node]:
        if not isinstance(node, yaml.MappingNode):
            self._fail(node, "a mapping belongs here", "key: value, one a line")
        found: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if key.value in found:
                self._fail(key, f"{key.value!r} stands twice", "keep one of them")
            found[str(key.value)] = value
        return found

    def _scalars(self, node: yaml.Node) -> tuple[Value, ...]:
        if not isinstance(node, yaml.SequenceNode):
            self._fail(node, "a list belongs here", "[first, second, …]")
        return tuple(self._scalar(child) for child in node.value)

    def _scalar(self, node: yaml.Node) -> Value:
        value = None
        if isinstance(node, yaml.ScalarNode):
            try:
                value = yaml.SafeLoader("").construct_object(node)
            except (ValueError, yaml.YAMLError):
                value = None
        if isinstance(value, int) and abs(value) > LARGEST:
            value = None
        if not isinstance(value, (bool, int, float, str)) or value != value:  # the second: YAML's .nan
            self._fail(node, "a plain value belongs here", "a number, true, false or text")
        assert isinstance(value, (bool, int, float, str))
        return value

    def _fail(self, node: yaml.Node, what: str, hint: str) -> NoReturn:
        raise UsageError(f"{self._path}:{node.start_mark.line + 1}: {what}", hint=hint)
