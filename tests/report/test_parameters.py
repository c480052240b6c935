"""Weights and slices: feasible measured trials only."""

from __future__ import annotations

import dataclasses
import random

import pytest

from tuner.candidate import Candidate, Value
from tuner.layout import FLAGS
from tuner.report.parameters import ENOUGH, searched, slice_rows, values_of, weight_rows
from tuner.report.tables import StudyFiles
from tuner.study.record import Role, TrialOutcome, TrialRecord


def with_trials(files: StudyFiles, trials: list[tuple[dict[str, Value], float]]) -> StudyFiles:
    """The study with one feasible search trial for each (flags, QPS)."""
    model = next(r for r in files.records if r.best is not None)
    assert model.best is not None
    level = model.levels[model.best]
    records: list[TrialRecord] = []
    for number, (values, qps) in enumerate(trials):
        measured = dataclasses.replace(level, measurement=dataclasses.replace(level.measurement, qps=qps))
        candidate = Candidate.of(values)
        records.append(
            dataclasses.replace(
                model, trial=number, role=Role.SEARCH, candidate=candidate, levels=(measured,), best=0, attempt=1
            )
        )
    return dataclasses.replace(files, records=tuple(records))


def test_slices_hold_nothing_but_feasible_trials_of_the_search(files: StudyFiles) -> None:
    by_trial = {r.trial: r for r in files.records}
    slices = slice_rows(files)
    assert list(slices) == [p.flag for p in searched(files.plan)]
    points = [point for rows in slices.values() for point in rows]
    assert points
    for point in points:
        record = by_trial[point.trial]
        assert record.outcome is TrialOutcome.FEASIBLE and record.role is not Role.CONFIRM
        assert point.qps == record.qps
        assert values_of(record.candidate)[point.flag] == point.value


def test_layouts_are_one_parameter_in_place_of_their_flags(layouts: StudyFiles) -> None:
    slices = slice_rows(layouts)
    assert not set(slices) & set(FLAGS)
    assert {point.value for point in slices["layout"]} == {"4x1", "2x2", "1x4"}
    assert "layout" in {row.flag for row in weight_rows(layouts)}


def test_a_flag_that_decides_weighs_most_also_when_its_best_lies_in_the_middle(files: StudyFiles) -> None:
    rng = random.Random(1)
    trials: list[tuple[dict[str, Value], float]] = []
    for _ in range(60):
        batched, seqs = rng.randrange(512, 16384), rng.randrange(16, 1024)
        qps = 10 - abs(batched - 8000) / 1000 + rng.gauss(0, 0.1)
        trials.append(({"max-num-batched-tokens": batched, "max-num-seqs": seqs}, qps))
    rows = weight_rows(with_trials(files, trials))
    assert [row.flag for row in rows] == ["max-num-batched-tokens", "max-num-seqs"]
    assert rows[0].explained > 0.6
    assert rows[1].explained < 0.2
    assert rows[0].trend is not None and abs(rows[0].trend) < 0.4


def test_weights_agree_with_scipys_kruskal_wallis(files: StudyFiles) -> None:
    rng = random.Random(2)
    groups: dict[Value, list[float]] = {0: [], 512: [], 2048: []}
    trials: list[tuple[dict[str, Value], float]] = []
    for i in range(30):
        value: Value = (0, 512, 2048)[i % 3]
        qps = round(rng.gauss(5 + i % 3, 1), 1)  # ties on purpose
        groups[value].append(qps)
        trials.append(({"long-prefill-token-threshold": value}, qps))
    (row,) = weight_rows(with_trials(files, trials))
    h = pytest.importorskip("scipy.stats").kruskal(*groups.values()).statistic
    assert row.explained == pytest.approx((h - 3 + 1) / (30 - 3))


def test_too_few_trials_say_nothing(files: StudyFiles) -> None:
    trials: list[tuple[dict[str, Value], float]] = [({"max-num-seqs": n}, float(n)) for n in range(1, ENOUGH)]
    assert weight_rows(with_trials(files, trials)) == []


def test_a_flag_with_one_value_and_equal_figures_are_no_error(files: StudyFiles) -> None:
    one: list[tuple[dict[str, Value], float]] = [({"max-num-seqs": 8}, float(n)) for n in range(20)]
    assert weight_rows(with_trials(files, one)) == []
    same: list[tuple[dict[str, Value], float]] = [({"max-num-seqs": n}, 5.0) for n in range(20)]
    (row,) = weight_rows(with_trials(files, same))
    assert (row.explained, row.trend) == (0.0, None)


def test_flags_without_an_order_have_no_trend(files: StudyFiles) -> None:
    trials: list[tuple[dict[str, Value], float]] = [
        ({"enable-chunked-prefill": n % 2 == 0}, 10.0 + n % 2) for n in range(20)
    ]
    (row,) = weight_rows(with_trials(files, trials))
    assert row.trend is None
    assert row.explained > 0.9
