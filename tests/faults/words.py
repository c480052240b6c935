"""Writer of docs/faults.md: the matrix with the results of a run."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime

from tests.faults.table import Row, TunerRow
from tuner.formatting import duration

HEAD = """# Faults

This page shows how tuner and a study survive faults of servers, machine and user. It is written by
`pytest tests/faults --fault-table docs/faults.md`; `make test-faults` runs the same matrix. Servers are the stand-in
(`tuner/sim`). Processes, signals, ports, files and disks are real.

Each row asserts:

- Finished records are all there, byte for byte.
- No process, port, socket or /dev/shm file of tuner is left, and no GPU memory: neither of the server or nginx that was
  struck nor of those beside it.
- A process with the same name and arguments in another session lives on.
- The search got what the table says, as Optuna's own storage shows.
- The study was completed afterwards, by the next tuner if this one was killed.

*Queued again* means that the candidate is retried and the model learns nothing. A *violated constraint* is a refused
start: the model learns to avoid it. *Measured, not feasible* is a level that broke a limit.

Most rows have one server at a time. Several run when layouts are checked, *side by side*, and in confirmation runs of
the whole machine, behind nginx or as engines of one server. One of them is struck, or nginx; all are ended. A
confirmation that *refutes the candidate* is not repeated: the next best candidate is confirmed.
"""


def as_table(rows: Sequence[tuple[Row | TunerRow, bool]], seconds: float) -> str:
    """Render the rows, each with the result of its test."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    passed = sum(ok for _, ok in rows)
    lines = [
        HEAD,
        f"Run on {now}: {passed} of {len(rows)} cases passed in {duration(seconds)}, "
        f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}.",
        "",
        "| fault | servers | moment | what the search learns, or how tuner ends | cause in the record | result |",
        "|---|---|---|---|---|---|",
    ]
    for row, ok in rows:
        outcome, cause = (row.learnt, row.cause or "–") if isinstance(row, Row) else (f"exit {row.ends}", "–")
        if outcome == "exit killed":
            outcome = "killed; the next tuner goes on"
        verdict = "passed" if ok else "FAILED"
        lines.append(f"| {row.fault} | {row.servers} | {row.moment} | {outcome} | {cause} | {verdict} |")
    return "\n".join(lines) + "\n"
