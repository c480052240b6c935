"""docs/faults.md: the matrix with the results of a run."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime

from tests.faults.table import Row, TunerRow
from tuner.formatting import duration

HEAD = """# Faults

What a night does to tuner, and what comes of it. Made by `pytest tests/faults --fault-table docs/faults.md`;
`make test-faults` runs the same matrix. Servers are the stand-in (`tuner/sim`), processes, signals, ports, files and
disks are real.

Each row asserts: finished records are all there, byte for byte; no process, port, socket or /dev/shm file of ours is
left; a process with the same name and words in another session lives on; the search was told what the table says, as
Optuna's own storage shows it; and the study was completed afterwards, by the next tuner where this one was struck.
"""


def as_table(rows: Sequence[tuple[Row | TunerRow, bool]], seconds: float) -> str:
    """`rows` with whether their test passed."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    passed = sum(ok for _, ok in rows)
    lines = [
        HEAD,
        f"Run on {now}: {passed} of {len(rows)} cases passed in {duration(seconds)}, "
        f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}.",
        "",
        "| fault | moment | what the search is told, or how tuner ends | cause in the record | result |",
        "|---|---|---|---|---|",
    ]
    for row, ok in rows:
        outcome, cause = (row.told, row.cause or "–") if isinstance(row, Row) else (f"exit {row.ends}", "–")
        if outcome == "exit killed":
            outcome = "killed; the next tuner goes on"
        lines.append(f"| {row.fault} | {row.moment} | {outcome} | {cause} | {'passed' if ok else 'FAILED'} |")
    return "\n".join(lines) + "\n"
