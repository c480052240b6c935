"""What Optuna's storage keeps of a study: its trials, and all that a resumed search is rebuilt from."""

from __future__ import annotations

import functools
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self, TypeVar

import optuna
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial

from tuner.candidate import Value
from tuner.errors import EnvironmentFaultError, UsageError
from tuner.jsonfile import TornFileError
from tuner.secrecy import mask_password
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome
from tuner.study.upgrade import read_plan

T = TypeVar("T")

TOLD_S = 2.0
"""Seconds of waiting for the storage before the user is told."""

_FOLDER = "folder"
"""Attribute of an Optuna study in a storage of the user's: the folder of its study."""

_MARK = "made_at"
"""Attribute of an Optuna study that says whose it is: the time at which its plan was made."""


@dataclass(frozen=True, slots=True)
class TrialAttributes:
    """User attributes of an Optuna trial, from which a resumed search is rebuilt. None is not written.

    Args:
        again: Whether the candidate was started before and is queued once more.
        flags: The candidate's values. In the queue only a default has them.
        ruled_out: Rule or dropped layout for which the candidate was answered without a start.
        trial: Number of the trial on disk.
    """

    role: Role | None = None
    again: bool | None = None
    flags: dict[str, Value] | None = None
    ruled_out: str | None = None
    imputed: bool | None = None
    outcome: TrialOutcome | None = None
    trial: int | None = None

    @classmethod
    def read(cls, attributes: Mapping[str, Any]) -> Self:
        return cls(**{f.name: attributes.get(f.name) for f in fields(cls)})

    @property
    def written(self) -> dict[str, object]:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def write(self, trial: Trial) -> None:
        for name, value in self.written.items():
            trial.set_user_attr(name, value)

    @property
    def purpose(self) -> Role:
        """Role of the trial; one that was not queued is the sampler's."""
        return Role.SEARCH if self.role is None else Role(self.role)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn a driver's error into a fault of the machine."""
    try:
        yield
    except StorageInternalError as error:
        raise EnvironmentFaultError(
            f"the study's storage does not work: {_first_line(error)}",
            hint="see who else uses it and whether its disk is full, then go on with: tuner resume STUDY",
        ) from error


@dataclass(frozen=True, slots=True)
class Patience:
    """Patience with a storage that is locked or away for a moment. A start costs minutes, so waiting costs less.

    Args:
        should_stop: Whether the user has interrupted.
        tell: Called with a sentence once if it takes long.
    """

    seconds: float = 300.0
    should_stop: Callable[[], bool] = lambda: False
    tell: Callable[[str], None] = lambda text: None

    def call(self, ask: Callable[[], T]) -> T:
        """Ask until the storage answers, with growing pauses. Raises the driver's error once patience is over."""
        pause_s, began, is_told = 0.25, time.monotonic(), False
        while True:
            try:
                return ask()
            except Exception as error:  # every driver has its own errors, and SQLAlchemy passes them on
                waited_s = time.monotonic() - began
                if not _passes(error) or waited_s + pause_s > self.seconds or self.should_stop():
                    raise
                if waited_s > TOLD_S and not is_told:
                    self.tell(f"the study's storage does not answer ({_first_line(error)}): waiting")
                    is_told = True
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 4.0)


def _passes(error: BaseException) -> bool:
    """Return True for a lock or a lost connection, False for a broken file or a wrong password."""
    driver = error.__cause__ if isinstance(error, StorageInternalError) else error
    own = getattr(driver, "orig", driver)
    if isinstance(own, sqlite3.Error):
        return isinstance(own, sqlite3.OperationalError) and ("locked" in str(own) or "busy" in str(own))
    return type(driver).__name__ in ("OperationalError", "InterfaceError") and isinstance(error, StorageInternalError)


def _first_line(error: BaseException) -> str:
    return mask_password(str(error.__cause__ or error).splitlines()[0])


class PatientStorage(RDBStorage):
    """Storage whose every transaction is tried again while it is locked or away. Failed ones leave nothing behind."""

    patience = Patience()


def _patiently(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: PatientStorage, *args: Any, **kwargs: Any) -> Any:
        return self.patience.call(lambda: method(self, *args, **kwargs))

    return call


for _name, _method in vars(RDBStorage).items():
    if "_create_scoped_session" in getattr(getattr(_method, "__code__", None), "co_names", ()):
        setattr(PatientStorage, _name, _patiently(_method))


