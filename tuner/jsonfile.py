"""Frozen dataclasses as JSON files: strict both ways, written atomically, UTF-8."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import types
import typing
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, cast

T = TypeVar("T")


class TornFileError(ValueError):
    """The file is not what we wrote: cut short, edited by hand, or of a newer schema. Names file and key."""


def write_atomically(path: Path, data: bytes) -> None:
    """A reader sees the old file or the new one, also after a power cut; mode follows the user's umask."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def dump(path: Path, value: object) -> None:
    write_atomically(path, dumps(value).encode())


def dumps(value: object) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, indent=1, allow_nan=False) + "\n"


def load(path: Path, kind: type[T], upgrade: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> T:
    """Read a file. `upgrade` turns an object of an older schema into today's. Raises TornFileError."""
    try:
        text = path.read_text(encoding="utf-8")
        if upgrade is None or not isinstance(raw := json.loads(text), dict):
            return loads(text, kind)
        return loads(json.dumps(upgrade(raw)), kind)
    except (ValueError, UnicodeDecodeError) as error:
        raise TornFileError(f"{path}: {error}") from error


def loads(text: str, kind: type[T]) -> T:
    return cast(T, _typed(json.loads(text), kind, kind.__name__))


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def _typed(raw: object, kind: object, where: str) -> object:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _one_of(raw, arguments, where)
    if origin is tuple:
        return _tuple(raw, arguments, where)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(raw, kind, where)
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(raw)
    if kind is float and type(raw) is int:
        return float(raw)
    if not isinstance(kind, type) or type(raw) is not kind:
        raise ValueError(f"{where}: {raw!r} is not {getattr(kind, '__name__', kind)}")
    return raw


def _one_of(raw: object, kinds: tuple[Any, ...], where: str) -> object:
    if raw is None and type(None) in kinds:
        return None
    exact = [k for k in kinds if type(raw) is k]
    errors = []
    for kind in exact or [k for k in kinds if k is not type(None)]:
        try:
            return _typed(raw, kind, where)
        except ValueError as error:
            errors.append(str(error))
    raise ValueError(errors[0] if errors else f"{where}: {raw!r}")


def _tuple(raw: object, kinds: tuple[object, ...], where: str) -> object:
    if not isinstance(raw, list):
        raise ValueError(f"{where}: {raw!r} is not a list")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(raw)
    if len(kinds) != len(raw):
        raise ValueError(f"{where}: {len(raw)} values where {len(kinds)} belong")
    return tuple(_typed(r, k, f"{where}[{i}]") for i, (r, k) in enumerate(zip(raw, kinds, strict=True)))


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _dataclass(raw: object, kind: type, where: str) -> object:
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: {raw!r} is not an object")
    hints = _hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    unknown = sorted(set(raw) - set(fields))
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}")
    values = {name: _typed(raw[name], hints[name], f"{where}.{name}") for name in fields if name in raw}
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from error
