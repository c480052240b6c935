"""Containers of traffic files: told by content, cut off, broken, and of another kind."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from tests.load.traffic_files import (
    CONTAINERS,
    QUESTION,
    WHOLE_CONTAINERS,
    body,
    conversation,
    json_lines,
    lines,
    reading,
    sent,
)
from tuner.errors import UsageError
from tuner.load.reading import LeftOut, WhyLeftOut
from tuner.load.workload import workload


@pytest.mark.parametrize("form", [*CONTAINERS, *WHOLE_CONTAINERS])
@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".data"])
def test_a_container_is_told_by_its_content(form: str, suffix: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"{QUESTION} {i}", "output_length": i + 3} for i in range(30)]
    path = tmp_path / f"traffic{suffix}"
    path.write_bytes((CONTAINERS | WHOLE_CONTAINERS)[form](rows))
    found = reading(str(path))
    assert (found.rows, found.requests, found.left_out) == (30, 30, ())
    assert (found.output.low, found.output.p50, found.output.high) == (3, 17, 32)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
def test_a_line_ends_at_a_line_feed_alone(mark: str, tmp_path: Path, tiny_model: str) -> None:
    text = lines(tmp_path / "t.jsonl", {"prompt": f"a{mark}b", "max_tokens": 3})
    assert sent(text, tiny_model)[0].messages == (("user", f"a{mark}b"),)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"{oops}", WhyLeftOut.NOT_JSON),
        (b'{"prompt": "a", "max_tokens": 5}}', WhyLeftOut.NOT_JSON),
        (b'{"prompt": "\xff\xfe", "max_tokens": 5}', WhyLeftOut.NOT_TEXT),
        (b'{"prompt": "\\ud800", "max_tokens": 5}', WhyLeftOut.NOT_TEXT),
        (b'{"messages": [{"role": "user", "content": "a", "name": "\\udfff"}]}', WhyLeftOut.NOT_TEXT),
        (b"[" * 100_000, WhyLeftOut.NOT_JSON),
        (b'"prompt"', WhyLeftOut.NOT_AN_OBJECT),
        (b'{"prompt": "a", "max_tokens": 1' + b"0" * 5000 + b"}", WhyLeftOut.NO_OUTPUT),
        (b'{"prompt": "a", "temperature": Infinity}', WhyLeftOut.BAD_FIELD),
    ],
)
@pytest.mark.parametrize("place", [1, 2, 5])
def test_a_bad_line_costs_itself_alone_and_its_number_is_told(
    bad: bytes, why: WhyLeftOut, place: int, tmp_path: Path
) -> None:
    good = json_lines([{"prompt": QUESTION}]).strip()
    whole = [good] * 6
    whole.insert(place - 1, bad)
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\n".join(whole))
    assert reading(str(path)).left_out == (LeftOut(why, 1, f"line {place}"),)


@pytest.mark.parametrize("form", CONTAINERS)
def test_a_file_that_was_cut_off_keeps_what_is_whole(form: str, tmp_path: Path) -> None:
    data = CONTAINERS[form]([{"prompt": f"{QUESTION} {i}", "id": str(i * 7919)} for i in range(400)])
    path = tmp_path / "t.json"
    path.write_bytes(data[: len(data) * 3 // 4])
    if form in ("bzip2", "object around"):  # one block, or one value: nothing is whole
        with pytest.raises(UsageError):
            workload(str(path))
        return
    found = reading(str(path))
    assert 200 <= found.requests < 400
    assert [row.why for row in found.left_out] == [WhyLeftOut.CUT]


def test_a_broken_entry_of_an_array_costs_itself_alone(tmp_path: Path) -> None:
    entries = [json.dumps({"id": i, "conversations": conversation()}, indent=1) for i in range(9)]
    entries[4] = entries[4].replace('"value":', '"value"', 1)
    path = tmp_path / "t.json"
    path.write_text("[" + ",\n".join(entries) + "]")
    found = reading(str(path))
    assert found.requests == 8
    (left,) = found.left_out
    assert left.why is WhyLeftOut.NOT_JSON and left.first == f"entry 5, line {4 * entries[0].count(chr(10)) + 5}"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"PK\x03\x04" + bytes(60), "a zip archive"),
        (b"\x28\xb5\x2f\xfd" + bytes(60), "has no request"),
        (gzip.compress(b"x" * 257 + b"ustar" + bytes(90)), "a tar archive"),
        (gzip.compress(gzip.compress(b"{}")), "packed inside of a packed file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a pointer of Git LFS"),
        (b'id,prompt\n1,"hello\n2,b\n', "line 2: a quote begins here"),
        (b"PAR1" + bytes(60), "a parquet file that cannot be read"),
        (b"\x1f\x8b" + bytes(60), "has no request"),
        (b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n", "a trace of lengths"),
        (
            b"Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,472,18,490,x\n",
            "a trace of lengths",
        ),
        (b"timestamp,input_length,output_length\n0,10,5\n", "a trace of lengths"),
        (b"id,name\n1,hello\n", "1 with neither prompt nor messages"),
        (json_lines([{"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}]), "a trace of"),
        (json_lines([{"timestamp": 1, "num_prefill_tokens": 20, "num_decode_tokens": 5}] * 3), "a trace of lengths"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_line_that_names_it(data: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(data)
    with pytest.raises(UsageError) as caught:
        workload(str(path))
    assert says in caught.value.message and "\n" not in caught.value.message and caught.value.hint


CELLS = """id;Prompt;messages;max_tokens;temperature;created_at
1;"What; ""exactly""
is it?";;5.0;0.5;2026-01-01 10:00:00
2;;"[{""role"": ""user"", ""content"": ""Hi?""}]";6;;2026-01-01 10:00:01

3;too;many;;;;cells
4;"a" b;;;;
5;Why?;;7;;2026-01-01 10:00:03
"""


def test_a_table_has_a_request_in_each_row_whose_cells_fit(tmp_path: Path, tiny_model: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(CELLS, newline="\r\n")
    found = reading(str(path))
    assert (found.rows, found.left_out) == (5, (LeftOut(WhyLeftOut.NO_ROW, 2, "line 6"),))
    first, second, third = sent(str(path), tiny_model, 3)
    assert [request.max_tokens for request in (first, second, third)] == [5, 6, 7]
    assert first.messages[0][1].replace("\r", "") == 'What; "exactly"\nis it?'
    assert body(first)["temperature"] == 0.5
    assert (second.messages[0][1], third.messages[0][1], third.arrival_s) == ("Hi?", "Why?", 3.0)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not UTF-8"):
        workload(str(tmp_path / "traffic\udcff.jsonl"))
