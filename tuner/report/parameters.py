"""Effect of each flag on QPS, over feasible measured trials. Nothing is imputed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from tuner.candidate import Candidate, Value
from tuner.flagwords import as_number
from tuner.layout import FLAGS, split_layout
from tuner.report.tables import StudyFiles
from tuner.space.parameter import Kind, Parameter
from tuner.study.plan import StudyPlan
from tuner.study.record import TrialRecord

ENOUGH = 12
"""Feasible trials below which a flag's weight would be noise."""
BINS = 4
LAYOUT = "layout"
"""Name of the parameter that stands for all flags of a layout."""


class SliceRow(NamedTuple):
    trial: int
    flag: str
    value: Value
    qps: float


class WeightRow(NamedTuple):
    """Weight of a flag. `explained` is the share of the variance of QPS ranks between groups of like values, 0..1.
    `trend` is Spearman's rank correlation of the value with QPS. None for values without an order."""

    flag: str
    explained: float
    trend: float | None
    trials: int


def _feasible(study: StudyFiles) -> list[tuple[TrialRecord, float]]:
    return [(r, r.qps) for r in study.records if r.role.searches and r.qps is not None]


def searched(plan: StudyPlan) -> tuple[Parameter, ...]:
    """Return the searched parameters. Several layouts are one parameter with values such as `2x2`."""
    if not plan.searches_layouts:
        return plan.parameters
    layouts = Parameter(LAYOUT, Kind.CHOICE, choices=tuple(str(placed.layout) for placed in plan.layouts))
    return (layouts, *(parameter for parameter in plan.parameters if parameter.flag not in FLAGS))


def values_of(candidate: Candidate) -> dict[str, Value]:
    """Return a candidate's values by the names of `searched`."""
    layout, flags = split_layout(candidate.as_dict())
    return flags if layout is None else {LAYOUT: str(layout), **flags}


def slice_rows(study: StudyFiles) -> dict[str, list[SliceRow]]:
    """List value and QPS of every feasible trial by parameter, in the space's order."""
    rows: dict[str, list[SliceRow]] = {parameter.flag: [] for parameter in searched(study.plan)}
    for record, qps in _feasible(study):
        for flag, value in values_of(record.candidate).items():
            if flag in rows:
                rows[flag].append(SliceRow(record.trial, flag, value, qps))
    return rows


def weight_rows(study: StudyFiles) -> list[WeightRow]:
    """Rank the flags by weight. Flags with fewer than `ENOUGH` trials or one single value are left out."""
    rows = []
    for flag, points in slice_rows(study).items():
        values = [point.value for point in points]
        if len(points) < ENOUGH or len(set(values)) < 2:
            continue
        qps = pd.Series([point.qps for point in points])
        rows.append(WeightRow(flag, _explained(_grouped(values), qps), _trend(values, qps), len(points)))
    return sorted(rows, key=lambda row: (-row.explained, row.flag))


def _grouped(values: Sequence[Value]) -> list[str]:
    """Group values: each on its own if they are few, else by quartile."""
    if len(set(values)) <= BINS or not all(as_number(value) is not None for value in values):
        return [str(value) for value in values]
    quartiles = pd.qcut(pd.Series([float(v) for v in values]), BINS, labels=False, duplicates="drop")
    return [str(quartile) for quartile in quartiles]


def _explained(groups: Sequence[str], qps: pd.Series[float]) -> float:
    """Compute eta squared of the Kruskal-Wallis test: (H - k + 1) / (n - k), at least 0, for n values in k groups.

    See Tomczak and Tomczak, Trends in Sport Sciences 1(21), 2014, table 1. A flag whose best value lies in the middle
    counts in full, which a straight line would miss.
    """
    ranks = qps.rank().to_numpy()
    labels = np.array(groups)
    sizes = Counter(groups)
    n, k = len(ranks), len(sizes)
    if k < 2 or n <= k:
        return 0.0
    between = sum(ranks[labels == group].sum() ** 2 / size for group, size in sizes.items())
    ties = 1 - sum(int(t) ** 3 - int(t) for t in Counter(ranks.tolist()).values()) / (n**3 - n)
    if ties <= 0:
        return 0.0
    h = (12 / (n * (n + 1)) * between - 3 * (n + 1)) / ties
    return float(min(1.0, max(0.0, (h - k + 1) / (n - k))))


def _trend(values: Sequence[Value], qps: pd.Series[float]) -> float | None:
    if not all(as_number(value) is not None for value in values) or qps.nunique() < 2:
        return None
    return float(pd.Series([float(v) for v in values]).rank().corr(qps.rank()))
