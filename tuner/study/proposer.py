"""Choice of the next candidate: what it may gain, times the chances that it starts and keeps the limits, a minute."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tuner.candidate import Candidate
from tuner.measurement import LoadKind
from tuner.space.axis import ParameterAxis
from tuner.study.compile_cache import Cache, compile_key
from tuner.study.feedback import feedback_for
from tuner.study.forecast import start_s
from tuner.study.may_start import MayStart
from tuner.study.mechanics import Mechanics
from tuner.study.record import TrialOutcome, TrialRecord
from tuner.study.setting import StudySetting
from tuner.study.surrogate import Seen, Surrogate, expected_improvement

DRAWN, NEAR = 1000, 100
"""Candidates drawn over the whole space, and near each of the best."""
BEST = 5
STEPS = (0.15, 0.05, 0.015)
"""Standard deviations of steps, as shares of a range."""
MOVED_SHARE = 0.5
"""Share of the parameters that a step moves."""

ALIKE = 0.004
"""Distance, as a share of every axis, within which a candidate tells nothing new."""

MEASURED_SD, ESTIMATED_SD = 0.01, 0.04
"""Relative standard deviations of a search's figure, and of what a lost race tells."""

Numbers = dict[str, float]


@dataclass(frozen=True, slots=True)
class _Option:
    numbers: Numbers
    candidate: Candidate


class Proposer:
    """Proposals from a study's records alone."""

    def __init__(self, setting: StudySetting, axes: Sequence[ParameterAxis]) -> None:
        self._setting = setting
        self._axes = axes

    def propose(
        self,
        records: Sequence[TrialRecord],
        running: Sequence[Candidate],
        allowed: Callable[[Candidate], bool],
        seed: int,
    ) -> Numbers | None:
        """Return the axis numbers of the best candidate that is `allowed`. None if there is none."""
        mechanics = Mechanics(self._setting, self._axes, records)
        seen = _seen(self._setting, mechanics, records)
        options = self._options(records, allowed, random.Random(seed))
        if not options:
            return None
        starts = MayStart(self._setting, self._axes, records, mechanics)
        chances = np.array([starts.probability(option.candidate) for option in options])
        if not seen:
            return options[int(chances.argmax())].numbers
        views = [mechanics.view(option.candidate) for option in options]
        surrogate = Surrogate(seen, _full(mechanics, records), seed)
        places = np.array([view.place for view in (*views, *(s.view for s in seen))])
        surrogate.fit((places.min(axis=0), places.max(axis=0)))
        mean, sd = surrogate.predict(views)
        replicas = np.log([self._setting.plan.layout_of(option.candidate).replicas for option in options])
        if any(r.qps is not None for r in records if r.role.searches):
            gain = expected_improvement(mean + replicas, sd, surrogate.best)
        else:
            gain = np.exp(mean + replicas - (mean + replicas).max())
        gain = np.where(surrogate.nearest(views) < ALIKE, 1e-9 * gain, gain)
        minutes = _minutes(records, [option.candidate for option in options], chances)
        return options[int((gain * chances / minutes).argmax())].numbers

    def _options(
        self, records: Sequence[TrialRecord], allowed: Callable[[Candidate], bool], draw: random.Random
    ) -> list[_Option]:
        found: dict[str, _Option] = {}

        def add(numbers: Numbers) -> None:
            candidate = self._setting.candidate({f: p.decode(numbers[f]) for f, p in parameters.items()})
            if candidate.id not in found and allowed(candidate):
                found[candidate.id] = _Option(numbers, candidate)

        parameters = {axis.parameter.flag: axis.parameter for axis in self._axes}
        for _ in range(DRAWN):
            add({axis.parameter.flag: axis.drawn(draw) for axis in self._axes})
        ranked = sorted((r for r in records if r.qps is not None), key=lambda r: -(r.qps or 0.0))[:BEST]
        for record in ranked:
            values = self._setting.values(record.candidate)
            here = {axis.parameter.flag: axis.number(values.get(axis.parameter.flag)) for axis in self._axes}
            for step in range(NEAR):
                sd = STEPS[step % len(STEPS)]
                moved = {axis: draw.random() < MOVED_SHARE for axis in self._axes}
                add({axis.parameter.flag: _stepped(axis, here[axis.parameter.flag], sd, draw) if moves
                     else here[axis.parameter.flag] for axis, moves in moved.items()})  # fmt: skip
        return list(found.values())


def _stepped(axis: ParameterAxis, number: float, sd: float, draw: random.Random) -> float:
    """Draw a number near another. Of choices each is as near as the others."""
    return axis.drawn(draw) if axis.is_discrete else axis.stepped(number, sd, draw)


def _seen(setting: StudySetting, mechanics: Mechanics, records: Iterable[TrialRecord]) -> list[Seen]:
    """Return the figures of the search."""
    found = []
    for record in records:
        if not record.role.searches:
            continue
        feedback = feedback_for(record, None)
        if feedback is None or feedback.imputed or feedback.value <= 0:
            continue
        level = record.best_level
        offered = level.load.level if level is not None and level.load.kind is LoadKind.CLOSED else None
        sd = ESTIMATED_SD if record.outcome is TrialOutcome.BEHIND else MEASURED_SD
        replicas = setting.plan.layout_of(record.candidate).replicas
        found.append(Seen(mechanics.view(record.candidate, offered), feedback.value / replicas, sd, replicas))
    return found


def _minutes(
    records: Sequence[TrialRecord], candidates: Sequence[Candidate], chances: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Forecast what each candidate costs: a cold or a warm start with its load, or a refused one."""
    compiled = {compile_key(r.candidate) for r in records if r.start.got_ready}
    cold_s, warm_s = start_s(records, Cache.COLD), start_s(records, Cache.WARM)
    ready_s = np.array([warm_s if compile_key(candidate) in compiled else cold_s for candidate in candidates])
    spent = [(r.outcome, r.start.phases) for r in records if r.role.searches and r.counts]
    loads = [phases.spent_s - (phases.start_s or 0.0) for _, phases in spent if phases.warm_up_s is not None]
    refusals = [phases.spent_s for outcome, phases in spent if outcome is TrialOutcome.REFUSED]
    refused_s = float(np.median(refusals)) if refusals else cold_s
    load_s = float(np.median(loads)) if loads else 0.0
    return np.asarray((chances * (ready_s + load_s) + (1 - chances) * refused_s) / 60 + 1e-9)


def _full(mechanics: Mechanics, records: Iterable[TrialRecord]) -> list[tuple[tuple[float, ...], float]]:
    """Return the terms and the figures of full servers: closed loops, whatever limits they broke."""
    found = []
    for record in records:
        if not record.role.searches:
            continue
        values = [(level.measurement.load.level, level.measurement.qps) for level in record.levels
                  if level.measurement.load.kind is LoadKind.CLOSED]  # fmt: skip
        if record.capacity is not None and record.capacity.saturation > 0:
            values.append((None, record.capacity.saturation))
        found += [(mechanics.view(record.candidate, offered).full, qps) for offered, qps in values if qps]
    return found
