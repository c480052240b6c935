"""Confirmation of several servers through their doors, from records alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.study.builders import REFUSAL, layouts_plan, level, record, trial_of, with_start
from tests.study.open_server import open_level
from tuner.bench.capacity_search import Capacity, Claim, Ended
from tuner.bench.task import ClaimRate
from tuner.candidate import Candidate
from tuner.launch import Door
from tuner.layout import Layout
from tuner.server.diagnosis import Fault
from tuner.study import confirm
from tuner.study.assignment import Assignment
from tuner.study.doors import doors
from tuner.study.plan import OpenSearch, StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord

FOUR, ONE = Layout(4), Layout(1, 4)
WINNER = Candidate.of({**FOUR.flags, "max-num-seqs": 64})
SERVER, VLLM, NGINX = Door.SERVER, Door.VLLM, Door.NGINX
ALONE_QPS, ALONE_SATURATION = 10.0, 12.0
"""Figures of one of the winner's four servers in the search."""

Shown = float | TrialOutcome
"""Rate that all servers hold through a door, saturating at 1.2 times of it, or how their run fails."""


@pytest.fixture
def made(tmp_path: Path) -> StudyPlan:
    return replace(layouts_plan(tmp_path / "s", (FOUR, ONE)), load=OpenSearch(0.0))


def found(trial: int, candidate: Candidate, qps: float, replicas: int, role: Role = Role.SEARCH) -> TrialRecord:
    shown = record(trial, candidate, (open_level(qps),), role=role, replicas=replicas)
    return replace(shown, capacity=Capacity(Ended.FOUND, qps, qps, qps, qps * ALONE_SATURATION / ALONE_QPS, 60.0))


def confirmed(trial: int, candidate: Candidate, door: Door, shown: Shown) -> TrialRecord:
    run = with_start(record(trial, candidate, (open_level(9.0),), role=Role.CONFIRM), door=door)
    if isinstance(shown, TrialOutcome):
        return replace(run, outcome=shown, best=None)
    return replace(run, claim=Claim(shown, (), 360.0, shown, shown * ALONE_SATURATION / ALONE_QPS))


def searched(plan: StudyPlan) -> list[TrialRecord]:
    """A default with a rate of 20, and a winner of four servers with 10 each."""
    return [found(0, plan.baseline, 20.0, 1, Role.DEFAULT), found(1, WINNER, ALONE_QPS, 4)]


def confirmed_all(plan: StudyPlan, shown: Mapping[Door, Shown], default: Shown = 19.0) -> list[TrialRecord]:
    """Make the confirmation runs to their end. Every run through a door shows the same."""
    records = searched(plan)
    while (due := confirm.next_to_confirm(plan, records)) is not None:
        is_default = due.found.candidate == plan.baseline
        says = default if is_default and due.door is SERVER else shown[due.door]
        records.append(confirmed(len(records), due.found.candidate, due.door, says))
        assert len(records) < 20
    return records


def turns(plan: StudyPlan, records: list[TrialRecord]) -> list[tuple[str, Door]]:
    names = {plan.baseline: "default", WINNER: "winner"}
    return [(names[r.candidate], r.start.door) for r in records if r.role is Role.CONFIRM]


def test_several_servers_are_confirmed_through_the_preferred_door_and_one_through_none(made: StudyPlan) -> None:
    records = confirmed_all(made, {VLLM: 39.5})
    assert turns(made, records) == [("winner", VLLM), ("default", SERVER), ("default", SERVER), ("winner", VLLM)]


def test_a_door_that_costs_too_much_is_compared_with_the_other_at_once_and_the_better_one_kept(made: StudyPlan) -> None:
    records = confirmed_all(made, {VLLM: 30.0, NGINX: 38.0})
    w, d = "winner", "default"
    assert turns(made, records) == [(w, VLLM), (w, NGINX), (d, SERVER), (d, SERVER), (w, NGINX)]
    figures = confirm.figures(made, records, WINNER)
    assert figures is not None and figures.fresh
    assert (figures.trials, figures.qps) == ((3, 6), 38.0)
    shown = {f.door: f for f in doors(made, records, WINNER)}
    assert list(shown) == [VLLM, NGINX]
    assert (shown[VLLM].trials, shown[VLLM].rate, shown[VLLM].is_quoted) == ((2,), 30.0, False)
    assert (shown[NGINX].trials, shown[NGINX].rate, shown[NGINX].is_quoted) == ((3, 6), 38.0, True)


def test_the_cost_of_a_door_is_what_the_full_servers_lose_behind_it(made: StudyPlan) -> None:
    records = confirmed_all(made, {VLLM: 30.0, NGINX: 38.0})
    cost = {f.door: f.cost for f in doors(made, records, WINNER)}
    assert cost == {VLLM: pytest.approx(0.25), NGINX: pytest.approx(0.05)}


def test_in_a_closed_loop_the_winning_level_tells_the_cost(made: StudyPlan, tmp_path: Path) -> None:
    closed = layouts_plan(tmp_path / "closed", (FOUR, ONE))
    alone = record(0, WINNER, (level(10.0),), replicas=4)
    through = with_start(record(1, WINNER, (level(36.0),), role=Role.CONFIRM), door=VLLM)
    (shown,) = doors(closed, [alone, through], WINNER)
    assert shown.cost == pytest.approx(0.1)
    assert (shown.saturation, shown.rate) == (None, 36.0)


