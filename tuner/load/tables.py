"""Tables of recorded traffic → rows: CSV and parquet."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path

from tuner.errors import UsageError
from tuner.load.reading import FileRow, WhyLeftOut
from tuner.load.spellings import CONVERSATION_KEYS, PROMPT_KEYS, snake

_HEADER = re.compile(r"[\"'\w #./()@-]*(?:[,;\t][\"'\w #./()@-]+)+")
_MOST_CELL = 1 << 26
"""Characters of a cell. Python's own limit is shorter than a long prompt."""


def is_csv(first: str, second: str) -> bool:
    """Return True if a file whose first lines are these is a table with a header."""
    if second.startswith(("{", "[")):
        return False
    return bool(_HEADER.fullmatch(first)) or snake(first) in (*CONVERSATION_KEYS, *PROMPT_KEYS)


def csv_rows(path: Path, lines: Iterable[str]) -> Iterator[FileRow]:
    """Yield the rows of a table. A cell that is empty tells nothing. Raises UsageError for a quote without an end."""
    csv.field_size_limit(_MOST_CELL)
    numbered = iter(lines)
    first = next(line for line in numbered if line.strip())
    sign = max(",;\t", key=first.count)
    # A table of one column has no separator, whatever its texts hold.
    reader = csv.reader(numbered, delimiter=sign if sign in first else "\x1f", strict=True)
    (header,) = csv.reader([first.strip()], delimiter=sign if sign in first else "\x1f")
    skipped = 1
    while True:
        where = f"line {skipped + reader.line_num + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):
                raise UsageError(
                    f"{path}, {where}: a quote begins here or in a later row and does not end",
                    hint="write the table again with a library of CSV, which doubles the quotes inside of texts",
                ) from error
            yield FileRow(where, fault=WhyLeftOut.NO_ROW)
            continue
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()
        if cells and len(cells) != len(header):
            yield FileRow(where, fault=WhyLeftOut.NO_ROW)
        elif any(cells):
            yield FileRow(where, {name: cell for name, cell in zip(header, cells, strict=True) if cell})


def parquet_rows(path: Path) -> Iterator[FileRow]:
    import pyarrow as pa  # slow to import, and seldom needed here
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield FileRow(f"row {number}", _plain(row))
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise UsageError(f"{path} is a parquet file that cannot be read", hint="write it again") from error


def _plain(value: object) -> object:
    """Return a value as JSON has it: no decimals, no bytes, and no null where all rows share the names of one."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        if value and all(isinstance(pair, tuple) for pair in value):  # a map
            return {key: _plain(inner) for key, inner in value}
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value
