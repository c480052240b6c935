"""benchmarks/search knows its landscapes: same seed, same run, and nothing beats the optimum."""

from __future__ import annotations

import importlib

import pytest

run = importlib.import_module("benchmarks.search.run")
landscapes = importlib.import_module("benchmarks.search.landscapes").LANDSCAPES


@pytest.mark.parametrize("name", list(landscapes))
def test_no_start_of_a_run_beats_the_known_optimum(name: str) -> None:
    found = run.run_method(name, "random", 0, 60)
    assert 0 < found.at(60) <= 1.005


def test_a_run_is_the_same_again() -> None:
    assert run.run_method("refusals", "tpe-constraints", 3, 12) == run.run_method("refusals", "tpe-constraints", 3, 12)


def test_a_start_that_is_refused_costs_time_and_sustains_nothing() -> None:
    found = run.run_method("refusals", "random", 0, 30)
    assert 0 < found.refused < found.done
    assert 0 < found.refused_hours < found.gpu_hours
