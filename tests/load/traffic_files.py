"""Builders of traffic files in the forms that tools and data sets write. All texts are made up."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Sequence
from decimal import Decimal
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


def pretty(rows: Sequence[object]) -> bytes:
    return json.dumps(rows, indent=2, ensure_ascii=False).encode()


def table(rows: Sequence[object], **style: str) -> bytes:
    objects = [row for row in rows if isinstance(row, dict)]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(objects[0]), **style)  # type: ignore[arg-type]
    writer.writeheader()
    writer.writerows(objects)
    return text.getvalue().encode()


def parquet(rows: Sequence[object]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(list(rows)), sink)
    return bytes(sink.getvalue().to_pybytes())


def of_bytes_and_decimals(row: object) -> Object:
    assert isinstance(row, dict)
    return {"prompt": row["prompt"].encode(), "output_length": Decimal(row["output_length"])}


def zstandard(rows: Sequence[object]) -> bytes:
    half = len(rows) // 2
    return b"".join(pa.Codec("zstd").compress(json_lines(part), asbytes=True) for part in (rows[:half], rows[half:]))


CONTAINERS: dict[str, Callable[[Sequence[object]], bytes]] = {
    "lines": json_lines,
    "lines with CRLF": lambda rows: json_lines(rows).replace(b"\n", b"\r\n"),
    "lines with CR": lambda rows: json_lines(rows).replace(b"\n", b"\r"),
    "lines with commas": lambda rows: json_lines(rows).replace(b"}\n", b"},\n"),
    "behind each other": lambda rows: json_lines(rows).replace(b"\n", b" "),
    "pretty objects": lambda rows: b"\n".join(map(pretty, rows)),  # type: ignore[arg-type]
    "array": lambda rows: json.dumps(rows).encode(),
    "pretty array": pretty,
    "array of lines": lambda rows: b"[\n" + json_lines(rows).strip().replace(b"\n", b",\n") + b"\n]\n",
    "object around": lambda rows: json.dumps({"object": "list", "data": rows}, indent=1).encode(),
    "with a mark": lambda rows: json_lines(rows).decode().encode("utf-8-sig"),
    "UTF-16": lambda rows: json_lines(rows).decode().encode("utf-16"),
    "UTF-16 without a mark": lambda rows: json_lines(rows).decode().encode("utf-16-le"),
    "gzip": lambda rows: gzip.compress(json_lines(rows)),
    "gzip of an array": lambda rows: gzip.compress(pretty(rows)),
    "bzip2": lambda rows: bz2.compress(json_lines(rows)),
    "xz": lambda rows: lzma.compress(json_lines(rows)),
}
"""Forms of which a part can be read."""

WHOLE_CONTAINERS: dict[str, Callable[[Sequence[object]], bytes]] = {
    "parquet": parquet,
    "zstd": zstandard,
    "splits": lambda rows: json.dumps({"version": 2, "train": rows[:20], "test": rows[20:]}).encode(),
    "object in object": lambda rows: json.dumps({"log": {"creator": {"name": "x"}, "entries": rows}}).encode(),
    "CSV": table,
    "semicolons": lambda rows: b"\xef\xbb\xbf" + table(rows, delimiter=";", lineterminator="\n"),
    "tabs": lambda rows: gzip.compress(table(rows, delimiter="\t")),
    "parquet of bytes and decimals": lambda rows: parquet([of_bytes_and_decimals(row) for row in rows]),
}


def sent(text: str, model: str, count: int = 1) -> list[Request]:
    return Prompts.for_model(workload(text), model, 0, None).requests(SEARCH_TRACE, count)


def body(request: Request) -> dict[str, object]:
    """The JSON that a server gets."""
    found = json.loads(encode(Target("http://127.0.0.1:1", "m"), request).partition(b"\r\n\r\n")[2])
    assert isinstance(found, dict)
    return found


def tokens(model: str, text: str) -> int:
    return FileCounter(Path(model) / "tokenizer.json").count([text])[0]
