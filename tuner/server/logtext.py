"""Server log → bounded, clean text without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from tuner.vllm import knobs

HEAD_BYTES = 512 * 1024
TAIL_BYTES = 1024 * 1024
MAX_LINE_CHARS = 400
REDACTED = "[redacted]"
MIN_SECRET_CHARS = 4  # removing a shorter one would tear the log apart and hide nothing

_CONTROL = re.compile(
    r"\x1b\[[0-9;?]*[ -/]*[@-~]"  # CSI: colours, cursor
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # OSC: titles, links
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]"
)
_LOOKS_SECRET = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|nvapi-[\w-]{16,})"
)
_NAMED_SECRET = re.compile(
    r"(?P<name>\b(?:authorization\W{1,3}(?:bearer|basic)|bearer)\s+"
    rf"|(?:--{knobs.API_KEY}|\b[A-Z_]*(?:HF_TOKEN|API_KEY|ACCESS_KEY|SECRET_KEY|AUTH_TOKEN|PASSWORD))[ =:]+['\"]?"
    r"|['\"]?\b(?:api_key|hf_token|password)\b['\"]?\s*[:=]\s*\[?['\"])"
    r"(?P<value>(?!None\b|\[redacted)[^\s'\",\])]+)",
    re.IGNORECASE,
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


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Replace `secrets`, and anything that looks like one."""
    for secret in sorted(_worth_hiding(secrets), key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    text = _LOOKS_SECRET.sub(REDACTED, text)
    return _NAMED_SECRET.sub(lambda match: match["name"] + REDACTED, text)


def redact_file(path: Path, secrets: Iterable[str]) -> None:
    """Replace these values in a finished log, line by line."""
    wanted = [s.encode() for s in _worth_hiding(secrets)]
    if not wanted or not path.exists() or not _contains(path, wanted):
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with path.open("rb") as source, temporary.open("wb") as target:
            for line in source:
                for secret in wanted:
                    line = line.replace(secret, REDACTED.encode())
                target.write(line)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def shorten(line: str) -> str:
    """Cut a line to the length of a record."""
    line = line.strip()
    return line if len(line) <= MAX_LINE_CHARS else line[: MAX_LINE_CHARS - 1] + "…"


def _contains(path: Path, wanted: list[bytes]) -> bool:
    with path.open("rb") as file:
        return any(secret in line for line in file for secret in wanted)


def _worth_hiding(secrets: Iterable[str]) -> list[str]:
    return [secret for secret in secrets if len(secret) >= MIN_SECRET_CHARS]
