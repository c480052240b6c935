"""Server log → bounded, clean text."""

from __future__ import annotations

import os
import re
from pathlib import Path

HEAD_BYTES = 512 * 1024
TAIL_BYTES = 1024 * 1024
MAX_LINE_CHARS = 400

_CONTROL = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC: titles, links
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)


def read(path: Path) -> str:
    """Read the log's head and tail. Causes stand at the end, and a flood of 100 MB stays outside. "" if there is no
    log. The text is clean of control characters."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if size <= HEAD_BYTES + TAIL_BYTES:
                return clean(file.read().decode(errors="replace"))
            head = file.read(HEAD_BYTES)
            file.seek(size - TAIL_BYTES)
            tail = file.read()
    except FileNotFoundError:
        return ""
    left_out = f"\n[{size - HEAD_BYTES - TAIL_BYTES} bytes left out]\n"
    return clean(head.decode(errors="replace") + left_out + tail.decode(errors="replace"))


def clean(text: str) -> str:
    """Remove control characters but newline and tab. A carriage return (progress bars) ends a line."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def shorten(line: str) -> str:
    """Cut a line to the length of a record."""
    line = line.strip()
    return line if len(line) <= MAX_LINE_CHARS else line[: MAX_LINE_CHARS - 1] + "…"
