"""Store of a study's folder, safe against kills."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import TypeVar

from tuner import formatting
from tuner.environment import Environment
from tuner.errors import EnvironmentFaultError, UsageError
from tuner.jsonfile import NewerFileError, TornFileError, dump, load, write_atomically
from tuner.secrecy import REDACTED, mask_password
from tuner.study import lock
from tuner.study.assignment import Assignment
from tuner.study.own_files import portable
from tuner.study.plan import StudyPlan
from tuner.study.record import TrialRecord
from tuner.study.result import StudyResult
from tuner.study.upgrade import read_plan, read_record, read_result

ASSIGNMENT = "assignment.json"
"""Name of the file with a trial's assignment."""

_STORAGE = "storage.url"
"""Name of the file with the URL of a storage that has a password."""

T = TypeVar("T")

LEAST_DISK_BYTES = 2**30
"""Free bytes for a trial's log and compile cache."""


@dataclass(frozen=True, slots=True)
class Store:
    """Only writer of a study's folder. Logs and tables of a trial are the exception."""

    folder: Path

    @property
    def exists(self) -> bool:
        return (self.folder / "plan.json").is_file()

    def create(self) -> bool:
        """Make the study's folder. Returns False if it was there. Raises EnvironmentFaultError if it cannot be
        written."""
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            is_new = True
            try:
                self.folder.mkdir()
            except FileExistsError:
                is_new = False
            (self.folder / "trials").mkdir(exist_ok=True)
            probe = self.folder / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
            return is_new
        except OSError as error:
            raise EnvironmentFaultError(
                f"the studies folder {self.folder.parent} cannot be written: {error.strerror}",
                hint="choose another with --studies DIR",
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the study for this process. Raises UsageError if another tuner holds it."""
        with lock.locked(self.folder):
            yield

    @property
    def resume_command(self) -> str:
        """Return the command that goes on with the study from this working folder."""
        elsewhere = self.folder.parent.absolute() != Path("studies").absolute()
        return f"tuner resume {self.folder.name}" + f" --studies {quote(str(self.folder.parent))}" * elsewhere

    def trial_folder(self, trial: int) -> Path:
        path = self.folder / "trials" / f"{trial:04d}"
        path.mkdir(exist_ok=True)  # without its parents: a folder that was deleted meanwhile stays so
        return path

    def new_trial(self) -> int:
        """Create a new trial's folder and return its number. Safe in threads and processes. No number is used twice,
        so that an interrupted trial keeps its log."""
        while True:
            begun = [int(p.name) for p in (self.folder / "trials").glob("[0-9]*") if p.name.isdigit()]
            trial = max(begun, default=-1) + 1
            try:
                (self.folder / "trials" / f"{trial:04d}").mkdir()
            except FileExistsError:  # another thread was faster
                continue
            return trial

    def need_room(self) -> None:
        """Raise EnvironmentFaultError if the disk is nearly full."""
        free = shutil.disk_usage(self.folder).free
        if free < LEAST_DISK_BYTES:
            raise EnvironmentFaultError(
                f"the disk of {self.folder} is nearly full: {formatting.gib(free / 2**30)} left",
                hint=f"free at least {formatting.gib(LEAST_DISK_BYTES / 2**30)}, then: {self.resume_command}",
            )

    def save_assignment(self, assignment: Assignment) -> None:
        """Write an assignment before its server starts."""
        dump(self.trial_folder(assignment.trial) / ASSIGNMENT, assignment)

    def save_plan(self, plan: StudyPlan, environment: Environment) -> None:
        dump(self.folder / "environment.json", environment)
        dump(self.folder / "plan.json", portable(plan, self.folder))

    def save_storage(self, url: str) -> None:
        """Keep a storage's URL with a password apart from the plan, for this user alone."""
        if mask_password(url) != url:
            write_atomically(self.folder / _STORAGE, url.encode(), mode=0o600)

    def with_storage(self, plan: StudyPlan) -> StudyPlan:
        """Return the plan with the whole URL of its storage. Raises UsageError if its password is not here."""
        if REDACTED not in plan.storage:
            return plan
        try:
            return replace(plan, storage=(self.folder / _STORAGE).read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(
                f"the password of the storage {plan.storage} is not here: {error.strerror}",
                hint="give it with --storage once more, to the same `tuner search … --study NAME`",
            ) from error

    def plan(self) -> StudyPlan:
        return self._checked("plan.json", read_plan)

    def environment(self) -> Environment:
        return self._read("environment.json", Environment)

    def save_record(self, record: TrialRecord) -> None:
        path = self.trial_folder(record.trial) / "record.json"
        if path.exists():
            raise FileExistsError(f"{path}: a finished record is never changed")
        dump(path, record)

    def records(self) -> tuple[TrialRecord, ...]:
        """Finished trials in their order. A torn record counts as unfinished: its trial is run again. Raises
        UsageError if a newer tuner wrote one."""
        found = []
        for path in sorted((self.folder / "trials").glob("*/record.json")):
            try:
                found.append(read_record(path))
            except NewerFileError as error:
                raise _made_by_newer(error) from error
            except TornFileError:
                continue
        return tuple(found)

    def torn_records(self, whole_ones: Iterable[TrialRecord]) -> tuple[Path, ...]:
        """List the record files that cannot be read, beside the `whole_ones`."""
        whole = {record.trial for record in whole_ones}
        found = sorted((self.folder / "trials").glob("*/record.json"))
        return tuple(path for path in found if not path.parent.name.isdigit() or int(path.parent.name) not in whole)

    def save_result(self, result: StudyResult) -> None:
        dump(self.folder / "result.json", result)

    def result(self) -> StudyResult:
        return self._checked("result.json", read_result)

    def _read(self, name: str, kind: type[T]) -> T:
        return self._checked(name, lambda path: load(path, kind))

    def _checked(self, name: str, read: Callable[[Path], T]) -> T:
        path = self.folder / name
        try:
            return read(path)
        except FileNotFoundError as error:
            raise UsageError(f"no {name} in {self.folder}", hint="is this the folder of a study?") from error
        except NewerFileError as error:
            raise _made_by_newer(error) from error
        except TornFileError as error:
            raise UsageError(str(error), hint="the file was cut short or edited; choose another --study") from error


def _made_by_newer(error: NewerFileError) -> UsageError:
    return UsageError(str(error), hint="update tuner, or choose another --study")
