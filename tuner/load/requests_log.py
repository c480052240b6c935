"""Writer of requests.parquet, one row per request."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tuner.load.drive import Samples
from tuner.load.stream import RequestSample

SCHEMA = pa.schema(
    [
        ("level", pa.float64()),
        ("kind", pa.string()),
        ("index", pa.int32()),
        ("due_ns", pa.int64()),
        ("sent_ns", pa.int64()),
        ("first_ns", pa.int64()),
        ("last_ns", pa.int64()),
        ("end_ns", pa.int64()),
        ("chunks", pa.int32()),
        ("max_gap_ns", pa.int64()),
        ("asked_tokens", pa.int32()),
        ("prompt_tokens", pa.int32()),
        ("output_tokens", pa.int32()),
        ("cached_tokens", pa.int32()),
        ("status", pa.int16()),
        ("failure", pa.string()),
    ]
)
"""Columns of requests.parquet, described in docs/study-files.md. `level` is concurrent requests if `kind` is closed,
requests/s if it is open. Times are CLOCK_MONOTONIC of one boot. TTFT is first_ns - due_ns and not stored."""


class RequestLog:
    """Rows of a trial. The whole file is written after every level, so a reader never sees half a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tables: list[pa.Table] = []

    def add(self, level: float, samples: Samples, kind: str = "closed") -> None:
        self._tables.append(_table(level, kind, samples.requests))
        write_requests(self._path, self._tables)


def write_requests(path: Path, tables: Sequence[pa.Table]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(pa.concat_tables(tables), temporary, compression="zstd")
    temporary.replace(path)


def _table(level: float, kind: str, requests: Sequence[RequestSample]) -> pa.Table:
    columns = [
        [float(level)] * len(requests),
        [kind] * len(requests),
        *([getattr(r, name) for r in requests] for name in SCHEMA.names[2:8]),
        [len(r.token_ns) for r in requests],
        [_max_gap(r) for r in requests],
        *([getattr(r, name) for r in requests] for name in SCHEMA.names[10:15]),
        [r.failure_kind for r in requests],
    ]
    return pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)


def _max_gap(request: RequestSample) -> int | None:
    return max((later - earlier for earlier, later in pairwise(request.token_ns)), default=None)
