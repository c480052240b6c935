"""Files of recorded traffic → rows: JSON, JSON lines, CSV and parquet, compressed or not. Content decides."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import cast

from tuner.errors import UsageError
from tuner.load.reading import FileRow, WhyLeftOut
from tuner.load.spellings import BODY_KEYS, CONVERSATION_KEYS, PROMPT_KEYS, snake
from tuner.load.tables import csv_rows, is_csv, parquet_rows
from tuner.load.turns import is_conversation

FORMS = "JSON lines, a JSON array, CSV with a header or parquet; gzip, bzip2, xz and zstd are unpacked"
_CHUNK = 1 << 20
_LONGEST_ROW = 1 << 26
"""Characters after which a row of a JSON array that does not end counts as broken."""

_MOST_TRIES = 10_000
"""Places that are tried as the next row behind a broken one."""


def _zstd(path: Path, _mode: str) -> object:
    import pyarrow as pa  # slow to import, and seldom needed here

    return pa.input_stream(path, compression="zstd")


_OPENERS: dict[bytes, Callable[..., object]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x28\xb5\x2f\xfd": _zstd,
}
_UNREAD = {
    b"PK\x03\x04": "a zip archive or a workbook of Excel",
    b"SQLite": "an SQLite database",
    b"ARROW1": "an Arrow file",
    b"Obj\x01": "an Avro file",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself",
}
_TAR = slice(257, 262)
_MARKS = {  # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    b"{\0": "utf-16-le",
    b"[\0": "utf-16-le",
    b"\0{": "utf-16-be",
    b"\0[": "utf-16-be",
}
_LISTS = ("data", "requests", "rows", "items", "records", "examples", "observations")
_SIGN = re.compile(r"[^ \t\r\n]")


def rows(path: Path) -> Iterator[FileRow]:
    """Read the rows of a file, a piece at a time. Raises UsageError for a file of another kind."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
        _check_kind(path, head)
        if head.startswith(b"PAR1"):
            yield from parquet_rows(path)
            return
        opener: Callable[..., object] = next(
            (opener for magic, opener in _OPENERS.items() if head.startswith(magic)), open
        )
        with cast(io.BufferedReader, opener(path, "rb")) as unpacked:
            yield from _wrapped_list(_text_rows(path, _Text(path, unpacked)))
    except OSError as error:
        raise UsageError(f"cannot read the workload {path}: {error.strerror or error}", hint=FORMS) from error


def _check_kind(path: Path, head: bytes, *, packed: bool = False) -> None:
    """Raise UsageError for a kind of file that is known and not read."""
    unread = {**_UNREAD, **(dict.fromkeys((b"PAR1", *_OPENERS), "packed inside of a packed file") if packed else {})}
    kind = "a tar archive" if head[_TAR] == b"ustar" else None
    kind = next((kind for magic, kind in unread.items() if head.startswith(magic)), kind)
    if kind is not None:
        raise UsageError(f"{path} is {kind}", hint=f"unpack or convert it first: {FORMS}")


class _Text:
    """Text of a file in pieces. `cut` is True once a packed file ended too soon."""

    def __init__(self, path: Path, file: io.BufferedReader) -> None:
        self._path = path
        self._file = file
        self.cut = False

    def pieces(self) -> Iterator[str]:
        data = self._read()
        _check_kind(self._path, data[:512], packed=True)
        encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), "utf-8")
        # A byte that is no text becomes half a surrogate pair, which costs its row alone.
        errors = "surrogateescape" if encoding.startswith("utf-8") else "replace"
        decoder = codecs.getincrementaldecoder(encoding)(errors)
        while data:
            yield decoder.decode(data)
            data = self._read()
        yield decoder.decode(b"", final=True)

    def _read(self) -> bytes:
        try:
            return self._file.read1(_CHUNK)  # what comes before an error is not lost
        except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError):
            self.cut = True
        except OSError as error:
            if error.errno is not None:
                raise
            self.cut = True  # zstd's or bzip2's own, not the disk's
        return b""


