"""Servers of any study whose tuner is gone. They hold memory, and whoever measures beside them measures them too."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from tuner.jsonfile import TornFileError
from tuner.server import proctable, running_file
from tuner.server.proctable import ProcessEntry
from tuner.server.running_file import Marker

_LOG = re.compile(r"server(-\d+)?\.log")


@dataclass(frozen=True, slots=True)
class Abandoned:
    """Processes that a killed tuner left running, and the folder of their study."""

    study: Path
    processes: tuple[ProcessEntry, ...]

    def __str__(self) -> str:
        return f"study {self.study.name} left a server running: {', '.join(map(str, self.processes))}"

    @property
    def todo(self) -> str:
        """Return what ends it."""
        pids = " ".join(str(process.pid) for process in self.processes)
        return f"kill {pids}, or go on with: tuner resume {self.study.name} --studies {quote(str(self.study.parent))}"


def abandoned() -> tuple[Abandoned, ...]:
    """Find them by their logs, wherever the studies are and whatever they are called by now."""
    by_study: dict[Path, list[ProcessEntry]] = defaultdict(list)
    for process in proctable.table().values():
        logs = (file for file in proctable.output_files(process.pid) if _LOG.fullmatch(file.name))
        for trial in {log.parent for log in logs}:
            if not process.is_zombie and _is_abandoned(trial):
                by_study[trial.parent.parent].append(process)
    return tuple(Abandoned(study, tuple(processes)) for study, processes in sorted(by_study.items()))


def _is_abandoned(trial: Path) -> bool:
    """Return True if a trial's folder names servers, and none of their tuners lives."""
    markers = [_read(path) for path in running_file.found_below(trial)]
    return bool(markers) and not any(marker is not None and marker.writer_lives for marker in markers)


def _read(path: Path) -> Marker | None:
    try:
        return running_file.read(path)
    except (OSError, TornFileError):
        return None
