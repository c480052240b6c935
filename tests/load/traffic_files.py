"""Builders of traffic files in the forms that tools and data sets write. All texts are made up."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tuner.load.prompts import SEARCH_TRACE, FileCounter, Prompts, Request
from tuner.load.reading import TrafficReading
from tuner.load.stream import Target, encode
from tuner.load.workload import workload

Object = dict[str, object]

QUESTION = "Where does the river meet the sea?"
ANSWER = "At the old harbour, behind the mill."
USER: Object = {"role": "user", "content": QUESTION}
REPLY: Object = {"role": "assistant", "content": ANSWER}
TOOL: Object = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object", "properties": {}}}}
CALL: Object = {"id": "c1", "type": "function", "function": {"name": "tide", "arguments": "{}"}}


def conversation(asker: str = "human", teller: str = "gpt", count: int = 2) -> list[Object]:
    """ShareGPT's turns."""
    turns = [(asker, QUESTION), (teller, ANSWER)] * count
    return [{"from": who, "value": text} for who, text in turns[:count]]


def batch_line(**body: object) -> Object:
    """A line of an OpenAI Batch file."""
    return {"custom_id": "r-1", "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "m", "messages": [USER], **body}}  # fmt: skip


def lines(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def reading(text: str) -> TrafficReading:
    found = workload(text).reading
    assert found is not None
    return found


def json_lines(rows: Sequence[object]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def crlf_lines(rows: Sequence[object]) -> bytes:
    return json_lines(rows).replace(b"\n", b"\r\n")


def json_array(rows: Sequence[object]) -> bytes:
    return json.dumps(rows).encode()


def pretty_array(rows: Sequence[object]) -> bytes:
    return json.dumps(rows, indent=2, ensure_ascii=False).encode()


def array_of_lines(rows: Sequence[object]) -> bytes:
    return b"[\n" + b",\n".join(json.dumps(row).encode() for row in rows) + b"\n]\n"


def object_around(rows: Sequence[object]) -> bytes:
    return json.dumps({"object": "list", "data": rows}, indent=1).encode()


def pretty_objects(rows: Sequence[object]) -> bytes:
    return "\n".join(json.dumps(row, indent=2) for row in rows).encode()


def with_mark(rows: Sequence[object]) -> bytes:
    return json_lines(rows).decode().encode("utf-8-sig")


def utf16(rows: Sequence[object]) -> bytes:
    return json_lines(rows).decode().encode("utf-16")


def gzipped(rows: Sequence[object]) -> bytes:
    return gzip.compress(json_lines(rows))


def gzipped_array(rows: Sequence[object]) -> bytes:
    return gzip.compress(pretty_array(rows))


def bzipped(rows: Sequence[object]) -> bytes:
    return bz2.compress(json_lines(rows))


def xzipped(rows: Sequence[object]) -> bytes:
    return lzma.compress(json_lines(rows))


def parquet(rows: Sequence[object]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([row for row in rows if isinstance(row, dict)]), sink)
    return bytes(sink.getvalue().to_pybytes())


def zstandard(rows: Sequence[object]) -> bytes:
    half = len(rows) // 2
    frames = [pa.Codec("zstd").compress(json_lines(part), asbytes=True) for part in (rows[:half], rows[half:])]
    return b"".join(frames)


def behind_each_other(rows: Sequence[object]) -> bytes:
    return b" ".join(json.dumps(row).encode() for row in rows)


def ended_by_carriage_returns(rows: Sequence[object]) -> bytes:
    return json_lines(rows).replace(b"\n", b"\r")


def lines_with_commas(rows: Sequence[object]) -> bytes:
    return json_lines(rows).replace(b"}\n", b"},\n")


def utf16_without_mark(rows: Sequence[object]) -> bytes:
    return json_lines(rows).decode().encode("utf-16-le")


def splits(rows: Sequence[object]) -> bytes:
    return json.dumps({"version": 2, "train": rows[:20], "test": rows[20:]}).encode()


def object_in_object(rows: Sequence[object]) -> bytes:
    return json.dumps({"log": {"creator": {"name": "x"}, "entries": rows}}).encode()


def table(rows: Sequence[object], **style: str) -> bytes:
    objects = [row for row in rows if isinstance(row, dict)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(objects[0]), **style)  # type: ignore[arg-type]
    writer.writeheader()
    writer.writerows(objects)
    return text.getvalue().encode()


def semicolons(rows: Sequence[object]) -> bytes:
    return b"\xef\xbb\xbf" + table(rows, delimiter=";", lineterminator="\n")


def tabs(rows: Sequence[object]) -> bytes:
    return gzip.compress(table(rows, delimiter="\t"))


def table_of_decimals_and_bytes(rows: Sequence[object]) -> bytes:
    objects = [row for row in rows if isinstance(row, dict)]
    lengths = pa.array([row["output_length"] for row in objects], pa.decimal128(38, 0))
    prompts = pa.array([row["prompt"].encode() for row in objects], pa.binary())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"prompt": prompts, "output_length": lengths}), sink)
    return bytes(sink.getvalue().to_pybytes())


CONTAINERS: tuple[Callable[[Sequence[object]], bytes], ...] = (
    json_lines, crlf_lines, json_array, pretty_array, array_of_lines, object_around, pretty_objects, with_mark, utf16,
    gzipped, gzipped_array, bzipped, xzipped, behind_each_other, ended_by_carriage_returns, lines_with_commas,
    utf16_without_mark,
)  # fmt: skip
"""Forms of which a part can be read."""

WHOLE_CONTAINERS: tuple[Callable[[Sequence[object]], bytes], ...] = (
    parquet, zstandard, splits, object_in_object, table, semicolons, tabs, table_of_decimals_and_bytes,
)  # fmt: skip


def sent(text: str, model: str, count: int = 1) -> list[Request]:
    return Prompts.for_model(workload(text), model, 0, None).requests(SEARCH_TRACE, count)


def body(request: Request) -> dict[str, object]:
    """The JSON that a server gets."""
    found = json.loads(encode(Target("http://127.0.0.1:1", "m"), request).partition(b"\r\n\r\n")[2])
    assert isinstance(found, dict)
    return found


def tokens(model: str, text: str) -> int:
    return FileCounter(Path(model) / "tokenizer.json").count([text])[0]
