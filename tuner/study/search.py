"""The adapter to Optuna, its only importer: ask(), tell(record). optuna-dashboard shows vLLM's own flag names."""

from __future__ import annotations

import importlib.util
import math
import os
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, Self

import optuna
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from tuner.candidate import Candidate, Value
from tuner.errors import EnvironmentFaultError
from tuner.space.axis import ParameterAxis
from tuner.study.feedback import CONSTRAINTS, Feedback, feedback_for, not_started
from tuner.study.learnt import FlagLimit, LearntRule, bounds, known_rules
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.setting import StudySetting

STARTUP_TRIALS = 7
"""Trials before the model proposes, default and seeds included. With all seeds none is random. Ten found less in
twenty starts (docs/search.md)."""

REPEATS_BEFORE_RANDOM = 8
"""Useless proposals in a row before a random point."""

LOCAL_STEP_EVERY = 3
"""Period of the proposals that perturb the best candidate. Away from data a GP falls back to the mean of what it has
seen. Once most trials are good, unexplored corners look as good as real improvements (docs/search.md)."""

STEP_SD = 0.12
"""Standard deviation of a local step, as a range's share."""

MOVED_SHARE = 0.5
"""Share of the parameters that a local step moves."""

RANDOM_DRAWS = 300
"""Draws for a point that is neither known nor excluded."""


class SamplerName(StrEnum):
    GP = "GP"
    TPE = "TPE"


def sampler_name() -> SamplerName:
    """Choose the GP sampler with torch, else TPE. The two are level after 10 starts."""
    return SamplerName.GP if importlib.util.find_spec("torch") else SamplerName.TPE


@dataclass(frozen=True, slots=True)
class Proposal:
    """Candidate to start next. `number` is Optuna's trial number; `newly_applied` are rules used for the first time."""

    number: int
    role: Role
    candidate: Candidate
    newly_applied: tuple[LearntRule, ...] = ()


@dataclass(frozen=True, slots=True)
class _Attributes:
    """User attributes of an Optuna trial, from which a resumed search is rebuilt. None is not written.

    Args:
        again: Whether the candidate was started before and is queued once more.
        ruled_out: Rule for which the candidate was answered without a start.
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
def _storage_errors() -> Iterator[None]:
    """Turn a driver's error into a fault of the machine."""
    try:
        yield
    except StorageInternalError as error:
        raise EnvironmentFaultError(
            f"the study's storage does not work: {str(error.__cause__ or error).splitlines()[0]}",
            hint="see who else uses it and whether its disk is full, then go on with: tuner resume STUDY",
        ) from error


