"""Which layouts can still win, from the records of a study."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.study.builders import REFUSAL, layouts_plan, level, record, with_start
from tuner import jsonfile
from tuner.candidate import Candidate
from tuner.layout import Layout
from tuner.server.diagnosis import Bound
from tuner.study.disturbance import kept
from tuner.study.layout_race import FIRST_HEADROOM, MOST_REFUSED, headroom, standing
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import LayoutStanding, WhyDropped

FOUR, TWO, ONE = Layout(4, 1), Layout(2, 2), Layout(1, 4)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> StudyPlan:
    return layouts_plan(tmp_path_factory.mktemp("plan") / "s")


def trial(
    plan: StudyPlan, number: int, layout: Layout, qps: float | None, role: Role = Role.SEARCH, p99_ms: float = 300.0
) -> TrialRecord:
    """A server of the layout that shows this QPS; None is a refused start."""
    values = {**layout.flags, "max-num-seqs": 8 + number}
    candidate = plan.default_of(layout) if role in (Role.DEFAULT, Role.CHECK) else Candidate.of(values)
    levels = () if qps is None else (level(qps, p99_ms=p99_ms),)
    made = record(number, candidate, levels, role=role, replicas=layout.replicas if role.searches else 1)
    if qps is not None:
        return made
    refused = with_start(made, cause=REFUSAL)
    return replace(with_start(refused, phases=replace(made.start.phases, warm_up_s=None)), outcome=TrialOutcome.REFUSED)


def of(plan: StudyPlan, records: Sequence[TrialRecord], layout: Layout) -> LayoutStanding:
    return next(s for s in standing(plan, records) if s.layout == layout)


def test_before_the_first_trial_every_planned_layout_can_win(made: StudyPlan) -> None:
    assert [s.layout for s in standing(made, [])] == [FOUR, TWO, ONE]
    assert not any(s.is_dropped or s.trials for s in standing(made, []))


def test_figures_are_those_of_the_whole_machine(made: StudyPlan) -> None:
    records = [trial(made, 0, FOUR, 5.0, Role.DEFAULT), trial(made, 1, FOUR, 7.0, Role.SEED)]
    found = of(made, records, FOUR)
    assert (found.default_qps, found.best_qps, found.best_trial, found.starts) == (20.0, 28.0, 1, 2)


def test_a_layout_out_of_reach_is_dropped_by_its_best_and_the_leaders(made: StudyPlan) -> None:
    records = [
        trial(made, 0, ONE, 16.0, Role.DEFAULT),
        trial(made, 1, ONE, 17.0, Role.SEED),
        trial(made, 2, FOUR, 7.0, Role.DEFAULT),
        trial(made, 3, FOUR, 9.0, Role.SEED),
    ]
    found = of(made, records, ONE)
    assert (found.why, found.dropped_by, found.leader, found.leader_qps) == (WhyDropped.BEHIND, (1, 3), FOUR, 36.0)
    assert not of(made, records, FOUR).is_dropped


def test_neither_the_default_alone_nor_the_seed_alone_drops_a_layout(made: StudyPlan) -> None:
    leader = [trial(made, 0, FOUR, 50.0, Role.DEFAULT), trial(made, 1, FOUR, 50.0, Role.SEED)]
    for role in (Role.DEFAULT, Role.SEED):
        assert not of(made, [*leader, trial(made, 2, ONE, 1.0, role)], ONE).is_dropped


def test_more_trials_without_a_rise_leave_less_headroom(made: StudyPlan) -> None:
    assert headroom(2) == 1 + FIRST_HEADROOM
    records = [trial(made, 0, FOUR, 25.0, Role.DEFAULT), trial(made, 1, FOUR, 25.0, Role.SEED)]
    near = 100.0 / headroom(3)
    records += [trial(made, 2 + i, ONE, near, role) for i, role in enumerate((Role.DEFAULT, Role.SEED, Role.SEARCH))]
    assert not of(made, records, ONE).is_dropped
    assert of(made, [*records, trial(made, 5, ONE, near)], ONE).why is WhyDropped.BEHIND


def test_a_dropped_layout_comes_back_when_the_leader_is_refuted(made: StudyPlan) -> None:
    records = [
        *(trial(made, i, ONE, 20.0, role) for i, role in enumerate((Role.DEFAULT, Role.SEED))),
        *(trial(made, 2 + i, FOUR, 15.0, role) for i, role in enumerate((Role.DEFAULT, Role.SEED))),
    ]
    assert of(made, records, ONE).is_dropped
    refuting = [
        replace(
            with_start(trial(made, 4 + i, FOUR, 1.0, p99_ms=900), door=door), role=Role.CONFIRM, candidate=r.candidate
        )
        for i, r in enumerate(records[2:])
        for door in made.doors
    ]
    assert not of(made, [*records, *refuting], ONE).is_dropped


def test_a_default_measured_alone_is_worth_what_it_keeps_beside_its_neighbours(made: StudyPlan) -> None:
    records = [trial(made, 0, FOUR, 10.0, Role.DEFAULT), trial(made, 1, FOUR, 9.5, Role.SEED)]
    records += [trial(made, 2 + i, FOUR, qps, Role.CHECK) for i, qps in enumerate((9.0, 8.0, 9.5, 9.0))]
    assert kept(made, records, FOUR) == pytest.approx(0.8)
    assert kept(made, records, ONE) is None
    found = of(made, records, FOUR)
    assert found.default_qps == pytest.approx(32.0)
    assert found.best_qps == pytest.approx(38.0)  # its own neighbours were there already
    assert found.starts == 2


def test_servers_that_are_faster_together_are_worth_no_more_than_alone(made: StudyPlan) -> None:
    records = [trial(made, 0, FOUR, 10.0, Role.DEFAULT), trial(made, 1, FOUR, 10.4, Role.CHECK)]
    assert kept(made, records, FOUR) == 1.0


def started(made: StudyPlan) -> list[TrialRecord]:
    return [trial(made, 0, FOUR, 10.0, Role.DEFAULT), trial(made, 1, FOUR, 10.0, Role.SEED)]


def test_a_layout_that_is_refused_with_default_and_seed_does_not_start(made: StudyPlan) -> None:
    records = [*started(made), trial(made, 2, ONE, None, Role.DEFAULT), trial(made, 3, ONE, None, Role.SEED)]
    found = of(made, records, ONE)
    assert (found.why, found.dropped_by) == (WhyDropped.DOES_NOT_START, (2, 3))
    assert not of(made, records[:3], ONE).is_dropped


@pytest.mark.parametrize(
    ("bound", "dropped"),
    [
        (Bound("gpu-memory-utilization", "<=", 0.9), False),
        (Bound("gpu-memory-utilization", "<=", 0.5), True),
        (Bound("max-model-len", "<=", 4096), True),
    ],
    ids=["within the space", "below the space", "not searched"],
)
def test_a_bound_that_leaves_a_part_of_the_space_keeps_a_refused_layout(
    made: StudyPlan, bound: Bound, *, dropped: bool
) -> None:
    cause = replace(REFUSAL, bounds=(bound,))
    refused = [with_start(trial(made, 2 + i, ONE, None), cause=cause) for i in range(MOST_REFUSED)]
    assert of(made, [*started(made), *refused[:2]], ONE).is_dropped is dropped
    assert of(made, [*started(made), *refused], ONE).is_dropped


def test_where_nothing_starts_no_layout_is_dropped(made: StudyPlan) -> None:
    records = [trial(made, i, layout, None) for i, layout in enumerate((FOUR, TWO, ONE) * 2)]
    assert not any(s.is_dropped for s in standing(made, records))


def test_a_layout_that_breaks_the_limits_is_dropped_once_another_keeps_them(made: StudyPlan) -> None:
    slow = [trial(made, 2 + i, ONE, 5.0, p99_ms=900) for i in range(3)]
    assert not of(made, slow, ONE).is_dropped
    assert of(made, [*started(made), *slow], ONE).why is WhyDropped.BREAKS_LIMITS
    assert not of(made, [*started(made), *slow[:2]], ONE).is_dropped


def test_a_default_with_fewer_servers_than_any_planned_layout_has_a_standing_of_its_own(tmp_path: Path) -> None:
    plan = layouts_plan(tmp_path / "s", (FOUR, TWO), own=Layout(1, 2))
    records = [trial(plan, 0, Layout(1, 2), 9.0, Role.DEFAULT), *started(plan)]
    assert [s.layout for s in standing(plan, records)] == [Layout(1, 2), FOUR, TWO]
    assert of(plan, records, Layout(1, 2)).default_qps == 9.0
    assert not of(plan, records, Layout(1, 2)).is_dropped


QPS = st.lists(st.tuples(st.sampled_from([FOUR, TWO, ONE]), st.none() | st.floats(0.1, 100)), max_size=14)


@given(QPS)
def test_the_best_layout_is_never_dropped_and_every_dropped_one_is_behind_it(
    made: StudyPlan, shown: list[tuple[Layout, float | None]]
) -> None:
    records = [trial(made, i, layout, qps) for i, (layout, qps) in enumerate(shown)]
    found = standing(made, records)
    best = max((s.best_qps or 0.0) for s in found)
    for mine in found:
        if mine.is_dropped and mine.why is WhyDropped.BEHIND:
            assert mine.best_qps is not None and mine.best_qps < best
        if best and mine.best_qps == best:
            assert not mine.is_dropped
    assert sum(s.starts for s in found) == len(records)
    assert found == standing(made, list(records))
    assert jsonfile.loads(jsonfile.dumps(found[0]), LayoutStanding) == found[0]
