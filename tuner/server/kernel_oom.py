"""The kernel's own count of processes that it ended for want of memory."""

from __future__ import annotations

import re
from pathlib import Path

_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_CGROUPS = Path("/sys/fs/cgroup")


def oom_kills() -> int | None:
    """Read the count of the whole machine, and if there is none that of our cgroup. None if the kernel has neither."""
    for path in (Path("/proc/vmstat"), _own_cgroup() / "memory.events"):
        try:
            found = _COUNT.search(path.read_text())
        except OSError:
            continue
        if found is not None:
            return int(found[1])
    return None


def oom_kills_since(before: int | None) -> int | None:
    """Return the rise of the count. None if it was not readable then or now."""
    now = oom_kills()
    return None if before is None or now is None else max(0, now - before)


def _own_cgroup() -> Path:
    """Return the folder of our cgroup v2, else that of all."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return _CGROUPS
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), "/")
    return _CGROUPS / own.lstrip("/")
