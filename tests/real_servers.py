"""What the tests of a whole search on real servers share: its emitted scripts, and what is left of its servers."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.deploy.ports import neighbouring_ports


@contextmanager
def started(folder: Path) -> Iterator[int]:
    """Run a study's start.sh, and stop.sh at the end. Yields its port; servers behind have the next."""
    port = neighbouring_ports(3)
    env = {**os.environ, "PORT": str(port), "START_TIMEOUT": "240"}
    ended = subprocess.run([folder / "start.sh"], env=env, capture_output=True, text=True, timeout=300)
    try:
        assert ended.returncode == 0, ended.stdout + ended.stderr
        yield port
    finally:
        subprocess.run([folder / "stop.sh"], env=env, timeout=120, check=False)


def assert_stopped(folder: Path, port: int) -> None:
    """Run a study's stop.sh, and assert that no process is left and the port is free."""
    env = {**os.environ, "PORT": str(port)}
    ended = subprocess.run([folder / "stop.sh"], env=env, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not servers_of(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))


def servers_of(folder: Path) -> list[psutil.Process]:
    """Living processes whose environment names the study's own cache folder."""
    mark = str(folder / "vllm_cache")
    found = []
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("VLLM_CACHE_ROOT") == mark:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found