def test_a_default_measured_alone_owes_its_door_no_disturbance(made: StudyPlan) -> None:
    default = made.default_of(FOUR)
    alone = replace(found(0, default, 10.0, 4, Role.DEFAULT), levels=(level(12.0), open_level(10.0)), best=1)
    checks = [record(n, default, (level(9.0),), role=Role.CHECK) for n in range(1, 5)]
    (shown,) = doors(made, [alone, *checks, confirmed(5, default, VLLM, 30.0)], default)
    assert shown.cost == pytest.approx(0.0)


@pytest.mark.parametrize(("nginx", "kept"), [(40.0, VLLM), (42.0, NGINX)])
def test_doors_are_compared_always_if_so_planned_and_the_preferred_one_wins_a_tie(
    made: StudyPlan, nginx: float, kept: Door
) -> None:
    both = replace(made, compares_doors=True)
    records = confirmed_all(both, {VLLM: 39.9, NGINX: nginx})
    assert turns(both, records)[:2] == [("winner", VLLM), ("winner", NGINX)]
    assert turns(both, records)[-1] == ("winner", kept)
    assert [f.door for f in doors(both, records, WINNER) if f.is_quoted] == [kept]
    figures = confirm.figures(both, records, WINNER)
    assert figures is not None and len(figures.trials) == 2


@pytest.mark.parametrize("outcome", [TrialOutcome.REFUSED, TrialOutcome.DIED, TrialOutcome.INFEASIBLE])
def test_a_door_whose_run_fails_is_left_for_the_other_and_refutes_nobody(
    made: StudyPlan, outcome: TrialOutcome
) -> None:
    records = confirmed_all(made, {VLLM: outcome, NGINX: 38.0})
    w, d = "winner", "default"
    assert turns(made, records) == [(w, VLLM), (w, NGINX), (d, SERVER), (d, SERVER), (w, NGINX)]
    figures = confirm.figures(made, records, WINNER)
    assert figures is not None and figures.qps == 38.0
    assert confirm.lack(records, WINNER) is None


@pytest.mark.parametrize(
    ("door", "fault", "outcome"),
    [
        (VLLM, Fault.CANDIDATE, TrialOutcome.REFUSED),
        (NGINX, Fault.UNKNOWN, TrialOutcome.REFUSED),
        (NGINX, Fault.ENVIRONMENT, TrialOutcome.INFRASTRUCTURE),
        (SERVER, Fault.CANDIDATE, TrialOutcome.INFRASTRUCTURE),
    ],
)
def test_servers_that_start_alone_and_not_behind_a_door_are_refused_by_the_door(
    made: StudyPlan, door: Door, fault: Fault, outcome: TrialOutcome
) -> None:
    groups = made.placed(FOUR).machine
    assignment = Assignment(0, Role.CONFIRM, WINNER, groups, ClaimRate(39.0), 0.0, None, door=door)
    assert trial_of(assignment, replace(REFUSAL, fault=fault)).outcome is outcome


def test_a_candidate_without_a_door_that_works_is_refuted(made: StudyPlan) -> None:
    records = confirmed_all(made, {VLLM: TrialOutcome.REFUSED, NGINX: TrialOutcome.REFUSED})
    assert turns(made, records)[:2] == [("winner", VLLM), ("winner", NGINX)]
    assert [r.candidate for r in confirm.finalists(made, records)] == [made.baseline]
    assert confirm.figures(made, records, WINNER) is None
    assert {door for _, door in turns(made, records)[2:]} == {SERVER}


@pytest.mark.parametrize(
    ("vllm", "nginx", "last"),
    [
        (TrialOutcome.INFRASTRUCTURE, 38.0, NGINX),
        (30.0, TrialOutcome.INFRASTRUCTURE, VLLM),
        (30.0, TrialOutcome.INVALID, VLLM),
    ],
)
def test_a_door_that_decided_nothing_leaves_the_other_and_is_not_tried_again(
    made: StudyPlan, vllm: float | TrialOutcome, nginx: float | TrialOutcome, last: Door
) -> None:
    records = confirmed_all(made, {VLLM: vllm, NGINX: nginx})
    assert [door for name, door in turns(made, records) if name == "winner"] == [VLLM, NGINX, last]


def test_a_default_of_several_servers_goes_through_the_winners_door(tmp_path: Path) -> None:
    made = replace(layouts_plan(tmp_path / "s", (FOUR, Layout(2, 2)), own=Layout(2, 2)), load=OpenSearch(0.0))
    records = confirmed_all(made, {VLLM: 30.0, NGINX: 38.0})
    w, d = "winner", "default"
    made_turns = turns(made, records)
    assert made_turns[:5] == [(w, VLLM), (w, NGINX), (d, NGINX), (d, NGINX), (w, NGINX)]
    assert {door for _, door in made_turns[5:]} <= {NGINX}, "further pairs, since both are as fast"


def test_a_layout_that_is_not_whole_is_not_confirmed(made: StudyPlan) -> None:
    records = searched(made)
    due = confirm.next_to_confirm(made, records, {FOUR})
    assert due is not None and (due.found.candidate, due.door) == (made.baseline, SERVER)
    assert confirm.next_to_confirm(made, records, {FOUR, ONE}) is None


def test_the_default_alone_is_ranked_by_what_its_servers_keep_side_by_side(made: StudyPlan) -> None:
    default = made.default_of(FOUR)
    alone = record(0, default, (level(10.0),), role=Role.DEFAULT, replicas=4)
    other = record(1, WINNER, (level(9.0),), replicas=4)
    checks = [record(n, default, (level(qps),), role=Role.CHECK) for n, qps in ((2, 9.0), (3, 8.0))]
    assert [r.trial for r in confirm.finalists(made, [alone, other])] == [0, 1]
    assert [r.trial for r in confirm.finalists(made, [alone, other, *checks])] == [1, 0]
