"""Ways to choose the next start, under one interface. The product's own search is run whole, in run.py.

| method | what it stands for |
|---|---|
| random | uniform over flags as a user would write them: lists of powers of two, not adapted to vLLM's rules |
| auto_tune | the order of vLLM's auto_tune.sh: the highest gpu-memory-utilization that starts at the largest corner of its grid, from 0.98 down to 0.90, then sequences × token budget, nested |
| tpe-fail | those flags, TPE, FAIL for a refused start: auto-tuning-vllm, and vllm-optimizer but for its limits, which an open-loop rate has in it |
| tpe-constraints | our encoding of the space, Optuna's default TPE, a violated constraint for a refused start |
| gp | best practice for GPs (docs/search.md): our encoding, five seeds, three constraints, neutral imputation of refusals |
"""  # noqa: E501

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from typing import Protocol

import optuna
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import Trial, TrialState

from tuner.candidate import Candidate, Value
from tuner.space.parameter import Kind, Parameter
from tuner.study.plan import StudyPlan
from tuner.study.seeds import seeds
from tuner.study.setting import StudySetting
from tuner.vllm.defaults import vllm_defaults

from .landscapes import VLLM, Landscape
from .machine import Seen

UTILIZATIONS = (0.98, 0.97, 0.96, 0.95, 0.94, 0.93, 0.92, 0.91, 0.90)
NAMES = ("random", "auto_tune", "tpe-fail", "tpe-constraints", "gp", "ours")
"""Methods that can be run. Results also hold `before`, our search up to part 3: Optuna's GP on eight parameters."""

REPEATS = 20
"""Number of already known proposals in a row after which the next one is started again."""


class Method(Protocol):
    def ask(self) -> Candidate | None:
        """Propose a candidate. None if there is nothing more to try."""
        ...

    def tell(self, seen: Seen) -> None:
        """Report the result of the last proposal."""
        ...


def method(name: str, landscape: Landscape, plan: StudyPlan, seed: int) -> Method:
    match name:
        case "random":
            return RandomRaw(plan, seed)
        case "auto_tune":
            return AutoTune()
        case "tpe-fail":
            return TpeFail(plan, seed)
        case "tpe-constraints":
            return Encoded(plan, TPESampler(seed=seed), ())
        case _:
            defaults = vllm_defaults(VLLM, landscape.gpus)
            enqueued = [_placed(plan, Candidate(), defaults)]
            enqueued += [_placed(plan, c, defaults) for c in seeds(StudySetting.of(plan, defaults, landscape.gpus))]
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                sampler = GPSampler(seed=seed, n_startup_trials=10, warn_independent_sampling=False)
            return Encoded(plan, sampler, enqueued)


def written(parameter: Parameter) -> tuple[Value, ...]:
    """List the values that a user would write: powers of two, and the ends."""
    match parameter.kind:
        case Kind.CHOICE:
            return parameter.choices
        case Kind.FLAG:
            return (False, True)
        case Kind.FLOAT:
            low, high = parameter.axis
            return tuple(v for v in (0.80, 0.85, 0.90, 0.92, 0.95, 0.97) if low <= v <= high)
        case _:
            low, high = (math.log2(end) for end in parameter.axis)
            powers = [2**power for power in range(math.ceil(low), math.floor(high) + 1)]
            return tuple(sorted({*powers, *(int(end) for end in parameter.axis)}))


class RandomRaw:
    def __init__(self, plan: StudyPlan, seed: int) -> None:
        self._plan = plan
        self._rng = random.Random(seed)

    def ask(self) -> Candidate:
        values = {p.flag: self._rng.choice(written(p)) for p in self._plan.parameters}
        return Candidate.of({**dict(self._plan.space.fixed), **values})

    def tell(self, seen: Seen) -> None:
        pass


class AutoTune:
    """Grid of 4 × 6 points in the order of vLLM's auto_tune.sh.

    `memory` are the values of `memory_flag`, tried downwards until the largest corner of the grid starts. Below the
    last it gives up, as the script does below 0.90.
    """

    def __init__(
        self,
        memory_flag: str = "gpu-memory-utilization",
        memory: Sequence[Value] = UTILIZATIONS,
        sequences: Sequence[int] = (64, 128, 256, 512),
        budgets: Sequence[int] = (512, 1024, 2048, 4096, 8192, 16384),
    ) -> None:
        self._memory_flag = memory_flag
        self._memory = iter(memory)
        self._fits: Value | None = None
        self._largest = sequences[-1], budgets[-1]
        self._grid = iter([(s, b) for s in sequences for b in budgets])
        self._started = False

    def ask(self) -> Candidate | None:
        found = next(self._grid, None) if self._started else self._largest
        if not self._started:
            self._fits = next(self._memory, None)
        if found is None or self._fits is None:
            return None
        values = {"max-num-seqs": found[0], "max-num-batched-tokens": found[1], self._memory_flag: self._fits}
        return Candidate.of(values)

    def tell(self, seen: Seen) -> None:
        self._started = self._started or not seen.refused


