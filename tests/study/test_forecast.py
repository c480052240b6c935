from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.study.builders import REFUSAL, level, plan, record, with_start
from tests.study.open_server import open_plan
from tuner.bench.capacity_search import Capacity, Ended
from tuner.candidate import Candidate
from tuner.study.compile_cache import Cache
from tuner.study.forecast import UNKNOWN_START_S, confirmation_s, left_s, search_trial_s, spent_s, start_s
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.start_record import Phases


def timed(trial: int, phases: Phases, role: Role = Role.SEARCH) -> TrialRecord:
    candidate = Candidate.of({"max-num-seqs": 8 + trial})
    return with_start(record(trial, candidate, (level(10.0),), role=role), phases=phases)


def test_before_any_start_the_assumed_one_is_counted_everywhere(tmp_path: Path) -> None:
    made = plan(tmp_path / "s", starts=12, confirm_starts=4, groups=2)  # 2 s of load in a trial
    assert start_s((), Cache.COLD) == start_s((), Cache.WARM) == UNKNOWN_START_S
    assert search_trial_s(made, ()) == confirmation_s(made, ()) == UNKNOWN_START_S + 2
    assert left_s(made, ()) == (UNKNOWN_START_S + 2) * (12 / 2 + 4)


def test_a_trial_is_forecast_with_the_median_start_and_the_longest_load(tmp_path: Path) -> None:
    records = [timed(0, Phases(600.0, 1, 8, 1)), timed(1, Phases(20.0, 1, 4, 1)), timed(2, Phases(22.0, 1, 2, 1))]
    assert search_trial_s(plan(tmp_path / "s"), records) == 22.0 + 10.0


def test_time_spent_side_by_side_is_shared_by_the_groups(tmp_path: Path) -> None:
    records = [timed(0, Phases(20.0, 1, 2, 1)), timed(1, Phases(20.0, 1, 2, 1))]
    assert spent_s(plan(tmp_path / "one"), records) == 48.0
    assert spent_s(plan(tmp_path / "two", groups=2), records) == 24.0


def test_what_is_left_counts_neither_failed_machines_nor_trials_that_are_done(tmp_path: Path) -> None:
    made = plan(tmp_path / "s", starts=3, confirm_starts=2)
    done = [timed(i, Phases(20.0, 1, 2, 1)) for i in range(2)]
    assert left_s(made, done) == pytest.approx(24.0 + 2 * 24.0)
    faulty = replace(
        with_start(done[0], cause=REFUSAL), trial=2, outcome=TrialOutcome.INFRASTRUCTURE, levels=(), best=None
    )
    assert left_s(made, [*done, faulty]) == pytest.approx(24.0 + 2 * 24.0)
    confirmed = timed(3, Phases(20.0, 1, 2, 1), Role.CONFIRM)
    assert left_s(made, [*done, timed(2, Phases(20.0, 1, 2, 1)), confirmed]) == pytest.approx(24.0)


def with_capacity(made: StudyPlan, rate: float) -> TrialRecord:
    found = timed(0, Phases(20.0, 1, 2, 1))
    return replace(found, capacity=Capacity(Ended.FOUND, rate, rate, rate, rate * 1.2, 60.0))


def test_a_confirmation_run_of_an_open_loop_takes_longer_the_lower_the_best_rate(tmp_path: Path) -> None:
    made = open_plan(tmp_path / "s")
    slow, fast = (confirmation_s(made, [with_capacity(made, rate)]) for rate in (0.5, 50.0))
    assert slow > fast >= 20.0 + made.load.confirm_s
