"""Choice of the next candidate: what it may gain, times the chances that it starts and keeps the limits, a minute."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tuner.bench.level import lowest
from tuner.candidate import Candidate
from tuner.measurement import LoadKind
from tuner.space.axis import ParameterAxis
from tuner.study.compile_cache import Cache, compile_key
from tuner.study.feedback import feedback_for
from tuner.study.forecast import start_s
from tuner.study.may_start import MayStart
from tuner.study.mechanics import Mechanics, View
from tuner.study.record import TrialOutcome, TrialRecord
from tuner.study.setting import StudySetting
from tuner.study.surrogate import (
    Array,
    Ends,
    FullServer,
    Seen,
    Surrogate,
    chance_to_keep,
    constants,
    expected_improvement,
    full_servers,
)

DRAWN, NEAR, BEST = 1000, 100, 5
"""Candidates drawn over the whole space, and near each of the best ones."""

STEPS = (0.15, 0.05, 0.015)
"""Standard deviations of steps from the best, as shares of a range."""

MOVED_SHARE = 0.5
"""Share of the parameters that a step moves."""

ALIKE = 0.004
"""Distance, as a share of every axis, within which a candidate tells nothing new."""

REFUSED_SHARE = 0.5
"""Least cost of a refused start, as a share of a whole one's."""

MEASURED_SD, BEHIND_SD = 0.01, 0.4
"""Relative standard deviations of a search's figure, and of how far behind a lost race says that a candidate is
(docs/measuring.md, Lost races)."""

Numbers = dict[str, float]


@dataclass(frozen=True, slots=True)
class _Option:
    numbers: Numbers
    candidate: Candidate


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the search's trials say: figures within limits, of full servers, and the margins of each limit."""

    figures: tuple[Seen, ...]
    full: tuple[FullServer, ...]
    slo: tuple[tuple[View, float], ...]
    preemption: tuple[tuple[View, float], ...]
    has_feasible: bool


class Proposer:
    """Proposals from a study's records alone."""

    def __init__(self, setting: StudySetting, axes: Sequence[ParameterAxis]) -> None:
        self._setting = setting
        self._axes = axes
        begun = setting.plan.begins_with
        self._earlier = full_servers(begun.constants) if begun else []

    def constants(self, records: Iterable[TrialRecord]) -> tuple[float, ...]:
        """Fit the constants of 1 / QPS. Empty if nothing was measured."""
        searched = [record for record in records if record.role.searches and record.counts]
        seen = self._seen(Mechanics(self._setting, self._axes, searched), searched)
        return tuple(map(float, constants(seen.figures, seen.full))) if seen.figures or seen.full else ()

    def propose(
        self,
        records: Sequence[TrialRecord],
        running: Iterable[Candidate],
        allowed: Callable[[Candidate], bool],
        seed: int,
    ) -> Numbers | None:
        """Return the axis numbers of the best candidate that is `allowed`, beside those that are `running`. None if
        there is none."""
        records = [record for record in records if record.role.searches and record.counts]
        options = self._options(records, allowed, random.Random(seed))
        if not options:
            return None
        candidates = [option.candidate for option in options]
        mechanics = Mechanics(self._setting, self._axes, records)
        starts = MayStart(self._setting, self._axes, records, mechanics)
        chances = starts.probabilities(candidates, seed)
        seen = self._seen(mechanics, records)
        if not seen.figures:
            return options[int(chances.argmax())].numbers
        best = max(records, key=lambda record: record.qps or 0.0)
        offered = _offered(best)  # of a ladder, candidates are compared at the level that leads
        views = [mechanics.view(candidate, offered) for candidate in candidates]
        beside = [mechanics.view(candidate, offered) for candidate in running]
        gain = self._gain(seen, views, beside, candidates, seed)
        minutes = _minutes(records, candidates, chances)
        return options[int((gain * chances / minutes).argmax())].numbers

    def _gain(
        self, seen: _Seen, views: list[View], beside: list[View], candidates: list[Candidate], seed: int
    ) -> Array:
        """Return what each candidate may gain if it starts, as a share of the best, limits considered."""
        ends = Ends.of([*views, *beside, *(s.view for s in seen.figures)])
        surrogate = Surrogate(seen.figures, [*seen.full, *self._earlier], ends, seed)
        surrogate.imagine(beside)
        mean, sd = surrogate.predict(views)
        mean = mean + np.log([self._setting.plan.layout_of(candidate).replicas for candidate in candidates])
        gain = expected_improvement(mean, sd, surrogate.best) if seen.has_feasible else np.exp(mean - mean.max())
        for margins in (seen.slo, seen.preemption):
            gain = gain * chance_to_keep(views, margins, ends, seed)
        return np.where(surrogate.distance(views) < ALIKE, 1e-9 * gain, gain)

    def _options(
        self, records: Sequence[TrialRecord], allowed: Callable[[Candidate], bool], draw: random.Random
    ) -> list[_Option]:
        found: dict[str, _Option] = {}

        def add(numbers: Numbers) -> None:
            values = {axis.parameter.flag: axis.parameter.decode(numbers[axis.parameter.flag]) for axis in self._axes}
            candidate = self._setting.candidate(values)
            if candidate.id not in found and allowed(candidate):
                found[candidate.id] = _Option(numbers, candidate)

        for _ in range(DRAWN):
            add({axis.parameter.flag: axis.drawn(draw) for axis in self._axes})
        feasible = [record for record in records if record.qps is not None]
        for record in sorted(feasible, key=lambda record: -(record.qps or 0.0))[:BEST]:
            values = self._setting.values(record.candidate)
            here = {axis.parameter.flag: axis.number(values.get(axis.parameter.flag)) for axis in self._axes}
            for step in range(NEAR):
                sd = STEPS[step % len(STEPS)]
                moved = {axis: draw.random() < MOVED_SHARE for axis in self._axes}
                add({axis.parameter.flag: _stepped(axis, here[axis.parameter.flag], sd, draw) if moves
                     else here[axis.parameter.flag] for axis, moves in moved.items()})  # fmt: skip
        return list(found.values())

    def _seen(self, mechanics: Mechanics, records: Iterable[TrialRecord]) -> _Seen:
        figures: list[Seen] = []
        full: list[FullServer] = []
        slo: list[tuple[View, float]] = []
        preemption: list[tuple[View, float]] = []
        for record in records:
            full += _full(mechanics, record)
            feedback = feedback_for(record, None)
            if feedback is None or feedback.imputed or feedback.value <= 0:
                continue
            offered = _offered(record)
            view = mechanics.view(record.candidate, offered)
            slo.append((view, feedback.constraints[1]))
            preemption.append((view, feedback.constraints[2]))
            if offered is None and record.outcome is TrialOutcome.INFEASIBLE:
                continue  # in an open loop it completed no more than was sent
            replicas = self._setting.plan.layout_of(record.candidate).replicas
            sd = math.hypot(MEASURED_SD, BEHIND_SD * _behind(record, feedback.value))
            is_feasible = max(feedback.constraints) <= 0
            figures.append(Seen(view, feedback.value / replicas, sd, replicas, is_feasible))
        feasible = any(record.qps is not None for record in records)
        return _Seen(tuple(figures), tuple(full), tuple(slo), tuple(preemption), feasible)