class TpeFail:
    """TPE that gets FAIL for a refused start. The default is started first, as auto-tuning-vllm's baseline is."""

    def __init__(self, plan: StudyPlan, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._plan = plan
        self._study = optuna.create_study(direction="maximize", sampler=TPESampler(seed=seed))
        self._trial: Trial | None = None
        self._began = False

    def ask(self) -> Candidate:
        if not self._began:
            self._began = True
            return self._plan.baseline
        self._trial = self._study.ask()
        values = dict(self._plan.space.fixed)
        for parameter in self._plan.parameters:
            value = self._trial.suggest_categorical(parameter.flag, written(parameter))
            assert value is not None
            values[parameter.flag] = value
        return Candidate.of(values)

    def tell(self, seen: Seen) -> None:
        if self._trial is None:
            return
        if seen.refused:
            self._study.tell(self._trial, state=TrialState.FAIL)
        else:
            self._study.tell(self._trial, seen.rate or 0.0)


Feedback = tuple[float, tuple[float, float, float]]


class Encoded:
    """Proposals on our axes, clipped to vLLM's argument rules. A repeat is answered from memory."""

    def __init__(self, plan: StudyPlan, sampler: BaseSampler, enqueued: Sequence[dict[str, float]]) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._plan = plan
        self._neutral = isinstance(sampler, GPSampler)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        for numbers in enqueued:
            self._study.enqueue_trial(numbers)
        self._known: dict[Candidate, Feedback] = {}
        self._measured: list[tuple[list[float], Feedback]] = []
        self._trial: Trial | None = None
        self._candidate = Candidate()

    def ask(self) -> Candidate:
        repeats = 0
        while True:
            self._trial = self._study.ask()
            values = {p.flag: p.decode(_suggest(self._trial, p)) for p in self._plan.parameters}
            self._candidate = self._plan.space.candidate(values, self._plan.given)
            if self._candidate not in self._known or repeats == REPEATS:
                return self._candidate
            self._tell(self._known[self._candidate])
            repeats += 1

    def tell(self, seen: Seen) -> None:
        assert self._trial is not None
        here = [self._trial.params[p.flag] / (p.axis[1] - p.axis[0]) for p in self._plan.parameters]
        if seen.refused:
            feedback = self._refused(here)
        else:
            feedback = (seen.rate or 0.0, (-1.0, -0.05 if seen.rate else 2.0, min(-0.02, (seen.kv_usage or 0.0) - 1.0)))
            self._measured.append((here, feedback))
        self._known[self._candidate] = feedback
        self._tell(feedback)

    def _refused(self, here: list[float]) -> Feedback:
        if not self._measured:
            return 0.0, (1.0, 0.0, -0.02)
        if self._neutral:
            value, constraints = min(self._measured, key=lambda m: math.dist(m[0], here))[1]
        else:
            value, constraints = min(feedback for _, feedback in self._measured)
        return value, (1.0, *constraints[1:])

    def _tell(self, feedback: Feedback) -> None:
        assert self._trial is not None
        for name, constraint in zip(("start", "slo", "preemption"), feedback[1], strict=True):
            self._trial.set_constraint(name, constraint)
        self._study.tell(self._trial, feedback[0])


def _suggest(trial: Trial, parameter: Parameter) -> float:
    low, high = parameter.axis
    if parameter.kind in (Kind.CHOICE, Kind.FLAG):
        return trial.suggest_int(parameter.flag, int(low), int(high))
    return trial.suggest_float(parameter.flag, low, high, log=parameter.kind is Kind.LOG_INT)


def _placed(plan: StudyPlan, candidate: Candidate, defaults: dict[str, Value]) -> dict[str, float]:
    """Place a candidate on the axes."""
    values = {**defaults, **candidate.as_dict()}
    return {
        p.flag: int(p.encode(values[p.flag])) if p.kind in (Kind.CHOICE, Kind.FLAG) else p.encode(values[p.flag])
        for p in plan.parameters
    }