class Search:
    """One Optuna study. Not thread-safe: one coordinator asks and tells, however many servers it keeps busy."""

    def __init__(self, setting: StudySetting, seeds: Iterable[Candidate]) -> None:
        plan = setting.plan
        self._plan = plan
        self._setting = setting
        self._records: dict[int, TrialRecord] = {}
        self._rules: tuple[LearntRule, ...] = ()
        self._saved: Counter[str] = Counter()
        self._axes = tuple(ParameterAxis(parameter) for parameter in plan.parameters)
        self._known: dict[str, Feedback | None] = {}
        self._measured: list[tuple[tuple[float, ...], Feedback]] = []
        self._asked: dict[int, tuple[Trial, Candidate]] = {}
        self._study = _open(plan)
        self._study.sampler = _sampler(plan.seed + len(self._study.trials))
        if not self._study.trials:
            self._enqueue(plan.baseline, Role.DEFAULT)
            for candidate in seeds:
                self._enqueue(candidate, Role.SEED)

    @_storage_errors()
    def restore(self, records: Iterable[TrialRecord]) -> None:
        """Resume a study from its finished and interrupted trials."""
        by_number = {r.search_trial: r for r in records if r.search_trial is not None}
        self._records = {r.trial: r for r in by_number.values()}
        for frozen in self._study.get_trials(deepcopy=False):
            attributes = _Attributes.read(frozen.user_attrs)
            record = by_number.get(frozen.number)
            if frozen.state is TrialState.RUNNING:
                trial = _reopened(self._study, frozen)
                self._asked[frozen.number] = (trial, self._candidate(trial))
                if record is not None and record.counts:
                    self.tell(record)
                else:
                    self.requeue(frozen.number)
            elif record is not None:
                self._remember(self._axis_point(frozen.params), record)
            elif attributes.ruled_out is not None and frozen.state is TrialState.COMPLETE:
                assert frozen.value is not None
                self._saved[attributes.ruled_out] += 1
                start, slo, preemption = (frozen.constraints[name] for name in CONSTRAINTS)
                candidate = Candidate.of(attributes.flags or {})
                self._known[candidate.id] = Feedback(frozen.value, (start, slo, preemption), imputed=True)
        self._learn()

    @_storage_errors()
    def ask(self) -> Proposal:
        """Choose the next candidate, untried and allowed by the rules. Raises SpaceExhaustedError if the sampler
        finds no other."""
        newly_applied: list[LearntRule] = []
        for answered in range(REPEATS_BEFORE_RANDOM + 1):
            last = answered == REPEATS_BEFORE_RANDOM
            if (numbers := self._local_or_random_step(answered)) is not None:
                self._study.enqueue_trial(numbers)
            trial = self._study.ask()
            candidate = self._candidate(trial)
            attributes = _Attributes.read(trial.user_attrs)
            role = attributes.purpose
            repeat = candidate.id in self._known or any(c == candidate for _, c in self._asked.values())
            if repeat and not attributes.again:
                self._tell(trial, self._known.get(candidate.id))
                continue
            # If all that is left is ruled out, the rules are put to the test: a refused start costs little.
            rule = None if last or role is Role.DEFAULT else self._rule_violated_by(candidate)
            if rule is not None:
                if not self._saved[str(rule)]:
                    newly_applied.append(rule)
                self._skip(trial, role, candidate, rule)
                continue
            self._asked[trial.number] = (trial, candidate)
            _Attributes(role=role, flags=dict(candidate.values)).write(trial)
            return Proposal(trial.number, role, candidate, tuple(newly_applied))
        raise SpaceExhaustedError

    @_storage_errors()
    def tell(self, record: TrialRecord) -> None:
        """Take in the finished trial of a proposal."""
        assert record.search_trial is not None
        trial, _ = self._asked.pop(record.search_trial)
        answer = self._remember(self._axis_point(trial.params), record)
        _Attributes(outcome=record.outcome, trial=record.trial).write(trial)
        self._tell(trial, answer)
        self._records[record.trial] = record
        self._learn()
        if record.role is Role.SEED and record.outcome is TrialOutcome.REFUSED:
            self._clip_seed_to_bounds(record.candidate)

    @_storage_errors()
    def requeue(self, number: int) -> None:
        """Queue an unanswered proposal for another start. It was interrupted, or the machine was at fault."""
        trial, _ = self._asked.pop(number)
        attributes = _Attributes(role=_Attributes.read(trial.user_attrs).purpose, again=True)
        self._study.enqueue_trial(trial.params, user_attrs=attributes.written)
        self._study.tell(trial, state=TrialState.FAIL)

    @property
    def learnt(self) -> tuple[LearntRule, ...]:
        """Rules so far, each with its number of saved starts."""
        return tuple(replace(rule, saved=self._saved[str(rule)]) for rule in self._rules)

    def _learn(self) -> None:
        self._rules = known_rules(self._setting, self._records.values())

    def _rule_violated_by(self, candidate: Candidate) -> LearntRule | None:
        values = self._setting.values(candidate)
        return next((r for r in self._rules if r.withdrawn_by is None and r.rules_out(values)), None)

    def _local_or_random_step(self, answered: int) -> dict[str, float] | None:
        """Return a point to queue before the sampler is asked. None if the model or the queue comes next. `answered`
        proposals in a row led nowhere."""
        if answered == REPEATS_BEFORE_RANDOM:
            return self._untried_point(ParameterAxis.drawn)
        return self._local_step() if answered == 0 else None

    def _local_step(self) -> dict[str, float] | None:
        """Step away from the best so far, if it is due."""
        trials = self._study.get_trials(deepcopy=False)
        feasible = (r for r in self._records.values() if r.qps is not None)
        best = max(feasible, key=lambda r: r.qps or 0.0, default=None)
        queued = any(t.state is TrialState.WAITING for t in trials)
        if best is None or queued or len(trials) < STARTUP_TRIALS or len(trials) % LOCAL_STEP_EVERY:
            return None
        values = self._setting.values(best.candidate)

        def near(axis: ParameterAxis, draw: random.Random) -> float:
            here = axis.number(values.get(axis.parameter.flag))
            return axis.stepped(here, STEP_SD, draw) if draw.random() < MOVED_SHARE else here

        return self._untried_point(near)

    def _untried_point(self, number: Callable[[ParameterAxis, random.Random], float]) -> dict[str, float] | None:
        """Draw an untried point that the rules allow. None if hardly any is left."""
        draw = random.Random(self._plan.seed + len(self._study.trials))
        for _ in range(RANDOM_DRAWS):
            numbers = {a.parameter.flag: number(a, draw) for a in self._axes}
            values = {a.parameter.flag: a.parameter.decode(numbers[a.parameter.flag]) for a in self._axes}
            candidate = self._setting.candidate(values)
            asked = any(c == candidate for _, c in self._asked.values())
            if candidate.id not in self._known and not asked and self._rule_violated_by(candidate) is None:
                return numbers
        return None

    def _skip(self, trial: Trial, role: Role, candidate: Candidate, rule: LearntRule) -> None:
        """Answer a proposal as refused, without a start."""
        self._saved[str(rule)] += 1
        answer = not_started(self._nearest(self._axis_point(trial.params)))
        self._known[candidate.id] = answer
        _Attributes(role=role, flags=dict(candidate.values), ruled_out=str(rule)).write(trial)
        self._tell(trial, answer)
        if role is Role.SEED:
            self._clip_seed_to_bounds(candidate)

    def _clip_seed_to_bounds(self, seed: Candidate) -> None:
        """Queue a seed again at the bound of vLLM's message."""
        beyond = {limit.flag: limit for limit in bounds(self._rules, self._setting.values(seed))}
        numeric = (a for a in self._axes if a.parameter.flag in beyond and not a.parameter.choices)
        moved = {a.parameter.flag: _within(a, beyond[a.parameter.flag]) for a in numeric}
        candidate = self._setting.candidate({**seed.as_dict(), **moved})
        if candidate.id not in self._known and self._rule_violated_by(candidate) is None:
            self._enqueue(candidate, Role.SEED)

    def _enqueue(self, candidate: Candidate, role: Role) -> None:
        values = self._setting.values(candidate)
        numbers = {a.parameter.flag: a.number(values.get(a.parameter.flag)) for a in self._axes}
        self._study.enqueue_trial(numbers, user_attrs=_Attributes(role=role).written)

    def _candidate(self, trial: Trial) -> Candidate:
        with warnings.catch_warnings():
            # Optuna's GP divides 0 by 0 if no other point comes near the best one it sees, and goes on from that.
            warnings.simplefilter("ignore", RuntimeWarning)
            values = {a.parameter.flag: a.parameter.decode(_suggest(trial, a)) for a in self._axes}
        if _Attributes.read(trial.user_attrs).purpose is Role.DEFAULT:
            return self._plan.baseline
        return self._setting.candidate(values)

    def _axis_point(self, params: dict[str, float]) -> tuple[float, ...]:
        return tuple(a.share(float(params[a.parameter.flag])) for a in self._axes)

    def _remember(self, point: tuple[float, ...], record: TrialRecord) -> Feedback | None:
        answer = feedback_for(record, self._nearest(point))
        if answer is not None:
            self._known[record.candidate.id] = answer
            if not answer.imputed:
                self._measured.append((point, answer))
        return answer

    def _nearest(self, point: tuple[float, ...]) -> Feedback | None:
        return min(self._measured, key=lambda m: math.dist(m[0], point), default=(point, None))[1]

    def _tell(self, trial: Trial, answer: Feedback | None) -> None:
        if answer is None:
            self._study.tell(trial, state=TrialState.FAIL)
            return
        _Attributes(imputed=answer.imputed).write(trial)
        for name, value in zip(CONSTRAINTS, answer.constraints, strict=True):
            trial.set_constraint(name, value)
        self._study.tell(trial, answer.value)


class SpaceExhaustedError(Exception):
    """End of a small space without untried candidates."""


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
    """Import torch for one thread, for small matrices. Servers must not inherit the setting."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        importlib.import_module("torch")
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _suggest(trial: Trial, axis: ParameterAxis) -> float:
    low, high = axis.ends
    if axis.is_discrete:
        return trial.suggest_int(axis.parameter.flag, int(low), int(high))
    # Integers as floats, rounded on decoding: Optuna's GP searches long integer axes point by point.
    return trial.suggest_float(axis.parameter.flag, low, high, log=axis.is_log)


def _within(axis: ParameterAxis, limit: FlagLimit) -> Value:
    """Return the nearest value within a limit."""
    values = list(axis.inwards(limit.value, -1 if limit.relation == ">" else 1))
    return next((value for value in values if not limit.holds(value)), values[0])


def _reopened(study: optuna.Study, frozen: FrozenTrial) -> Trial:
    """Return the handle of an earlier process's trial. Optuna 5.0 has no public way: `ask` only makes new trials,
    and `tell` with a number sets no constraints. A test holds that the private constructor does this."""
    return Trial(study, frozen._trial_id)
