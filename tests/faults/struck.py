"""Studies whose tuner is killed or whose files are damaged, and their completion by the next tuner."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import optuna
from optuna.trial import TrialState

from tests.faults.study_run import COMMAND, left_of, records_of
from tests.faults.table import Ends, Servers, TunerRow
from tests.server.support import bystander, runs
from tuner.server import running_file
from tuner.study.result import StudyResult
from tuner.study.store import Store

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 120
NAME = "struck"

SPACE = """
parameters:
  max-num-seqs: {int: [%d, %d]}
baseline:
  max-num-seqs: 1
"""


class Words(NamedTuple):
    """Options of a study beside those that all have in common."""

    sequences: tuple[int, int]
    load: tuple[str, ...]
    machine: tuple[str, ...] = ()


CLOSED_LOOP = Words((4, 64), ("--slo", "p99 ttft <= 10s", "--levels", "4", "--level-seconds", "1"))
SEVERAL = CLOSED_LOOP._replace(machine=("--workers", "2", "--layouts", "2x1", "--door", "nginx"))
OPEN_LOOP = Words((2, 4), ("--slo", "p99 ttft <= 60s"))


@dataclass(frozen=True)
class Struck:
    """Observations after a fault. `after` is taken when the struck tuner has ended; `left` is what the next tuner
    left behind."""

    code: int
    said: str
    struck: bool
    lost_or_changed: tuple[str, ...]
    left: tuple[str, ...]
    bystander_lives: bool
    asked_again: bool


@dataclass
class StruckStudy:
    """One study that is struck row after row, and completed at the end."""

    folder: Path
    model: str
    words: Words = CLOSED_LOOP
    seen: dict[TunerRow, Struck] = field(default_factory=dict)
    code: int | None = None
    said: str = ""
    result: StudyResult | None = None
    starts: int = 2

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.study = self.folder / NAME
        self._files()
        self._words = [
            "search", "--model", self.model, "--vllm", " ".join(COMMAND), "--space", str(self.folder / "space.yaml"),
            "--workload", "random:8,6", *self.words.load, *self.words.machine, "--warm-up-seconds", "0.3",
            "--trials", str(self.starts), "--confirm", "2", "--study", NAME,
            "--studies", str(self.folder), "--", "--max-model-len", "2048",
        ]  # fmt: skip

    def _files(self) -> None:
        (self.folder / "space.yaml").write_text(SPACE % self.words.sequences)

    def tuner(self, strike: str) -> subprocess.CompletedProcess[str]:
        """Run a tuner. The first one searches, all others resume without options."""
        resume = ["resume", NAME, "--studies", str(self.folder)]
        words = resume if (self.study / "plan.json").exists() else self._words
        env = {
            **os.environ,
            "TUNER_NOTE": str(self.folder / "note"),
            "TUNER_SIM_FAULTS": "stall:2" if "draining" in strike else "",
            "TUNER_SIM_PROFILE": "rtx4090",
            "TUNER_SIM_GPUS": "2" if self.words.machine else "1",
            "TUNER_SIM_SPEED": "4",
            "TUNER_SIM_STARTUP_S": "0.6",
        }
        command = [sys.executable, "-m", "tests.faults.tuner_to_strike", strike, *words]
        return subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=LIMIT_S, start_new_session=True
        )

    def run(self, rows: Sequence[TunerRow]) -> None:
        """Strike one tuner per row. The row after it is the next tuner, which must clear away and go on."""
        with bystander(*COMMAND[1:], self.model, "--max-model-len", "2048") as other:
            struck: tuple[TunerRow, subprocess.CompletedProcess[str], dict[str, bytes], list[str]] | None = None
            for row in [*rows, None]:
                before = records_of(self.study)
                ended = self.tuner(strike_of(row) if row else "none@")
                if struck is not None:
                    self._look(*struck, before, other)
                struck = (row, ended, before, self._noted()) if row else None
            self._completed(ended)

    def damage(self, rows: Sequence[TunerRow]) -> None:
        """Damage one file per row of a complete study, and restore it after each."""
        with bystander(*COMMAND[1:], self.model, "--max-model-len", "2048") as other:
            self.tuner("none@")
            for row in rows:
                before, repair = records_of(self.study), self._damage(row.fault)
                ended = self.tuner("none@")
                repair()
                known = {name: data for name, data in before.items() if not row.fault.endswith("record.json")}
                self._look(row, ended, known, ["struck", *self._noted()], known, other)
            self._completed(self.tuner("none@"))

    def disk(self, row: TunerRow) -> None:
        """Run on a disk of this study's own, 32 MiB large."""
        with bystander(*COMMAND[1:], self.model, "--max-model-len", "2048") as other, mounted(self.folder):
            self._files()
            before = records_of(self.study)
            ended = self.tuner(strike_of(row))
            noted = self._noted()
            (self.study / "filler").unlink(missing_ok=True)
            for read_only in (self.study / "trials").glob("[0-9]*"):
                subprocess.run(["umount", read_only], capture_output=True, check=False)
            self._completed(self.tuner("none@"))
            if row.fault == "disk nearly full":
                noted.append("struck")
            self._look(row, ended, before, noted, before, other)

    def _damage(self, fault: str) -> Callable[[], object]:
        """Damage the file and return its repair."""
        name = fault.split()[1]
        newest = sorted((self.study / "trials").glob("[0-9]*"))[-1]
        path = newest / name if name in ("record.json", "running.json") else self.study / name
        whole = path.read_bytes() if path.exists() else None
        path.write_bytes(b"not a database, " * 300 if fault.startswith("garbled") else (whole or b'{"pid": 1,')[:-8])
        if name in ("record.json", "result.json"):
            return lambda: None  # what is torn there is made anew
        return path.unlink if whole is None else lambda: path.write_bytes(whole)

    def _completed(self, ended: subprocess.CompletedProcess[str]) -> None:
        self.code, self.said = ended.returncode, ended.stderr[-3000:]
        self.result = Store(self.study).result() if (self.study / "result.json").exists() else None

    def _noted(self) -> list[str]:
        note = self.folder / "note"
        words = note.read_text().split() if note.exists() else []
        note.unlink(missing_ok=True)
        return words

    def _look(
        self,
        row: TunerRow,
        ended: subprocess.CompletedProcess[str],
        earlier: dict[str, bytes],
        words: list[str],
        before_next: dict[str, bytes],
        other: int,
    ) -> None:
        now = records_of(self.study)
        known = {**earlier, **before_next}
        folders = sorted((self.study / "trials").glob("[0-9]*"))
        # The newest trial may be the one that the next tuner was itself killed in: its own row looks at it.
        left = [str(path) for path in map(Path, words) if path.is_absolute() and path.exists()]
        done = [f for f in folders if f != folders[-1]]
        left += [x for f in done for x in left_of(f)]
        left += [str(path) for f in done for path in running_file.found_below(f)]
        self.seen[row] = Struck(
            code=ended.returncode,
            said=ended.stderr,
            struck="struck" in words,
            lost_or_changed=tuple(name for name, data in known.items() if now.get(name) != data),
            left=tuple(left),
            bystander_lives=runs(other),
            asked_again=not self._forgotten(),
        )

    def _forgotten(self) -> bool:
        """Return True if a failed proposal is neither queued, running nor answered again."""
        trials = optuna.load_study(study_name=NAME, storage=f"sqlite:///{self.study / 'study.db'}").trials
        failed = [t for t in trials if t.state is TrialState.FAIL]
        return any(
            not any(t.number > one.number and t.system_attrs.get("fixed_params") == one.params for t in trials)
            for one in failed
        )


def strike_of(row: TunerRow) -> str:
    """Write what tuner_to_strike.py reads."""
    return f"{row.fault}@{row.moment}{'' if row.servers is Servers.ONE else '@confirm'}"


@contextmanager
def mounted(folder: Path) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=False)


def code_of(ends: Ends) -> int:
    return {
        Ends.KILLED: -signal.SIGKILL, Ends.RESUMABLE: 130, Ends.ENVIRONMENT: 4, Ends.USAGE: 2, Ends.COMPLETE: 0,
    }[ends]  # fmt: skip


def last_lines(said: str) -> list[str]:
    return said.rstrip().splitlines()[-2:]


def well_said(said: str) -> bool:
    """Return True for a message and a hint without a traceback."""
    lines = last_lines(said)
    return (
        len(lines) == 2
        and lines[0].startswith("error: ")
        and bool(re.match(r"hint: \S", lines[1]))
        and ("Traceback" not in said)
    )
