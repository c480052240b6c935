"""The only importer of optuna: ask(), tell(record). Whatever vLLM flag a trial has, it has in optuna-dashboard too."""

from __future__ import annotations

import importlib.util
import math
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

import optuna
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import Trial, TrialState

from tuner.candidate import Candidate, Value
from tuner.errors import EnvironmentFaultError
from tuner.space.parameter import Kind, Parameter
from tuner.study.outcome import CONSTRAINTS, Told, told
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialRecord

STARTUP_TRIALS = 10
"""Trials before the model proposes, the enqueued ones included (search.md section 4)."""

REPEATS_BEFORE_RANDOM = 8
"""A sampler that keeps proposing what is known already is answered from memory this often, then bypassed."""


class SamplerName(StrEnum):
    GP = "GP"
    TPE = "TPE"


def sampler_name() -> SamplerName:
    """Optuna's GPSampler needs torch; about 2 % better than TPE after 40 starts, level after 10 (search.md 3)."""
    return SamplerName.GP if importlib.util.find_spec("torch") else SamplerName.TPE


@dataclass(frozen=True, slots=True)
class Proposal:
    """`number` is Optuna's trial number."""

    number: int
    role: Role
    candidate: Candidate


@contextmanager
def _storage_errors() -> Iterator[None]:
    """Whatever the driver: a full disk, or a database that somebody locks for good, is the machine's fault."""
    try:
        yield
    except StorageInternalError as error:
        raise EnvironmentFaultError(
            f"the study's storage does not work: {str(error.__cause__ or error).splitlines()[0]}",
            hint="see who else uses it and whether its disk is full, then go on with: tuner resume STUDY",
        ) from error


