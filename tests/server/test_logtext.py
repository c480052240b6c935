"""Logs for people: bounded and clean."""

from __future__ import annotations

import time
from pathlib import Path

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
