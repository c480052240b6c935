"""The only importer of optuna: ask(), tell(record). Whatever vLLM flag a trial has, it has in optuna-dashboard too."""

from __future__ import annotations

import importlib.util
import math
import os
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum

import optuna
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import Trial, TrialState

from tuner.candidate import Candidate, Value
from tuner.errors import EnvironmentFaultError
from tuner.space.parameter import Kind, Parameter
from tuner.study.feedback import CONSTRAINTS, Feedback, feedback_for, not_started
from tuner.study.learnt import FlagLimit, LearntRule, bounds, known_rules
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.setting import StudySetting

STARTUP_TRIALS = 7
"""Trials before the model proposes, the enqueued ones included: with all seeds none is random. Ten, as in search.md
section 4, found less in twenty starts (docs/search.md)."""

REPEATS_BEFORE_RANDOM = 8
"""A sampler that keeps proposing what is known already, or ruled out, is answered this often, then bypassed."""

A_STEP_EVERY = 3
"""Proposals after the first: the model's mean where nothing was tried is the mean of what was, so that it looks into
corners once most of what was tried is good. Every third is a step away from the best instead (docs/search.md)."""

STEP_SD = 0.12
"""Of a step in one parameter, as a share of its range; about half of the parameters move."""

RANDOM_DRAWS = 300
"""Points that are looked at, without a start, for one that is neither known nor ruled out."""


class SamplerName(StrEnum):
    GP = "GP"
    TPE = "TPE"


def sampler_name() -> SamplerName:
    """Optuna's GPSampler needs torch; about 2 % better than TPE after 40 starts, level after 10 (search.md 3)."""
    return SamplerName.GP if importlib.util.find_spec("torch") else SamplerName.TPE