class Search:
    """One Optuna study. Not thread-safe: one coordinator asks and tells, whatever number of servers it keeps busy."""

    def __init__(self, plan: StudyPlan, seeds: Iterable[Candidate], defaults: dict[str, Value]) -> None:
        self._plan = plan
        self._parameters = plan.parameters
        self._given = {**dict(plan.space.always), **dict(plan.given)}
        self._known: dict[str, Told | None] = {}
        self._measured: list[tuple[tuple[float, ...], Told]] = []
        self._asked: dict[int, tuple[Trial, Candidate]] = {}
        self._study = _open(plan)
        self._study.sampler = _sampler(plan.seed + len(self._study.trials))
        if not self._study.trials:
            self._enqueue(plan.baseline, Role.DEFAULT, defaults)
            for candidate in seeds:
                self._enqueue(candidate, Role.SEED, defaults)

    @_storage_errors()
    def restore(self, records: Iterable[TrialRecord]) -> None:
        """Takes up a study that was left: what was finished is told, what was interrupted is queued again."""
        by_number = {r.search_trial: r for r in records if r.search_trial is not None}
        for frozen in self._study.get_trials(deepcopy=False):
            trial = Trial(self._study, frozen._trial_id)
            record = by_number.get(frozen.number)
            if frozen.state is TrialState.RUNNING:
                candidate = self._candidate(trial)
                self._asked[frozen.number] = (trial, candidate)
                if record is not None:
                    self.tell(record)
                else:
                    self.again(frozen.number)
            elif record is not None:
                self._remember(self._axis_point(frozen.params), record)

    @_storage_errors()
    def ask(self) -> Proposal:
        """The next candidate to start, never one that was started before."""
        for attempt in range(REPEATS_BEFORE_RANDOM * 2):
            if attempt == REPEATS_BEFORE_RANDOM:
                self._study.sampler = optuna.samplers.RandomSampler(seed=self._plan.seed + len(self._study.trials))
            trial = self._study.ask()
            candidate = self._candidate(trial)
            role = Role(trial.user_attrs.get("role", Role.SEARCH))
            repeat = candidate.id in self._known or any(c == candidate for _, c in self._asked.values())
            if repeat and not trial.user_attrs.get("again"):
                self._tell(trial, self._known.get(candidate.id))
                continue
            if attempt >= REPEATS_BEFORE_RANDOM:
                self._study.sampler = _sampler(self._plan.seed + len(self._study.trials))
            self._asked[trial.number] = (trial, candidate)
            trial.set_user_attr("role", role)
            trial.set_user_attr("flags", dict(candidate.values))
            return Proposal(trial.number, role, candidate)
        raise SpaceExhaustedError

    @_storage_errors()
    def tell(self, record: TrialRecord) -> None:
        """Hands over a finished trial; the record must name the proposal's number in `search_trial`."""
        assert record.search_trial is not None
        trial, _ = self._asked.pop(record.search_trial)
        answer = self._remember(self._axis_point(trial.params), record)
        trial.set_user_attr("outcome", record.outcome)
        trial.set_user_attr("trial", record.trial)
        self._tell(trial, answer)

    @_storage_errors()
    def again(self, number: int) -> None:
        """Gives a proposal back unanswered (interrupted, or the machine's fault): it is queued for another start."""
        trial, _ = self._asked.pop(number)
        attributes = {"role": trial.user_attrs.get("role", Role.SEARCH), "again": True}
        self._study.enqueue_trial(trial.params, user_attrs=attributes)
        self._study.tell(trial, state=TrialState.FAIL)

    def _enqueue(self, candidate: Candidate, role: Role, defaults: dict[str, Value]) -> None:
        values = {**defaults, **candidate.as_dict()}
        numbers = {p.flag: _number_for(p, values.get(p.flag)) for p in self._parameters}
        self._study.enqueue_trial(numbers, user_attrs={"role": role})

    def _candidate(self, trial: Trial) -> Candidate:
        values = {p.flag: p.decode(_suggest(trial, p)) for p in self._parameters}
        if trial.user_attrs.get("role") == Role.DEFAULT:
            return self._plan.baseline
        return self._plan.space.candidate(values, self._given)

    def _axis_point(self, params: dict[str, float]) -> tuple[float, ...]:
        return tuple(_unit(p, float(params[p.flag])) for p in self._parameters)

    def _remember(self, point: tuple[float, ...], record: TrialRecord) -> Told | None:
        answer = told(record, self._nearest(point))
        if answer is not None:
            self._known[record.candidate.id] = answer
            if not answer.imputed:
                self._measured.append((point, answer))
        return answer

    def _nearest(self, point: tuple[float, ...]) -> Told | None:
        return min(self._measured, key=lambda m: math.dist(m[0], point), default=(point, None))[1]

    def _tell(self, trial: Trial, answer: Told | None) -> None:
        if answer is None:
            self._study.tell(trial, state=TrialState.FAIL)
            return
        trial.set_user_attr("imputed", answer.imputed)
        for name, value in zip(CONSTRAINTS, answer.constraints, strict=True):
            trial.set_constraint(name, value)
        self._study.tell(trial, answer.value)


class SpaceExhaustedError(Exception):
    """Every candidate that the sampler comes up with was started already: the space is small and known."""


def _open(plan: StudyPlan) -> optuna.Study:
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


def _sampler(seed: int) -> BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if sampler_name() is SamplerName.TPE:
            return TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
        _import_torch_on_one_thread()
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS, warn_independent_sampling=False)


def _import_torch_on_one_thread() -> None:
    """Small matrices are faster on one thread; the servers that we start must not inherit the setting."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        importlib.import_module("torch")
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _suggest(trial: Trial, parameter: Parameter) -> float:
    low, high = parameter.axis
    if parameter.kind in (Kind.CHOICE, Kind.FLAG):
        return trial.suggest_int(parameter.flag, int(low), int(high))
    # Integers as floats, rounded on decoding: the GP searches long integer axes point by point (search.md 1.3).
    return trial.suggest_float(parameter.flag, low, high, log=parameter.kind is Kind.LOG_INT)


def _number_for(parameter: Parameter, value: Value | None) -> float:
    low, high = parameter.axis
    if value is None:
        return math.sqrt(low * high) if parameter.kind is Kind.LOG_INT else (low + high) / 2
    number = parameter.encode(value)
    return int(number) if parameter.kind in (Kind.CHOICE, Kind.FLAG) else number


def _unit(parameter: Parameter, number: float) -> float:
    low, high = parameter.axis
    if parameter.kind is Kind.LOG_INT:
        low, high, number = math.log(low), math.log(high), math.log(number)
    return (number - low) / (high - low) if high > low else 0.0
