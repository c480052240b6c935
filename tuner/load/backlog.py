"""Test for a queue that grows without end."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tuner.load.drive import LevelProgress

FEWEST_S = 10.0
FEWEST_SHARE = 0.25
"""Least share of a level's time, beside FEWEST_S. A long level absorbs a burst."""
FEWEST_POINTS = 10
"""Fewest points of a slope. After a late first request or a pause, time alone makes none."""

RECENT = 20
SURE = 3.0
"""Standard errors of a slope above zero. Not 2, since neighbouring points are not independent."""

SPACING_S = 0.5
GROWTH = 1.2
"""Growth over the observed time, in means. A line from nothing has 2; a steady queue wanders too."""

LEAST_GROWTH = 5.0
"""Least growth, in requests or milliseconds. Less is no backlog, however sure."""


@dataclass(slots=True)
class Backlog:
    """Detector for one open-loop level, given every `LevelProgress`.

    The rule is GuideLLM's (slopes of both, with a margin). A mean wait below `tolerated_ms` is no backlog, however
    it grew. Near its capacity a queue wanders for longer than a probe lasts, and neighbouring points look like a
    slope.
    """

    level_s: float
    tolerated_ms: float
    _next_s: float = 0.0
    _at_s: list[float] = field(default_factory=list)
    _in_flight: list[float] = field(default_factory=list)
    _ttft_ms: list[float] = field(default_factory=list)

    def grows(self, progress: LevelProgress) -> bool:
        recent = [*progress.ttft_ms[-RECENT:], *progress.unanswered_ms]
        if not recent or progress.elapsed_s < self._next_s:
            return False
        self._next_s = progress.elapsed_s + SPACING_S
        self._at_s.append(progress.elapsed_s)
        self._in_flight.append(progress.in_flight)
        self._ttft_ms.append(float(np.mean(recent)))
        if self._ttft_ms[-1] < self.tolerated_ms:
            return False
        if progress.elapsed_s < max(FEWEST_S, FEWEST_SHARE * self.level_s) or len(self._at_s) < FEWEST_POINTS:
            return False
        at_s = np.asarray(self._at_s)
        return all(_grows(at_s, np.asarray(values)) for values in (self._in_flight, self._ttft_ms))


def _grows(at_s: NDArray[np.float64], values: NDArray[np.float64]) -> bool:
    """Fit ordinary least squares. The residuals give the slope's standard error."""
    centred = at_s - at_s.mean()
    spread = float((centred**2).sum())
    slope = float((centred * values).sum()) / spread
    residuals = values - values.mean() - slope * centred
    error = math.sqrt(float((residuals**2).sum()) / max(len(values) - 2, 1) / spread)
    growth = slope * float(at_s[-1] - at_s[0])
    return slope > SURE * error and growth > max(GROWTH * float(values.mean()), LEAST_GROWTH)
