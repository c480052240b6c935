"""Frozen dataclasses as JSON files, strict and atomic."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from cattrs import Converter, transform_error
from cattrs.cols import homogenous_tuple_structure_factory, is_mapping
from cattrs.errors import BaseValidationError, ForbiddenExtraKeysError
from cattrs.strategies import configure_union_passthrough

T = TypeVar("T")
Hook = Callable[[Any, Any], Any]


class TornFileError(ValueError):
    """File that is cut short, edited, or of a newer schema. The message names the file and the key."""


class NewerFileError(TornFileError):
    """File of a schema that only a newer tuner knows."""


class DiskWarning(UserWarning):
    """Something that this disk cannot do, and without which tuner goes on."""


FULL_OR_BROKEN = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
"""Errors of a disk that lost what was written. Other errors of fsync and locks say that a disk does not know them."""


def write_atomically(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Replace the file in one step, also across a power cut. Its `mode` is narrowed by the user's umask."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(data)
            file.flush()
            _sync(file.fileno())
        temporary.replace(path)
    finally:
        with suppress(OSError):  # a folder that is gone has nothing to remove; the error that counts is another
            temporary.unlink(missing_ok=True)


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in FULL_OR_BROKEN:
            raise
        warnings.warn(f"this disk has no fsync ({error.strerror}): a power cut may cost a trial", DiskWarning, 2)


def dump(path: Path, value: object) -> None:
    write_atomically(path, dumps(value).encode())


def dumps(value: object) -> str:
    """Write JSON. Lone surrogates, as in names of files that are not UTF-8, are escaped and come back."""
    text = json.dumps(_CONVERTER.unstructure(value), ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    return re.sub(r"[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):x}", text)


def load(path: Path, kind: type[T], upgrade: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> T:
    """Read a file. `upgrade` turns an object of an older schema into today's. Raises TornFileError."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        _refuse_newer(path, raw, kind)
        return decode(upgrade(raw) if upgrade is not None and isinstance(raw, dict) else raw, kind)
    except TornFileError:
        raise
    except (ValueError, RecursionError) as error:
        raise TornFileError(f"{path}: {error}") from error
    except (AttributeError, KeyError, TypeError) as error:  # the upgrade met another shape than was ever written
        raise TornFileError(f"{path}: {error!r}") from error


def _refuse_newer(path: Path, raw: object, kind: type) -> None:
    """Raise NewerFileError for a schema above the one that this tuner writes."""
    newest = next((field.default for field in dataclasses.fields(kind) if field.name == "schema"), None)
    found = raw.get("schema") if isinstance(raw, dict) else None
    if isinstance(newest, int) and isinstance(found, int) and found > newest:
        raise NewerFileError(f"{path}: made by a newer tuner (schema {found}, this one knows {newest})")


def loads(text: str, kind: type[T]) -> T:
    """Parse text. Raises ValueError if it is not JSON or not a `kind`."""
    return decode(json.loads(text), kind)


def decode(raw: object, kind: type[T]) -> T:
    """Build a `kind` from parsed JSON. Raises ValueError with the path of the first fault."""
    try:
        return _CONVERTER.structure(raw, kind)
    except (BaseValidationError, ValueError) as error:
        fault, _, where = transform_error(error, kind.__name__, _fault)[0].rpartition(" @ ")
        raise ValueError(f"{where}: {fault}") from error


def _fault(error: BaseException, _: type | None) -> str:
    if isinstance(error, KeyError):
        return "missing"
    if isinstance(error, ForbiddenExtraKeysError):
        return f"unknown key {min(error.extra_fields)!r}"
    return str(error)


def _only(json_types: tuple[type, ...], build: Hook) -> Hook:
    """Refuse JSON of other types, which cattrs would convert."""

    def strict(raw: Any, kind: Any) -> Any:
        if type(raw) not in json_types:
            raise ValueError(f"{raw!r} is not {json_types[0].__name__}")
        return build(raw, kind)

    return strict


def _tuple(kind: Any) -> Hook:
    if get_args(kind)[1:] == (...,):
        return _only((list,), homogenous_tuple_structure_factory(kind, _CONVERTER))
    return _only((list,), _CONVERTER.gen_structure_hetero_tuple(kind))


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _is_tagged(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType) and sum(map(dataclasses.is_dataclass, get_args(kind))) > 1


def _tag(kind: type) -> str:
    """Spell a class name in kebab-case: SearchCapacity → search-capacity."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", kind.__name__).lower()


def _read_tagged(union: Any) -> Hook:
    members = {_tag(member): member for member in get_args(union)}

    def structure(raw: Any, _: Any) -> Any:
        if type(raw) is not dict or raw.get("kind") not in members:
            raise ValueError(f"{raw!r} has no kind of {', '.join(members)}")
        return _CONVERTER.structure({k: v for k, v in raw.items() if k != "kind"}, members[raw["kind"]])

    return structure


def _write_tagged(union: Any) -> Callable[[Any], Any]:
    def unstructure(value: Any) -> Any:
        plain = _CONVERTER.unstructure(value)
        if value is None:
            return None
        assert "kind" not in plain, f"{type(value).__name__}.kind hides the tag of {union}"
        return {"kind": _tag(type(value)), **plain}

    return unstructure


def _make_strict(converter: Converter) -> None:
    hook = converter.register_structure_hook_factory  # the last that fits a type is taken
    hook(dataclasses.is_dataclass, lambda kind: _only((dict,), converter.gen_structure_attrs_fromdict(kind)))
    hook(is_mapping, lambda kind: _only((dict,), converter.gen_structure_mapping(kind)))
    hook(_is_tuple, _tuple)
    hook(_is_tagged, _read_tagged)
    for plain, json_types in ((bool, (bool,)), (int, (int,)), (str, (str,)), (float, (float, int))):
        converter.register_structure_hook(plain, _only(json_types, lambda raw, kind: kind(raw)))  # enums of str too
    configure_union_passthrough(bool | int | float | str | None, converter)
    converter.register_unstructure_hook_factory(_is_tagged, _write_tagged)


_CONVERTER = Converter(forbid_extra_keys=True)
_make_strict(_CONVERTER)
