"""What the screen says of the time left while trials run, on a scripted clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from tests.fakes import ScriptedClock
from tests.study.builders import level, plan, record, with_start
from tests.study.open_server import open_level, open_plan
from tuner.bench.capacity_search import Capacity, Ended
from tuner.cli.screen import Screen
from tuner.study.events import LevelMeasured, PhaseChanged, QuietAwaited, TrialFinished, TrialStarted
from tuner.study.forecast import BLOCK_PROBES
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialRecord
from tuner.study.start_record import Phases
from tuner.verdict import Outcome, Reason, ReasonKind, Verdict

REJECTED = Verdict(Outcome.INFEASIBLE, (Reason(ReasonKind.BACKLOG_GROWS),))
RATE = 12.7
TRACE_S = 2500 / RATE
EXPECTED_TRACES = 3 * (BLOCK_PROBES + 2)
"""Traces after which a run has taken at least what was expected of it."""


def searched(made: StudyPlan, role: Role = Role.DEFAULT) -> TrialRecord:
    """A search of 100 s that found the rate."""
    found = replace(
        record(0, made.baseline, (open_level(RATE),), role=role),
        capacity=Capacity(Ended.FOUND, RATE, RATE, 1.03 * RATE, 1.2 * RATE, 60.0, answer_s=2.0),
    )
    return with_start(found, phases=Phases(20.0, 5.0, 74.0, 1.0))


def confirming(tmp_path: Path) -> tuple[Screen, ScriptedClock, str]:
    """The first of two confirmation runs has begun, after a search of one trial."""
    made, clock = open_plan(tmp_path / "s", starts=1, confirm_starts=2), ScriptedClock()
    screen = Screen(made, "0.32.0", (searched(made),), clock)
    group = made.groups[0].name
    screen.show(TrialStarted(1, Role.CONFIRM, made.baseline, group, 2, 3))
    return screen, clock, group


def left(screen: Screen) -> float:
    found = screen.picture().left_s
    assert found is not None
    return found


def ticks(screen: Screen, clock: ScriptedClock, seconds: float, step_s: float = 5.0) -> Iterator[float]:
    """Say the time left every five seconds."""
    for _ in range(round(seconds / step_s)):
        clock.sleep(step_s)
        yield left(screen)


def test_a_run_that_goes_as_expected_takes_every_second_off(tmp_path: Path) -> None:
    screen, clock, group = confirming(tmp_path)
    before = left(screen)
    falling = [before, *ticks(screen, clock, 20)]
    screen.show(PhaseChanged(1, group, "measuring"))
    for _ in range(4):
        falling += ticks(screen, clock, TRACE_S)
        screen.show(LevelMeasured(1, group, open_level(RATE).measurement, Verdict(Outcome.FEASIBLE)))
    assert [a - b for a, b in pairwise(falling)] == pytest.approx([5.0] * (len(falling) - 1))


def test_a_claim_that_walks_down_for_twenty_minutes_is_never_said_to_be_about_to_end(tmp_path: Path) -> None:
    """The second run is still to come: less than that, and what the rate under way needs, is never left."""
    screen, clock, group = confirming(tmp_path)
    clock.sleep(20)
    screen.show(PhaseChanged(1, group, "measuring"))
    for _ in ticks(screen, clock, EXPECTED_TRACES * TRACE_S):
        pass
    rejected = open_level(RATE).measurement
    rises: list[float] = []
    for _ in range(8):
        before = left(screen)
        screen.show(LevelMeasured(1, group, rejected, REJECTED))
        rises.append(left(screen) - before)
        falling = [left(screen), *ticks(screen, clock, 150)]
        assert falling == sorted(falling, reverse=True) and falling[0] - falling[-1] == pytest.approx(150.0)
        assert falling[0] >= 3 * TRACE_S
    assert min(rises[1:]) > 0, "each rejected rate costs more than was expected"


def test_a_start_that_takes_longer_keeps_its_load_ahead(tmp_path: Path) -> None:
    screen, clock, _ = confirming(tmp_path)
    expected = left(screen) - 20.0
    assert [*ticks(screen, clock, 600)][-1] == pytest.approx(expected)


def test_a_wait_for_quiet_is_shown_and_takes_its_time_off_what_was_expected(tmp_path: Path) -> None:
    screen, clock, group = confirming(tmp_path)
    screen.show(PhaseChanged(1, group, "measuring"))
    clock.sleep(50)
    screen.show(QuietAwaited(1, group, (Reason(ReasonKind.CLIENT_LATE, 145.0), Reason(ReasonKind.MEASURED_AGAIN))))
    (now,) = (g for g in screen.picture().groups if g.trial == 1)
    assert now.phase == "waiting for a quiet machine: the load generator was 145 ms late at P99"
    before = left(screen)
    assert list(ticks(screen, clock, 10)) == pytest.approx([before - 5, before - 10])
    screen.show(QuietAwaited(1, group, ()))
    assert {g.phase for g in screen.picture().groups} == {"measuring"}
    assert left(screen) == pytest.approx(before - 10)


def test_trials_side_by_side_are_taken_off_as_they_run_and_the_longest_ends_the_search(tmp_path: Path) -> None:
    made, clock = plan(tmp_path / "s", starts=3, confirm_starts=0, groups=2), ScriptedClock()
    done = with_start(record(0, made.baseline, (level(10.0),)), phases=Phases(20.0, 1, 28, 1))
    screen = Screen(made, "0.32.0", (done,), clock)
    assert left(screen) == pytest.approx(2 * 50 / 2)
    for trial, group in enumerate(made.groups, 1):
        screen.show(TrialStarted(trial, Role.SEARCH, made.baseline, group.name, trial, 3))
        screen.show(PhaseChanged(trial, group.name, "measuring")) if trial == 1 else None
    assert left(screen) == pytest.approx(50.0), "both run, and neither ends sooner for the other"
    assert list(ticks(screen, clock, 20)) == pytest.approx([45.0, 40.0, 35.0, 30.0])
    screen.show(TrialFinished(replace(done, trial=1), is_best=False))
    assert left(screen) == pytest.approx(30.0)


def test_starts_of_a_search_that_has_ended_are_not_to_come(tmp_path: Path) -> None:
    made, clock = open_plan(tmp_path / "s", starts=60, confirm_starts=1), ScriptedClock()
    screen = Screen(made, "0.32.0", (searched(made),), clock)
    before = left(screen)
    screen.show(TrialStarted(1, Role.CONFIRM, made.baseline, made.groups[0].name, 2, 3))
    assert before - left(screen) == pytest.approx(59 * 100)


def test_what_runs_is_finished_beyond_the_budget(tmp_path: Path) -> None:
    made = replace(open_plan(tmp_path / "s", starts=1, confirm_starts=2), time_budget_s=130.0)
    clock = ScriptedClock()
    screen = Screen(made, "0.32.0", (searched(made),), clock)
    assert left(screen) == pytest.approx(30.0)
    screen.show(TrialStarted(1, Role.CONFIRM, made.baseline, made.groups[0].name, 2, 3))
    assert left(screen) > 3 * TRACE_S
    before = left(screen)
    assert list(ticks(screen, clock, 15)) == pytest.approx([before - 5, before - 10, before - 15])
