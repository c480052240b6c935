"""Ledger of simulated GPU memory, one file per process. It counts only while that process lives.

A file is named PID-STARTTIME (field 22 of /proc/PID/stat), so that a recycled pid does not count. The folder is
TUNER_SIM_GPU_DIR.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path


def start_ticks(pid: int) -> int | None:
    """Return the start of a process in clock ticks. None if it does not exist or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rsplit(") ", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def hold(gpu_dir: Path, gpu_indices: Sequence[int], bytes_each: int) -> Path:
    """Record that this process holds `bytes_each` on each GPU. Returns the file, to be unlinked on release."""
    gpu_dir.mkdir(parents=True, exist_ok=True)
    for stale in gpu_dir.glob("*-*"):
        if not _is_alive(stale):
            stale.unlink(missing_ok=True)
    pid = os.getpid()
    path = gpu_dir / f"{pid}-{start_ticks(pid)}"
    waiting = path.with_suffix(".new")
    waiting.write_text(json.dumps({str(index): bytes_each for index in gpu_indices}))
    return waiting.rename(path)


def _is_alive(holder: Path) -> bool:
    """Return True if a file's process lives. A file that is just being written counts as alive."""
    if holder.suffix:
        return True
    pid, _, ticks = holder.name.partition("-")
    return pid.isdigit() and ticks.isdigit() and start_ticks(int(pid)) == int(ticks)


def holding_pids(gpu_dir: Path) -> list[int]:
    """List the living processes that hold memory on any GPU."""
    alive = (path for path in gpu_dir.glob("*-*") if not path.suffix and _is_alive(path))
    return [int(path.name.partition("-")[0]) for path in alive]


def holders(gpu_dir: Path, gpu_index: int) -> dict[int, int]:
    """Map each living pid to its bytes on one GPU."""
    found: dict[int, int] = {}
    for path in gpu_dir.glob("*-*") if gpu_dir.is_dir() else ():
        if not _is_alive(path):
            continue
        try:
            held = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if str(gpu_index) in held:
            found[int(path.name.partition("-")[0])] = int(held[str(gpu_index)])
    return found


def held_bytes(gpu_dir: Path, gpu_index: int) -> int:
    """Sum the bytes of living processes on one GPU. 0 if the folder does not exist."""
    return sum(holders(gpu_dir, gpu_index).values())


def visible_gpus(environment: str | None, count: int) -> tuple[int, ...]:
    """Parse CUDA_VISIBLE_DEVICES. None means all `count` GPUs. Like CUDA, the list ends at the first entry that is
    no index."""
    if environment is None:
        return tuple(range(count))
    chosen: list[int] = []
    for part in environment.split(","):
        if not part.strip().isdigit() or int(part) >= count:
            break
        chosen.append(int(part))
    return tuple(chosen)