def _stepped(axis: ParameterAxis, number: float, sd: float, draw: random.Random) -> float:
    """Draw a number near another. Of choices each is as near as the others."""
    return axis.drawn(draw) if axis.is_discrete else axis.stepped(number, sd, draw)


def _offered(record: TrialRecord) -> float | None:
    """Return the concurrent requests of the level that counts. None in an open loop."""
    level = record.best_level or getattr(lowest(record.levels), "measurement", None)
    return level.load.level if level is not None and level.load.kind is LoadKind.CLOSED else None


def _behind(record: TrialRecord, qps: float) -> float:
    """Return how far behind the best a lost race says that a candidate is, as a logarithm. 0 if it was measured."""
    if record.outcome is not TrialOutcome.BEHIND or record.incumbent is None:
        return 0.0
    return math.log(record.replicas * record.incumbent.rate / qps)


def _full(mechanics: Mechanics, record: TrialRecord) -> list[FullServer]:
    """Return the figures of full servers: closed loops, whatever limits they broke."""
    found: list[tuple[float | None, float | None]] = [
        (level.measurement.load.level, level.measurement.qps)
        for level in record.levels
        if level.measurement.load.kind is LoadKind.CLOSED
    ]
    if record.capacity is not None:
        found.append((None, record.capacity.saturation))
    return [FullServer(mechanics.view(record.candidate, offered).full, qps) for offered, qps in found if qps]


def _minutes(records: Sequence[TrialRecord], candidates: Sequence[Candidate], chances: Array) -> Array:
    """Forecast what each candidate costs: a cold or a warm start with its load, or a refused start. The latter counts
    as at least a part of a whole one, since it is one of the planned starts too."""
    compiled = {compile_key(record.candidate) for record in records if record.start.got_ready}
    cold_s, warm_s = start_s(records, Cache.COLD), start_s(records, Cache.WARM)
    ready_s = np.array([warm_s if compile_key(candidate) in compiled else cold_s for candidate in candidates])
    phases = [record.start.phases for record in records if record.start.got_ready]
    refusals = [r.start.phases.spent_s for r in records if r.outcome is TrialOutcome.REFUSED]
    load_s = float(np.median([phase.spent_s - (phase.start_s or 0.0) for phase in phases])) if phases else 0.0
    refused_s = float(np.median(refusals)) if refusals else cold_s
    whole_s = ready_s + load_s
    return np.asarray((chances * whole_s + (1 - chances) * np.maximum(refused_s, REFUSED_SHARE * whole_s)) / 60 + 1e-9)