def _text_rows(path: Path, text: _Text) -> Iterator[FileRow]:
    pieces = text.pieces()
    head = ""
    while len(head) < _CHUNK and (piece := next(pieces, None)) is not None:
        head += piece
    first, second, is_whole = _first_lines(head)
    whole = chain([head], pieces)
    if is_csv(first, second):
        yield from csv_rows(path, (f"{line}\n" for _, line in _lines(whole)))
        return
    value, fault = _value(first) if is_whole or not first.startswith("[") else (None, WhyLeftOut.NOT_JSON)
    bad_first_line = len(first) > 1 and isinstance(_value(second)[0], dict)
    broken_array = fault is not None and not bad_first_line
    starts_array = first.startswith("[") and (broken_array or (isinstance(value, list) and not second))
    starts_pretty = bool(first.startswith("{") and is_whole and fault and (not second or _value(second)[1]))
    if starts_array or starts_pretty:
        yield from _stream_rows(path, whole, text, in_array=starts_array)
    else:
        yield from _line_rows(whole, text)


def _first_lines(head: str) -> tuple[str, str, bool]:
    """Return the first two lines that are not empty, and whether the first one ends in `head`."""
    lines = [line.strip() for line in head[:_CHUNK].split("\n")]
    filled = [index for index, line in enumerate(lines) if line][:2]
    first, second = ([lines[index] for index in filled] + ["", ""])[:2]
    return first, second, len(head) < _CHUNK or bool(filled and filled[0] < len(lines) - 1)


def _integer(digits: str) -> int | float:
    """Read an integer. Python refuses thousands of digits, which is no reason to lose the row's place."""
    return int(digits) if len(digits) < 400 else float("inf")


_DECODER = json.JSONDecoder(parse_int=_integer)


def _value(text: str) -> tuple[object, WhyLeftOut | None]:
    try:
        return _DECODER.decode(text), None
    except (ValueError, RecursionError):
        return None, WhyLeftOut.NOT_JSON


def _line_rows(pieces: Iterable[str], text: _Text) -> Iterator[FileRow]:
    last: FileRow | None = None
    begun = False
    for number, line in _lines(pieces):
        if stripped := line.strip():
            if last is not None:
                yield last
            value, fault = _value(stripped)
            last, begun = FileRow(f"line {number}", value, fault), stripped.startswith(("{", "["))
    if last is not None:
        # A last line that is no JSON was most likely cut.
        yield FileRow(last.where, fault=WhyLeftOut.CUT) if last.fault is not None and (begun or text.cut) else last


