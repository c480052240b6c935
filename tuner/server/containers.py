"""Servers in containers. The engine's daemon owns their processes, so they are ended by container id."""

from __future__ import annotations

import subprocess
from pathlib import Path

CID_FILE = "cid"
_LIMIT_S = 30.0


def with_cid_file(argv: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    """Insert `--cidfile FOLDER/cid` after `docker run`. Words without a container, or with a file of their own,
    stay."""
    if "run" not in argv or any(word.split("=", 1)[0] == "--cidfile" for word in argv):
        return argv
    at = argv.index("run") + 1
    return (*argv[:at], "--cidfile", str(folder / CID_FILE), *argv[at:])


def end_container(engine: str, folder: Path) -> tuple[str, ...]:
    """Kill a container that outlived its client. Returns what was killed.

    `docker kill` refuses a container that has stopped: then there was nothing to do. Raises nothing. An engine that
    fails or hangs here shows in memory that does not come back.
    """
    try:
        cid = (folder / CID_FILE).read_text().strip()
    except FileNotFoundError:
        return ()
    if not cid:
        return ()
    try:
        answer = subprocess.run([engine, "kill", cid], capture_output=True, timeout=_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return (f"container {cid[:12]}",) if answer.returncode == 0 else ()
