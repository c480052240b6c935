"""Gaussian process of what a study measures, on top of a mean that the physics of a server gives."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from tuner.study.mechanics import View, fitted

LENGTHS = (0.1, 3.0)
"""Bounds of a length scale, in shares of the axis."""

SPREADS = (0.03, 2.0)
"""Bounds of the standard deviation of log QPS around the mean. The least of them keeps a few alike figures from passing
for knowledge of what was not tried."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Figure of a candidate: requests/s of one of its servers, with the relative standard deviation."""

    view: View
    qps: float
    sd: float
    replicas: int = 1


class Surrogate:
    """Model of log QPS."""

    def __init__(self, seen: Sequence[Seen], full: Sequence[tuple[tuple[float, ...], float]], seed: int) -> None:
        places = _matrix([s.view.place for s in seen])
        self._qps = np.array([s.qps for s in seen])
        rows = [(s.view.terms, s.qps) for s in seen] + list(full)
        self._constants = fitted(_matrix([terms for terms, _ in rows]), np.array([qps for _, qps in rows]))
        self._low, self._range = places.min(axis=0), np.maximum(np.ptp(places, axis=0), 1e-9)
        self._seed = seed
        self._seen = seen
        self._process: GaussianProcessRegressor | None = None

    def fit(self, ends: tuple[NDArray[np.float64], NDArray[np.float64]]) -> None:
        self._low, self._range = ends[0], np.maximum(ends[1] - ends[0], 1e-9)
        rest = np.log(self._qps) - self.mean([s.view for s in self._seen])
        self._shift = float(np.mean(rest))
        spread = float(np.clip(np.std(rest), *SPREADS))
        kernel = ConstantKernel(spread**2, (SPREADS[0] ** 2, SPREADS[1] ** 2)) * Matern([1.0] * len(self._low), LENGTHS, nu=2.5)
        noise = np.array([s.sd**2 for s in self._seen])
        self._process = GaussianProcessRegressor(kernel, alpha=noise, n_restarts_optimizer=1, random_state=self._seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._process.fit(self._scaled([s.view for s in self._seen]), rest - self._shift)

    def mean(self, views: Sequence[View]) -> NDArray[np.float64]:
        terms = _matrix([v.terms for v in views]) @ self._constants
        return -np.log(np.maximum(terms, 1e-9))

    def predict(self, views: Sequence[View]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return mean and standard deviation of log QPS."""
        assert self._process is not None
        rest, sd = self._process.predict(self._scaled(views), return_std=True)
        return self.mean(views) + self._shift + rest, sd

    @property
    def best(self) -> float:
        """Return the log QPS of the best machine, as the model sees it. The highest of many figures reads high."""
        mean, _ = self.predict([s.view for s in self._seen])
        return float((mean + np.log([s.replicas for s in self._seen])).max())

    def nearest(self, views: Sequence[View]) -> NDArray[np.float64]:
        """Return how far each view is from what was seen, as a share of the axes."""
        there = self._scaled([s.view for s in self._seen])
        return np.array([np.abs(there - here).max(axis=1).min() for here in self._scaled(views)])

    def _scaled(self, views: Sequence[View]) -> NDArray[np.float64]:
        return (_matrix([v.place for v in views]) - self._low) / self._range


def expected_improvement(mean: NDArray[np.float64], sd: NDArray[np.float64], best: float) -> NDArray[np.float64]:
    """Return the expected rise above `best`."""
    sd = np.maximum(sd, 1e-9)
    z = (mean - best) / sd
    return np.asarray(sd * (z * norm.cdf(z) + norm.pdf(z)))


def _matrix(rows: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    return np.array(rows, dtype=np.float64)
