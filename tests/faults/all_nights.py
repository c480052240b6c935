"""The nights by name, each in a process of its own: what they patch and adopt is theirs alone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.faults import struck
from tests.faults.moments import OPEN_LOOP
from tests.faults.night import Night, Seen
from tests.faults.struck import Nights, Struck
from tests.faults.table import FILE_ROWS, SERVER_ROWS, TUNER_ROWS, Row, TunerRow
from tuner.study.result import StudyResult


@dataclass(frozen=True)
class NightSeen:
    """`others` are the starts that no fault struck."""

    seen: dict[Row, Seen]
    others: tuple[Seen, ...]
    result: StudyResult | None
    ended_by: str | None


@dataclass(frozen=True)
class StudySeen:
    """`code` and `said` are the last tuner's, which completes the study."""

    seen: dict[TunerRow, Struck]
    code: int | None
    said: str
    result: StudyResult | None


def run_night(name: str, root: Path, model: str) -> NightSeen | StudySeen:
    folder = root / re.sub(r"\W+", "-", name)
    servers = tuple(row for row in SERVER_ROWS if row.night == name)
    if servers:
        night = Night(folder, model, servers, confirming=name.endswith("confirming"))
        night.run()
        spoilt = list(night.seen.values())
        others = tuple(s for s in night.every if s not in spoilt)
        return NightSeen(night.seen, others, night.result, repr(night.ended_by) if night.ended_by else None)
    rows = [row for row in (*TUNER_ROWS, *FILE_ROWS) if row.night == name]
    study = Nights(folder, model, struck.OPEN_LOOP if rows[0].moment in OPEN_LOOP else struck.CLOSED_LOOP)
    if name == "damaged files":
        study.damage(rows)
    elif name.startswith(("disk", "trial folder")):
        study.disk(rows[0])
    else:
        study.run(rows)
    return StudySeen(study.seen, study.code, study.said, study.result)
