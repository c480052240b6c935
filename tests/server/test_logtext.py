"""Logs for people: bounded, clean, without secrets."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tuner.server import logtext


def test_a_flood_of_100_mb_is_read_at_its_ends_only(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    with path.open("wb") as file:
        file.write(b"the first line\n")
        for _ in range(100):
            file.write(b"x" * 99 + b"\n" + b"y" * (2**20 - 100))
        file.write(b"\nthe last line\n")
    begun = time.monotonic()
    text = logtext.read(path)
    assert time.monotonic() - begun < 2
    assert text.startswith("the first line") and text.endswith("the last line\n")
    assert len(text) < 2**21
    assert "bytes left out" in text


def test_no_log_reads_as_empty(tmp_path: Path) -> None:
    assert logtext.read(tmp_path / "none.log") == ""


def test_colours_cursor_moves_titles_and_progress_bars_go() -> None:
    text = "\x1b[1;31mred\x1b[0m \x1b]0;title\x07ok\x08\x00\tx\rLoading 50%\rLoading 100%\r\n"
    assert logtext.clean(text) == "red ok\tx\nLoading 50%\nLoading 100%\n"


@pytest.mark.parametrize(
    "text",
    [
        "--api-key S3cretValue",
        "--api-key=S3cretValue",
        "HF_TOKEN=S3cretValue",
        "VLLM_API_KEY='S3cretValue'",
        "'api_key': ['S3cretValue'], 'port': 1",
        'Authorization: Bearer S3cretValue"',
        "token hf_S3cretValueS3cretValue here",
        "key sk-S3cretValueS3cretValue",
    ],
)
def test_what_looks_like_a_secret_is_redacted(text: str) -> None:
    assert "S3cret" not in logtext.redact(text)


def test_known_secrets_are_redacted_wherever_they_stand() -> None:
    assert logtext.redact("x=correct-horse;", ["correct-horse"]) == "x=[redacted];"


def test_ordinary_words_stay() -> None:
    text = "non-default args: {'api_key': None, 'ssl_keyfile': '/etc/k'} 'token_ids': [1, 2] --max-num-seqs 4"
    assert logtext.redact(text) == text


def test_secrets_are_taken_out_of_a_finished_log(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_bytes(b"one correct-horse\n\xff two\n")
    logtext.redact_file(path, ["correct-horse"])
    assert path.read_bytes() == b"one [redacted]\n\xff two\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_for_a_record_is_redacted_and_short(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    path.write_text("".join(f"line {n}\n" for n in range(100)) + "HF_TOKEN=abcdef\n" + "z" * 5000)
    lines = logtext.redact(logtext.read(path)).splitlines()[-3:]
    assert lines[:2] == ["line 99", "HF_TOKEN=[redacted]"]
    assert len(logtext.shorten(lines[2])) == logtext.MAX_LINE_CHARS
