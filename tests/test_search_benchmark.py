"""benchmarks/search knows its landscapes: same seed, same run, and nothing beats the optimum."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

run = importlib.import_module("benchmarks.search.run")
landscapes = importlib.import_module("benchmarks.search.landscapes").LANDSCAPES
layouts = importlib.import_module("benchmarks.search.layouts")
machines = importlib.import_module("benchmarks.search.machines").MACHINES
table = importlib.import_module("benchmarks.search.table")


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


# ---------------------------------------------------------------- whole machines


@pytest.mark.parametrize("name", list(machines))
def test_every_layout_that_is_searched_has_its_truth_or_never_starts(name: str, tmp_path: Path) -> None:
    for placed in machines[name].choice(tmp_path).layouts:
        server = machines[name].server(placed.layout)
        never = table.share_refused(server, server.plan(tmp_path, 1, 0, 0)) == 1.0
        assert table.is_tabulated(server.name) is not never


def test_layouts_that_cannot_hold_the_model_are_ruled_out(tmp_path: Path) -> None:
    choice = machines["4x5090-27b"].choice(tmp_path)
    assert [str(out.layout) for out in choice.ruled_out] == ["4x1"]


@pytest.mark.parametrize(("name", "best", "worst"), [("4x5090-8b", "4x1", "1x4"), ("8xh100-27b", "1x8", "8x1")])
def test_replicas_win_without_p2p_and_tensor_parallel_with_nvlink_and_a_tight_limit(
    name: str, best: str, worst: str
) -> None:
    truths = {str(truth.layout): truth.optimum for truth in layouts.truths(machines[name])}
    assert max(truths, key=lambda layout: truths[layout]) == best
    assert min(truths, key=lambda layout: truths[layout]) == worst
    assert truths[best] > 1.5 * truths[worst]


def test_a_search_of_a_machine_is_the_same_again_and_uses_its_gpus_at_once() -> None:
    first, again = (layouts.search_machine(machines["4x5090-8b"], 1, 12) for _ in range(2))
    assert first == again
    assert 0.9 < first.share <= 1.005
    assert first.gpu_hours > 1.5 * first.hours
