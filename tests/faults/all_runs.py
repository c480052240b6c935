"""All runs by name, each in its own process: what one patches and adopts does not reach another."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.faults import struck
from tests.faults.moments import OPEN_LOOP
from tests.faults.struck import Struck, StruckStudy
from tests.faults.study_run import Seen, StudyRun
from tests.faults.table import (
    FILE_ROWS,
    SERVER_ROWS,
    SEVERAL_ROWS,
    SEVERAL_TUNER_ROWS,
    TUNER_ROWS,
    Row,
    Servers,
    TunerRow,
)
from tuner.study.result import StudyResult


@dataclass(frozen=True)
class RunSeen:
    """Observations of one run. `others` are the starts that no fault struck."""

    seen: dict[Row, Seen]
    others: tuple[Seen, ...]
    result: StudyResult | None
    ended_by: str | None


@dataclass(frozen=True)
class StudySeen:
    """Observations of one study. `code` and `said` are those of the last tuner, which completes it."""

    seen: dict[TunerRow, Struck]
    code: int | None
    said: str
    result: StudyResult | None


def run_named(name: str, root: Path, model: str) -> RunSeen | StudySeen:
    folder = root / re.sub(r"\W+", "-", name)
    servers = tuple(row for row in (*SERVER_ROWS, *SEVERAL_ROWS) if row.run == name)
    if servers:
        run = StudyRun(folder, model, servers, confirming=name.endswith("confirming"))
        run.run()
        failed = list(run.seen.values())
        others = tuple(s for s in run.every if s not in failed)
        return RunSeen(run.seen, others, run.result, repr(run.ended_by) if run.ended_by else None)
    rows = [row for row in (*TUNER_ROWS, *SEVERAL_TUNER_ROWS, *FILE_ROWS) if row.run == name]
    study = StruckStudy(folder, model, _words(rows[0]))
    if name == "damaged files":
        study.damage(rows)
    elif name.startswith(("disk", "trial folder")):
        study.disk(rows[0])
    else:
        study.run(rows)
    return StudySeen(study.seen, study.code, study.said, study.result)


def _words(row: TunerRow) -> struck.Words:
    if row.servers is not Servers.ONE:
        return struck.SEVERAL
    return struck.OPEN_LOOP if row.moment in OPEN_LOOP else struck.CLOSED_LOOP
