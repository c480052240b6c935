"""What Optuna's storage keeps of a study: its trials, and all that a resumed search is rebuilt from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Self

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, Trial

from tuner.candidate import Value
from tuner.errors import EnvironmentFaultError
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome


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
            f"the study's storage does not work: {str(error.__cause__ or error).splitlines()[0]}",
            hint="see who else uses it and whether its disk is full, then go on with: tuner resume STUDY",
        ) from error


def open_study(plan: StudyPlan) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        return optuna.create_study(
            study_name=plan.study, storage=plan.storage, direction="maximize", load_if_exists=True
        )
    except Exception as error:  # every driver has its own errors, and SQLAlchemy passes them on
        raise EnvironmentFaultError(
            f"the study's storage cannot be opened: {str(error).splitlines()[0]}",
            hint="check --storage; the default is a SQLite file in the study's folder",
        ) from error


def reopened(study: optuna.Study, frozen: FrozenTrial) -> Trial:
    """Return the handle of an earlier process's trial. Optuna 5.0 has no public way: `ask` only makes new trials,
    and `tell` with a number sets no constraints. A test holds that the private constructor does this."""
    return Trial(study, frozen._trial_id)