@dataclass(frozen=True, slots=True)
class Proposal:
    """`number` is Optuna's trial number; `first_spared` are rules that spared their first start just before."""

    number: int
    role: Role
    candidate: Candidate
    first_spared: tuple[LearntRule, ...] = ()


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
    """One Optuna study. Not thread-safe: one coordinator asks and tells, whatever number of servers it keeps busy.

    `defaults` are vLLM's own values; `gpus` those of the servers, none on a CPU.
    """

    def __init__(self, setting: StudySetting, seeds: Iterable[Candidate]) -> None:
        plan = setting.plan
        self._plan = plan
        self._setting = setting
        self._records: dict[int, TrialRecord] = {}
        self._rules: tuple[LearntRule, ...] = ()
        self._spared: Counter[str] = Counter()
        self._parameters = plan.parameters
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
        """Takes up a study that was left: what was finished is told, what was interrupted is queued again."""
        by_number = {r.search_trial: r for r in records if r.search_trial is not None}
        self._records = {r.trial: r for r in by_number.values()}
        for frozen in self._study.get_trials(deepcopy=False):
            trial = Trial(self._study, frozen._trial_id)
            record = by_number.get(frozen.number)
            if frozen.state is TrialState.RUNNING:
                candidate = self._candidate(trial)
                self._asked[frozen.number] = (trial, candidate)
                if record is not None:
                    self.tell(record)
                else:
                    self.requeue(frozen.number)
            elif record is not None:
                self._remember(self._axis_point(frozen.params), record)
            elif (rule := frozen.user_attrs.get("ruled_out")) and frozen.state is TrialState.COMPLETE:
                assert frozen.value is not None
                self._spared[rule] += 1
                start, slo, preemption = (frozen.constraints[name] for name in CONSTRAINTS)
                candidate = Candidate.of(frozen.user_attrs["flags"])
                self._known[candidate.id] = Feedback(frozen.value, (start, slo, preemption), imputed=True)
        self._learn()

    @_storage_errors()
    def ask(self) -> Proposal:
        """The next candidate to start, never one that was started before, nor one that a rule learnt rules out."""
        first_spared: list[LearntRule] = []
        for answered in range(REPEATS_BEFORE_RANDOM + 1):
            last = answered == REPEATS_BEFORE_RANDOM
            if (numbers := self._instead_of_the_model(answered)) is not None:
                self._study.enqueue_trial(numbers)
            trial = self._study.ask()
            candidate = self._candidate(trial)
            role = Role(trial.user_attrs.get("role", Role.SEARCH))
            repeat = candidate.id in self._known or any(c == candidate for _, c in self._asked.values())
            if repeat and not trial.user_attrs.get("again"):
                self._tell(trial, self._known.get(candidate.id))
                continue
            # Where all that is left is ruled out, the rules are put to the test: that a start is refused costs little.
            rule = None if last or role is Role.DEFAULT else self._against(candidate)
            if rule is not None:
                if not self._spared[str(rule)]:
                    first_spared.append(rule)
                self._spare(trial, role, candidate, rule)
                continue
            self._asked[trial.number] = (trial, candidate)
            trial.set_user_attr("role", role)
            trial.set_user_attr("flags", dict(candidate.values))
            return Proposal(trial.number, role, candidate, tuple(first_spared))
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
        self._records[record.trial] = record
        self._learn()
        if record.role is Role.SEED and record.outcome is TrialOutcome.REFUSED:
            self._mend(record.candidate)

    @_storage_errors()
    def requeue(self, number: int) -> None:
        """Gives a proposal back unanswered (interrupted, or the machine's fault): it is queued for another start."""
        trial, _ = self._asked.pop(number)
        attributes = {"role": trial.user_attrs.get("role", Role.SEARCH), "again": True}
        self._study.enqueue_trial(trial.params, user_attrs=attributes)
        self._study.tell(trial, state=TrialState.FAIL)

    @property
    def learnt(self) -> tuple[LearntRule, ...]:
        """What refused starts and the first start's log have taught so far, and what each rule spared."""
        return tuple(replace(rule, spared=self._spared[str(rule)]) for rule in self._rules)

    def _learn(self) -> None:
        self._rules = known_rules(self._setting, self._records.values())

    def _against(self, candidate: Candidate) -> LearntRule | None:
        values = self._setting.values(candidate)
        return next((r for r in self._rules if r.withdrawn_by is None and r.rules_out(values)), None)

    def _instead_of_the_model(self, answered: int) -> dict[str, float] | None:
        """None: the model is to propose, or what is queued comes next. `answered` of its proposals led nowhere."""
        if answered == REPEATS_BEFORE_RANDOM:
            return self._unknown(_random_number)
        return self._a_step() if answered == 0 else None

    def _a_step(self) -> dict[str, float] | None:
        """From the best so far, if it is its turn and nothing is queued."""
        trials = self._study.get_trials(deepcopy=False)
        feasible = (r for r in self._records.values() if r.qps is not None)
        best = max(feasible, key=lambda r: r.qps or 0.0, default=None)
        queued = any(t.state is TrialState.WAITING for t in trials)
        if best is None or queued or len(trials) < STARTUP_TRIALS or len(trials) % A_STEP_EVERY:
            return None
        values = self._setting.values(best.candidate)
        here = {p.flag: _number_for(p, values.get(p.flag)) for p in self._parameters}
        return self._unknown(lambda p, draw: _moved(p, here[p.flag], draw) if draw.random() < 0.5 else here[p.flag])

    def _unknown(self, number: Callable[[Parameter, random.Random], float]) -> dict[str, float] | None:
        """A drawn point that nothing is known of and no rule is against; None where there are hardly any left."""
        draw = random.Random(self._plan.seed + len(self._study.trials))
        for _ in range(RANDOM_DRAWS):
            numbers = {p.flag: number(p, draw) for p in self._parameters}
            values = {p.flag: p.decode(numbers[p.flag]) for p in self._parameters}
            candidate = self._setting.candidate(values)
            asked = any(c == candidate for _, c in self._asked.values())
            if candidate.id not in self._known and not asked and self._against(candidate) is None:
                return numbers
        return None

    def _spare(self, trial: Trial, role: Role, candidate: Candidate, rule: LearntRule) -> None:
        """Answered like a refused start, but for the start."""
        self._spared[str(rule)] += 1
        answer = not_started(self._nearest(self._axis_point(trial.params)))
        self._known[candidate.id] = answer
        trial.set_user_attr("role", role)
        trial.set_user_attr("flags", dict(candidate.values))
        trial.set_user_attr("ruled_out", str(rule))
        self._tell(trial, answer)
        if role is Role.SEED:
            self._mend(candidate)

    def _mend(self, seed: Candidate) -> None:
        """A seed that is beyond a bound of vLLM's own message is queued once more, at that bound."""
        beyond = {limit.flag: limit for limit in bounds(self._rules, self._setting.values(seed))}
        moved = {p.flag: _up_to(p, beyond[p.flag]) for p in self._parameters if p.flag in beyond and not p.choices}
        candidate = self._setting.candidate({**seed.as_dict(), **moved})
        if candidate.id not in self._known and self._against(candidate) is None:
            self._enqueue(candidate, Role.SEED)

    def _enqueue(self, candidate: Candidate, role: Role) -> None:
        values = self._setting.values(candidate)
        numbers = {p.flag: _number_for(p, values.get(p.flag)) for p in self._parameters}
        self._study.enqueue_trial(numbers, user_attrs={"role": role})

    def _candidate(self, trial: Trial) -> Candidate:
        with warnings.catch_warnings():
            # Optuna's GP divides 0 by 0 where no other point comes near the best one it sees, and goes on from that.
            warnings.simplefilter("ignore", RuntimeWarning)
            values = {p.flag: p.decode(_suggest(trial, p)) for p in self._parameters}
        if trial.user_attrs.get("role") == Role.DEFAULT:
            return self._plan.baseline
        return self._setting.candidate(values)

    def _axis_point(self, params: dict[str, float]) -> tuple[float, ...]:
        return tuple(_unit(p, float(params[p.flag])) for p in self._parameters)

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


def _up_to(parameter: Parameter, limit: FlagLimit) -> Value:
    """The value nearest to `limit` that is not beyond it."""
    low, high = parameter.axis
    at = parameter.encode(limit.value)
    inwards = -1 if limit.relation == ">" else 1
    steps = (parameter.decode(min(max(at + inwards * share * (high - low), low), high)) for share in (0.0, 0.01, 0.02))
    return next((value for value in steps if not limit.holds(value)), parameter.decode(at))


def _moved(parameter: Parameter, number: float, draw: random.Random) -> float:
    low, high = parameter.axis
    if parameter.kind in (Kind.CHOICE, Kind.FLAG):
        return min(max(int(number) + draw.choice((-1, 1)), int(low)), int(high))
    if parameter.kind is Kind.LOG_INT:
        return min(max(number * math.exp(math.log(high / low) * draw.gauss(0.0, STEP_SD)), low), high)
    return min(max(number + (high - low) * draw.gauss(0.0, STEP_SD), low), high)


def _random_number(parameter: Parameter, draw: random.Random) -> float:
    low, high = parameter.axis
    if parameter.kind in (Kind.CHOICE, Kind.FLAG):
        return draw.randint(int(low), int(high))
    if parameter.kind is Kind.LOG_INT:
        return min(max(math.exp(draw.uniform(math.log(low), math.log(high))), low), high)
    return draw.uniform(low, high)


def _unit(parameter: Parameter, number: float) -> float:
    low, high = parameter.axis
    if parameter.kind is Kind.LOG_INT:
        low, high, number = math.log(low), math.log(high), math.log(number)
    return (number - low) / (high - low) if high > low else 0.0
