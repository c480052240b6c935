from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.study.builders import REFUSAL, layouts_plan, level, plan, record, with_start
from tests.study.open_server import open_plan
from tuner.bench.capacity_search import Capacity, Ended
from tuner.candidate import Candidate
from tuner.layout import Layout
from tuner.study.compile_cache import Cache
from tuner.study.forecast import UNKNOWN_START_S, confirmation_s, left_s, search_trial_s, spent_s, start_s
from tuner.study.plan import OpenSearch, StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.start_record import Phases


def timed(trial: int, phases: Phases, role: Role = Role.SEARCH) -> TrialRecord:
    candidate = Candidate.of({"max-num-seqs": 8 + trial})
    return with_start(record(trial, candidate, (level(10.0),), role=role), phases=phases)


def test_before_any_start_the_assumed_one_is_counted_everywhere(tmp_path: Path) -> None:
    made = plan(tmp_path / "s", starts=12, confirm_starts=4, groups=2)  # 2 s of load in a trial
    assert start_s((), Cache.COLD) == start_s((), Cache.WARM) == UNKNOWN_START_S
    assert search_trial_s(made, ()) == UNKNOWN_START_S + 2
    assert confirmation_s(made, ()) == UNKNOWN_START_S + 4  # the winning levels of winner and default
    assert left_s(made, ()) == (UNKNOWN_START_S + 2) * 12 / 2 + (UNKNOWN_START_S + 4) * 4


def test_a_trial_is_forecast_with_the_median_start_and_the_longest_load(tmp_path: Path) -> None:
    records = [timed(0, Phases(600.0, 1, 8, 1)), timed(1, Phases(20.0, 1, 4, 1)), timed(2, Phases(22.0, 1, 2, 1))]
    assert search_trial_s(plan(tmp_path / "s"), records) == 22.0 + 10.0


def test_time_spent_side_by_side_is_shared_by_the_groups(tmp_path: Path) -> None:
    records = [timed(0, Phases(20.0, 1, 2, 1)), timed(1, Phases(20.0, 1, 2, 1))]
    assert spent_s(plan(tmp_path / "one"), records) == 48.0
    one_each = [with_start(r, group=f"gpu{r.trial}") for r in records]
    assert spent_s(plan(tmp_path / "two", groups=2), one_each) == 24.0


FOUR, TWO, ONE = Layout(4), Layout(2, 2), Layout(1, 4)


def occupying(trial: int, candidate: Candidate, group: str, role: Role = Role.SEARCH) -> TrialRecord:
    """A trial of 100 s."""
    made = record(trial, candidate, (level(10.0),), role=role)
    return with_start(made, group=group, phases=Phases(90.0, 2, 7, 1))


def test_a_trial_costs_the_share_of_the_machine_that_it_keeps_from_others(tmp_path: Path) -> None:
    made = layouts_plan(tmp_path / "s")
    searched = {
        "gpu2": (Candidate.of({**FOUR.flags, "max-num-seqs": 64}), 25.0),
        "gpu0-1": (Candidate.of({**TWO.flags, "max-num-seqs": 64}), 50.0),
        "gpu0-1-2-3": (Candidate.of({**ONE.flags, "max-num-seqs": 64}), 100.0),
    }
    for group, (candidate, seconds) in searched.items():
        assert spent_s(made, [occupying(0, candidate, group)]) == seconds
    assert spent_s(made, [occupying(0, made.default_of(FOUR), "gpu0", Role.DEFAULT)]) == 100.0
    check = [occupying(i, made.default_of(TWO), group, Role.CHECK) for i, group in enumerate(("gpu0-1", "gpu2-3"))]
    assert spent_s(made, check) == 100.0
    assert spent_s(made, [occupying(0, made.default_of(ONE), "gpu0-1-2-3", Role.CONFIRM)]) == 100.0
    assert spent_s(made, [occupying(0, made.default_of(FOUR), "gpu0+gpu1+gpu2+gpu3", Role.CONFIRM)]) == 100.0


def test_before_any_start_trials_take_the_mean_share_and_every_check_is_to_come(tmp_path: Path) -> None:
    made = layouts_plan(tmp_path / "s", starts=12, confirm_starts=4)
    trial_s, level_s = UNKNOWN_START_S + 2, UNKNOWN_START_S + 1
    share = (1 / 4 + 1 / 2 + 1) / 3
    assert left_s(made, ()) == pytest.approx(12 * trial_s * share + 2 * level_s + 4 * (trial_s + 2))


def test_a_check_that_was_made_or_has_nothing_to_be_compared_with_is_not_to_come(tmp_path: Path) -> None:
    made = layouts_plan(tmp_path / "s", starts=0, confirm_starts=0)
    checked = occupying(0, made.default_of(FOUR), "gpu0", Role.CHECK)
    refused = replace(
        with_start(record(1, made.default_of(TWO), role=Role.DEFAULT), cause=REFUSAL), outcome=TrialOutcome.REFUSED
    )
    one_s = left_s(made, [checked])
    assert one_s > 0
    assert left_s(made, [checked, refused]) == 0


def test_a_planned_comparison_of_doors_is_one_more_run_where_the_best_has_several_servers(tmp_path: Path) -> None:
    made = layouts_plan(tmp_path / "s", starts=0)
    both = replace(made, compares_doors=True)
    for best, more in ((FOUR, 1), (ONE, 0)):
        records = [occupying(0, Candidate.of({**best.flags, "max-num-seqs": 64}), "gpu0")]
        run_s = confirmation_s(made, records)
        assert left_s(both, records) - left_s(made, records) == pytest.approx(more * run_s)


def test_servers_behind_a_door_are_filled_before_a_claim(tmp_path: Path) -> None:
    load = OpenSearch(0.0)
    made = replace(layouts_plan(tmp_path / "s"), load=load)
    several, single = (
        confirmation_s(made, [replace(with_capacity(made, 5.0), candidate=Candidate.of(layout.flags))])
        for layout in (FOUR, ONE)
    )
    assert several == pytest.approx(single + load.settings.saturation_s)


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
