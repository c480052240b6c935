"""A search with secrets in every place that takes some: no file of its study and no line of its output shows one."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.cli.support import TUNER, short_search


def test_no_byte_of_a_secret_is_in_a_study_or_on_the_terminal(tiny_model: str, tmp_path: Path) -> None:
    """The server prints all that it was given, and a refused start's cause quotes it."""
    server = tmp_path / "vllm"
    server.write_text(
        f"""#!/bin/bash
if [[ "$*" != *--help* && "$*" != *--version* ]]; then
    echo "keys $HF_TOKEN $VLLM_API_KEY $MY_PASSWORD $OTHER_TOKEN of https://u:S3cret-5@h and AKIAS3CRETS3CRETS3CR: $*"
    [[ $(ls {tmp_path}/studies/s/trials | wc -l) == 2 ]] && echo "RuntimeError: $HF_TOKEN is not welcome" && exit 1
fi
exec {sys.executable} -m tuner.sim "$@"
"""
    )
    server.chmod(0o755)
    space = tmp_path / "mine.yaml"
    space.write_text("parameters: {max-num-seqs: {int: [8, 64]}}\nenv: {MY_PASSWORD: S3cret-3}\n")
    words = dict(zip(*[iter(short_search(tiny_model, tmp_path / "studies", "s"))] * 2, strict=True))
    words |= {"--vllm": f"env HF_TOKEN=tok-S3cret-1 {shlex.quote(str(server))} serve", "--space": str(space)}
    command = [
        *TUNER,
        "search",
        *(word for pair in words.items() for word in pair),
        "--",
        "--api-key",
        "S3cret-2",
        "K2",
    ]
    env = {**os.environ, "OTHER_TOKEN": "S3cret-4", "TUNER_SIM_SPEED": "20"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert ended.returncode == 0, ended.stderr
    shown = (ended.stdout + ended.stderr).lower()
    assert "s3cret" not in shown and "K2" not in shown
    records = [path.read_text() for path in tmp_path.glob("studies/s/trials/*/record.json")]
    assert any("[redacted] is not welcome" in record for record in records), "a cause quotes the log"
    logs = list(tmp_path.glob("studies/s/trials/*/server.log"))
    assert len(logs) >= 2 and all("[redacted]" in log.read_text() for log in logs), "the servers had them all"
    files = [path for path in (tmp_path / "studies").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if b"s3cret" in path.read_bytes().lower()] == []
    named = str(tmp_path / "studies" / "s").encode()
    assert [path for path in files if path.suffix in (".json", ".db") and named in path.read_bytes()] == []
