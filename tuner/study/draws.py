"""Points that are drawn without the model: near a candidate, or anywhere in the space."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tuner.candidate import Candidate
from tuner.space.axis import ParameterAxis
from tuner.study.setting import SERVER_SIZES, StudySetting

STEP_SD = 0.12
"""Standard deviation of a local step, as a range's share."""

MOVED_SHARE = 0.5
"""Share of the parameters that a local step moves. The layout stays: with another one, nothing is near."""

RANDOM_DRAWS = 300
"""Draws for a point that may be proposed."""


@dataclass(frozen=True, slots=True)
class Draws:
    """Draws of points on the axes of a space."""

    setting: StudySetting
    axes: Sequence[ParameterAxis]

    def anywhere(self, accept: Callable[[Candidate], bool], draw: random.Random) -> dict[str, float] | None:
        """Draw a point whose candidate is accepted. None if hardly any is left."""
        return self._point(ParameterAxis.drawn, accept, draw)

    def near(
        self, center: Candidate, accept: Callable[[Candidate], bool], draw: random.Random
    ) -> dict[str, float] | None:
        """Draw a step away from a candidate. None if hardly any is accepted."""
        values = self.setting.values(center)

        def moved(axis: ParameterAxis, draw: random.Random) -> float:
            here = axis.number(values.get(axis.parameter.flag))
            if axis.parameter.flag in SERVER_SIZES:
                return here
            return axis.stepped(here, STEP_SD, draw) if draw.random() < MOVED_SHARE else here

        return self._point(moved, accept, draw)

    def _point(
        self,
        number: Callable[[ParameterAxis, random.Random], float],
        accept: Callable[[Candidate], bool],
        draw: random.Random,
    ) -> dict[str, float] | None:
        for _ in range(RANDOM_DRAWS):
            numbers = {axis.parameter.flag: number(axis, draw) for axis in self.axes}
            values = {axis.parameter.flag: axis.parameter.decode(numbers[axis.parameter.flag]) for axis in self.axes}
            if accept(self.setting.candidate(values)):
                return numbers
        return None