def _lines(pieces: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Split at LF alone: JSON may hold U+2028 and its like."""
    number, begun = 1, list[str]()
    for piece in pieces:
        *ended, rest = piece.split("\n")
        for line in ended:
            yield number, "".join([*begun, line])
            number, begun = number + 1, []
        begun.append(rest)
    yield number, "".join(begun)


def _stream_rows(path: Path, pieces: Iterable[str], text: _Text, *, in_array: bool) -> Iterator[FileRow]:
    """Yield the values of an array, or those that stand one behind the other."""
    buffer = _Buffer(iter(pieces))
    if in_array:
        buffer.skip("[")
    number, keys = 1, frozenset[str]()
    while (sign := buffer.next_sign()) not in ("", "]"):
        if sign == ",":
            buffer.skip(",")
            continue
        where = f"entry {number}"
        number += 1
        value, fault = buffer.value()
        if fault is None:
            keys = keys or frozenset(value if isinstance(value, dict) else ())
            yield FileRow(where, value)
            continue
        line = buffer.line
        if fault is WhyLeftOut.CUT or not buffer.find_like(keys):
            if fault is WhyLeftOut.NOT_JSON and not keys:
                raise UsageError(f"{path}, line {line}: this is no JSON, and the rest cannot be read", hint=FORMS)
            yield FileRow(f"{where}, line {line}", fault=fault)
            return
        yield FileRow(f"{where}, line {line}", fault=fault)
    if sign == "" and (in_array or text.cut):
        yield FileRow(f"entry {number}, line {buffer.line}", fault=WhyLeftOut.CUT)


class _Buffer:
    """Text that is parsed value by value while it is read."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces = pieces
        self._text = ""
        self._at = 0
        self.line = 1

    def next_sign(self) -> str:
        """Move to the next character that is no space. Empty at the end."""
        while True:
            found = _SIGN.search(self._text, self._at)
            self._move(found.start() if found else len(self._text))
            if found:
                return found[0]
            if not self._read_on(_CHUNK):
                return ""

    def skip(self, sign: str) -> None:
        if self.next_sign() == sign:
            self._move(self._at + 1)

    def value(self) -> tuple[object, WhyLeftOut | None]:
        """Parse the value here and move behind it, or say why there is none."""
        wanted = _CHUNK
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except RecursionError:
                self._read_on(_LONGEST_ROW)
                return None, WhyLeftOut.NOT_JSON
            except ValueError as error:
                found = error
            else:
                # A number at the end of the buffer may go on.
                if end < len(self._text) or not self._read_on(wanted):
                    self._move(end)
                    return value, None
                continue
            if len(self._text) - self._at > _LONGEST_ROW:
                return None, WhyLeftOut.NOT_JSON
            if not self._read_on(wanted):
                return None, WhyLeftOut.CUT if self._is_cut(found) else WhyLeftOut.NOT_JSON
            wanted *= 2

    def find_like(self, keys: frozenset[str]) -> bool:
        """Move to the next object that shares most of `keys`. False if there is none."""
        if not keys:
            return False
        for match in zip(re.finditer(r"\{", self._text[self._at + 1 :]), range(_MOST_TRIES), strict=False):
            start = self._at + 1 + match[0].start()
            try:
                value, _ = _DECODER.raw_decode(self._text, start)
            except (ValueError, RecursionError):
                continue
            if isinstance(value, dict) and 2 * len(keys & value.keys()) >= len(keys):
                self._move(start)
                return True
        return False

    def _is_cut(self, error: ValueError) -> bool:
        at = error.pos if isinstance(error, json.JSONDecodeError) else 0
        return str(error).startswith("Unterminated") or at >= len(self._text.rstrip()) - 1

    def _move(self, at: int) -> None:
        self.line += self._text.count("\n", self._at, at)
        self._at = at

    def _read_on(self, wanted: int) -> bool:
        """Append about `wanted` characters. False at the end."""
        read = list[str]()
        while wanted > 0 and (piece := next(self._pieces, None)) is not None:
            read.append(piece)
            wanted -= len(piece)
        self._text, self._at = self._text[self._at :] + "".join(read), 0
        return any(read)


def _wrapped_list(found: Iterator[FileRow]) -> Iterator[FileRow]:
    """Yield the rows; of a file that is one object around lists of rows, those of the lists."""
    first = next(found, None)
    if first is None:
        return
    second = next(found, None)
    if second is None and isinstance(first.value, dict) and (inner := _inner_rows(first.value)):
        yield from (FileRow(f"entry {number}", row) for number, row in enumerate(inner, 1))
        return
    yield first
    if second is not None:
        yield second
        yield from found


def _inner_rows(value: dict[str, object], depth: int = 0) -> list[object]:
    """Return the rows inside of an object, under a usual name or, in an object that is no request, under any."""
    named = [value[key] for key in _LISTS if key in value]
    is_request = any(snake(key) in (*CONVERSATION_KEYS, *PROMPT_KEYS, *BODY_KEYS) for key in value)
    if not named and (is_request or any(map(is_conversation, value.values()))):
        return []
    found: list[object] = []
    for inner in named or value.values():
        if isinstance(inner, dict) and depth < 1:
            found += _inner_rows(inner, depth + 1)
        elif isinstance(inner, list) and all(isinstance(row, dict) for row in inner) and not is_conversation(inner):
            found += inner
    return found
