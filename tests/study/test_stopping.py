from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.study.builders import landscape, level, plan, record
from tests.study.study_run import StudyRun
from tuner.candidate import Candidate
from tuner.study.assignment import Assignment
from tuner.study.events import SearchEnded
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import Decision
from tuner.study.stopping import SearchEnd, trials_without_gain


def found(*figures: float | None, role: Role = Role.SEARCH) -> list[TrialRecord]:
    """A record for each QPS; None is a start that broke a limit."""
    levels = [level(50.0, p99_ms=900) if q is None else level(q) for q in figures]
    return [record(i, Candidate(), (made,), role=role) for i, made in enumerate(levels)]


@pytest.mark.parametrize(
    ("figures", "without"),
    [
        ((), 0),
        ((100.0, 90.0, 100.9, None), 3),
        ((100.0, 90.0, 101.0, None), 1),
        ((100.0, 100.6, 101.2), 0),
        ((None, None, None), 0),
        ((None, None, 10.0, None), 1),
    ],
    ids=[
        "nothing",
        "less than 1 % is no rise",
        "1 % is",
        "small rises add up",
        "no best yet",
        "counted from the first",
    ],
)
def test_starts_are_counted_since_the_last_rise(figures: tuple[float | None, ...], without: int) -> None:
    assert trials_without_gain(found(*figures)) == without


def test_default_and_seeds_set_the_mark_and_use_up_no_patience() -> None:
    given = [*found(100.0, role=Role.DEFAULT), *found(120.0, 90.0, 80.0, role=Role.SEED)]
    assert trials_without_gain(given) == 0
    assert trials_without_gain([*given, *found(119.0)]) == 1


def test_faults_of_the_machine_and_what_only_confirms_says_nothing_of_a_plateau() -> None:
    searched = found(100.0, 90.0)
    spoilt = replace(searched[1], outcome=TrialOutcome.INFRASTRUCTURE, best=None)
    assert trials_without_gain([*searched, spoilt, *found(150.0, role=Role.CONFIRM)]) == 1


def flat(assignment: Assignment) -> TrialRecord:
    """Every candidate is as good as the first seed; only the default is slower."""
    made = landscape(replace(assignment, candidate=assignment.candidate.of({"max-num-seqs": 128})))
    slower = made if assignment.candidate.values else replace(made, levels=(level(20.0),))
    return replace(slower, candidate=assignment.candidate)


def test_a_search_that_finds_nothing_better_ends_says_so_and_confirms(tmp_path: Path) -> None:
    run = StudyRun(replace(plan(tmp_path / "s", starts=40), patience=4), flat)
    result = run.loop.run()
    roles = [r.role for r in run.store.records()]
    assert roles.count(Role.SEED) == 4, "every seed was measured first"
    assert roles.count(Role.SEARCH) == 4
    assert roles.count(Role.CONFIRM) == 4 and roles[-1] is Role.CONFIRM
    assert result.complete and result.decision is Decision.WINNER
    assert [e for e in run.events if isinstance(e, SearchEnded)] == [SearchEnded(SearchEnd.NO_GAIN, 4)]


def test_without_patience_every_start_is_made(tmp_path: Path) -> None:
    run = StudyRun(plan(tmp_path / "s", starts=12), flat)
    run.loop.run()
    assert sum(r.role is not Role.CONFIRM for r in run.store.records()) == 12


def test_a_resumed_search_that_was_out_of_patience_starts_nothing_more(tmp_path: Path) -> None:
    made = replace(plan(tmp_path / "s", starts=40), patience=4)
    StudyRun(made, flat).loop.run()
    again = StudyRun(made, flat)
    before = again.store.records()
    assert again.loop.run().complete
    assert again.store.records() == before