def own_file(storage: str) -> Path | None:
    """Return the SQLite file in the study's folder. None if the user named another storage."""
    path = storage.removeprefix("sqlite:///")
    return Path(path) if path != storage and path.endswith("/study.db") else None


def open_storage(storage: str, patience: Patience | None = None) -> RDBStorage:
    """Open a storage. A file's path is no part of an address, so that it may hold `?`, `%20` and `#`."""
    path = own_file(storage)
    options: dict[str, Any] = {"pool_pre_ping": True}  # a server drops connections that idle through a long trial
    if path is not None:
        options = {"creator": lambda: _connect(path)}
    own = patience or Patience()
    try:
        opened = own.call(lambda: PatientStorage("sqlite:///study.db" if path else storage, engine_kwargs=options))
    except Exception as error:  # every driver has its own errors, and SQLAlchemy passes them on
        raise EnvironmentFaultError(
            f"the study's storage cannot be opened: {_first_line(error)}",
            hint=f"install it beside tuner: pip install {error.name}"
            if isinstance(error, ModuleNotFoundError)
            else "check --storage; the default is a SQLite file in the study's folder",
        ) from error
    opened.patience = own
    return opened


def _connect(path: Path) -> sqlite3.Connection:
    """Connect to a file, in WAL mode so that readers such as optuna-dashboard lock nobody out."""
    connection = sqlite3.connect(path, timeout=1.0, check_same_thread=False)
    with suppress(sqlite3.OperationalError):  # locked just now, or a file system without shared memory
        connection.execute("PRAGMA journal_mode=WAL")
    return connection


def refuse_taken(plan: StudyPlan) -> None:
    """Open the storage of a new study before its plan is written. Raises UsageError if another one has its name."""
    if own_file(plan.storage) is None and plan.study in optuna.get_all_study_names(open_storage(plan.storage)):
        raise _taken(plan)


def _taken(plan: StudyPlan) -> UsageError:
    return UsageError(
        f"the storage holds another Optuna study with the name {plan.study!r}",
        hint="choose another name with --study, or another --storage",
    )


@storage_errors()
def open_study(plan: StudyPlan, patience: Patience | None = None) -> optuna.Study:
    """Open the Optuna study, or make it. Raises UsageError if it belongs to another study."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_storage(plan.storage, patience)
    names = optuna.get_all_study_names(storage) if own_file(plan.storage) else []
    name = names[0] if len(names) == 1 else plan.study  # of a renamed study, the file has the old name
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize", load_if_exists=True)
    mark = study.user_attrs.get(_MARK)
    foreign = mark != plan.created_at if mark else _is_of_others(study)
    if foreign:
        raise _taken(plan)
    if mark is None:
        study.set_user_attr(_MARK, plan.created_at)
    return study


def claim(plan: StudyPlan, folder: Path) -> None:
    """Note in a storage outside the study's folder which folder uses it. Raises UsageError if another one does: a copy
    of a study has the same name, and would write into the original's."""
    if own_file(plan.storage) is not None:
        return
    study = open_study(plan)
    noted = study.user_attrs.get(_FOLDER)
    if noted not in (None, str(folder)) and _is_there(plan, Path(noted)):
        raise UsageError(
            f"the storage belongs to {noted}, of which {folder} is a copy",
            hint="rename the copy's folder: a study of another name gets an Optuna study of its own",
        )
    study.set_user_attr(_FOLDER, str(folder))


def _is_there(plan: StudyPlan, folder: Path) -> bool:
    try:
        return read_plan(folder / "plan.json").created_at == plan.created_at
    except (OSError, TornFileError):
        return False


def _is_of_others(study: optuna.Study) -> bool:
    """Return True if trials of an unmarked study are not tuner's: none has a role."""
    attributes = [TrialAttributes.read(trial.user_attrs) for trial in study.get_trials(deepcopy=False)]
    return bool(attributes) and all(known.role is None for known in attributes)


def reopened(study: optuna.Study, frozen: FrozenTrial) -> Trial:
    """Return the handle of an earlier process's trial. Optuna 5.0 has no public way: `ask` only makes new trials,
    and `tell` with a number sets no constraints. A test holds that the private constructor does this."""
    return Trial(study, frozen._trial_id)
