from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def tuner(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tuner.cli.app", *words], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("search",), 2),
        (("search", "--model", "/nowhere"), 2),
        (("search", "--model", "/nowhere", "stray"), 2),
        (("search", "--no-such-option"), 2),
        (("search", "--trials", "many", "--model", "x/y"), 2),
        (("resume", "no-such-study"), 2),
        (("nonsense",), 2),
    ],
)
def test_bad_input_is_one_line_a_hint_and_no_traceback(words: tuple[str, ...], code: int, tmp_path: Path) -> None:
    ended = tuner(*words)
    assert ended.returncode == code
    lines = ended.stderr.strip().splitlines()
    assert lines[-2].startswith("error: ")
    assert lines[-1].startswith("hint: ")
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_help_names_every_command_and_ends_well() -> None:
    ended = tuner("--help")
    assert ended.returncode == 0
    assert "search" in ended.stdout
    assert "resume" in ended.stdout
