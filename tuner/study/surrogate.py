"""Gaussian process of what a study measures, on top of a mean that the physics of a server gives."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from tuner.study.mechanics import View, fitted

Array = NDArray[np.float64]

LENGTHS = (0.1, 3.0)
"""Bounds of a length scale, in shares of the axis."""

SPREADS = (0.03, 2.0)
"""Bounds of the standard deviation of log QPS around the mean. The least of them keeps a few alike figures from passing
for knowledge of what was not tried."""

_MARGIN_SD = 0.1
"""Standard deviation of a limit's margin, a difference of logarithms, between two starts of one candidate."""

_LARGEST_MARGIN = 1.0
"""Margin beyond which a limit is just far away. A larger one would hide what happens near the limit."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Figure of a candidate: requests/s of one of its `replicas`, with the relative standard deviation. It keeps all
    limits if it `is_feasible`."""

    view: View
    qps: float
    sd: float
    replicas: int
    is_feasible: bool = True


@dataclass(frozen=True, slots=True)
class FullServer:
    """Figure of a full server: the terms of its 1 / QPS, and its QPS."""

    terms: tuple[float, ...]
    qps: float


@dataclass(frozen=True, slots=True)
class Ends:
    """First and last place on each axis."""

    low: Array
    high: Array

    @classmethod
    def of(cls, views: Sequence[View]) -> Ends:
        places = _matrix([view.place for view in views])
        return cls(places.min(axis=0), places.max(axis=0))

    def shares(self, views: Sequence[View]) -> Array:
        """Return the places as shares of the axes."""
        places = _matrix([view.place for view in views])
        return np.asarray((places - self.low) / np.maximum(self.high - self.low, 1e-9))


def full_servers(known: Sequence[float]) -> list[FullServer]:
    """Return figures that say of each constant what an earlier study found, and nothing of the others. Each has the
    weight of one start, so that a study's own figures soon outweigh them."""
    rows = np.eye(len(known))
    return [FullServer(tuple(row / constant), 1.0) for row, constant in zip(rows, known, strict=True) if constant > 0]


def constants(seen: Sequence[Seen], full: Sequence[FullServer]) -> Array:
    """Fit the constants of 1 / QPS to figures of both kinds, at least one."""
    terms = _matrix([*(s.view.terms for s in seen), *(f.terms for f in full)])
    return fitted(terms, np.array([*(s.qps for s in seen), *(f.qps for f in full)]))


class Surrogate:
    """Model of log QPS of one server."""

    def __init__(self, seen: Sequence[Seen], full: Sequence[FullServer], ends: Ends, seed: int) -> None:
        self._seen, self._ends = list(seen), ends
        self._constants = constants(seen, full)
        rest = self._rest()
        self._shift = float(rest.mean())
        spread = float(np.clip(np.std(rest), *SPREADS))
        self._process = _Process(self._places(), rest - self._shift, self._variances(), spread, seed)

    def imagine(self, views: Sequence[View]) -> None:
        """Take what is being measured for seen, just as expected. What comes next is then something else."""
        if views:
            mean, _ = self.predict(views)
            self._seen += [Seen(view, math.exp(log), 0.01, 1) for view, log in zip(views, mean, strict=True)]
            self._process.condition(self._places(), self._rest() - self._shift, self._variances())

    def predict(self, views: Sequence[View]) -> tuple[Array, Array]:
        """Return mean and standard deviation of log QPS."""
        rest, sd = self._process.predict(self._ends.shares(views))
        return self._mean(views) + self._shift + rest, sd

    @property
    def best(self) -> float:
        """Return the log QPS of the best machine, as the model sees it. The highest of many figures reads high."""
        feasible = [s for s in self._seen if s.is_feasible]
        mean, _ = self.predict([s.view for s in feasible])
        return float((mean + np.log([s.replicas for s in feasible])).max())

    def distance(self, views: Sequence[View]) -> Array:
        """Return how far each view is from what was seen, in the largest share of an axis."""
        there = self._places()
        return np.array([np.abs(there - here).max(axis=1).min() for here in self._ends.shares(views)])

    def _mean(self, views: Sequence[View]) -> Array:
        return np.asarray(-np.log(np.maximum(_matrix([v.terms for v in views]) @ self._constants, 1e-9)))

    def _rest(self) -> Array:
        return np.asarray(np.log([s.qps for s in self._seen]) - self._mean([s.view for s in self._seen]))

    def _places(self) -> Array:
        return self._ends.shares([s.view for s in self._seen])

    def _variances(self) -> Array:
        return np.array([s.sd**2 for s in self._seen])


def chance_to_keep(views: Sequence[View], measured: Sequence[tuple[View, float]], ends: Ends, seed: int) -> Array:
    """Return the probability that each view keeps a limit, given the margins that were measured. They are kept at or
    below 0. It is 1 as long as none was broken."""
    margins = np.clip([margin for _, margin in measured], -_LARGEST_MARGIN, _LARGEST_MARGIN)
    if not len(margins) or margins.max() <= 0:
        return np.ones(len(views))
    middle, places = margins.mean(), ends.shares([view for view, _ in measured])
    noise = np.full(len(margins), _MARGIN_SD**2)
    process = _Process(places, margins - middle, noise, max(float(margins.std()), _MARGIN_SD), seed)
    mean, sd = process.predict(ends.shares(views))
    return np.asarray(norm.cdf(-(mean + middle) / np.maximum(sd, 1e-9)))


def expected_improvement(mean: Array, sd: Array, best: float) -> Array:
    """Return the expected rise above `best`."""
    sd = np.maximum(sd, 1e-9)
    z = (mean - best) / sd
    return np.asarray(sd * (z * norm.cdf(z) + norm.pdf(z)))


class _Process:
    """Gaussian process of scikit-learn around 0, with a length scale for each axis."""

    def __init__(self, places: Array, values: Array, variances: Array, spread: float, seed: int) -> None:
        # It takes a second to import, and commands that search nothing should not wait for it.
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern

        bounds = (SPREADS[0] ** 2, SPREADS[1] ** 2)
        kernel = ConstantKernel(spread**2, bounds) * Matern([1.0] * places.shape[1], LENGTHS, nu=2.5)
        self._process = GaussianProcessRegressor(kernel, alpha=variances, n_restarts_optimizer=1, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a length at its bound: an axis that changes nothing
            self._process.fit(places, values)

    def condition(self, places: Array, values: Array, variances: Array) -> None:
        """Take these values in place of the former, with the kernel as it is."""
        self._process.set_params(kernel=self._process.kernel_, alpha=variances, optimizer=None).fit(places, values)

    def predict(self, places: Array) -> tuple[Array, Array]:
        mean, sd = self._process.predict(places, return_std=True)
        return np.asarray(mean), np.asarray(sd)


def _matrix(rows: Sequence[Sequence[float]]) -> Array:
    return np.array(rows, dtype=np.float64)
