"""What a search of several layouts asks, in which order, and what it does not ask any more."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from tests.study.builders import REFUSAL, layouts_plan, level, record, with_start
from tuner.layout import Layout
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import LayoutStanding, WhyDropped
from tuner.study.search import Proposal, Search
from tuner.study.seeds import order_of_layouts, seeds
from tuner.study.setting import StudySetting
from tuner.vllm.defaults import vllm_defaults

DEFAULTS = vllm_defaults("0.32.0", ())
FOUR, TWO, ONE, STAGES = Layout(4, 1), Layout(2, 2), Layout(1, 4), Layout(2, 1, 2)
Answer = Callable[[Layout], float | None]
"""QPS of the whole machine by the layout, None if its servers are refused."""


def search(made: StudyPlan) -> Search:
    setting = StudySetting.of(made, DEFAULTS)
    return Search(setting, seeds(setting))


def answered(made: StudyPlan, proposal: Proposal, trial: int, qps: float | None) -> TrialRecord:
    layout = made.layout_of(proposal.candidate)
    levels = () if qps is None else (level(qps / layout.replicas),)
    found = record(trial, proposal.candidate, levels, role=proposal.role, search_trial=proposal.number,
                   replicas=layout.replicas)  # fmt: skip
    if qps is not None:
        return found
    refused = with_start(found, cause=REFUSAL, phases=replace(found.start.phases, warm_up_s=None))
    return replace(refused, outcome=TrialOutcome.REFUSED)


def go_on(
    made: StudyPlan, asked: Search, answer: Answer, count: int, records: Sequence[TrialRecord] = ()
) -> tuple[list[Proposal], list[TrialRecord]]:
    """Ask and answer so many times. Returns the proposals, and all records."""
    proposals, found = [], list(records)
    for _ in range(count):
        proposals.append(asked.ask())
        layout = made.layout_of(proposals[-1].candidate)
        found.append(answered(made, proposals[-1], len(found), answer(layout)))
        asked.tell(found[-1])
    return proposals, found


def evenly(_layout: Layout) -> float:
    return 40.0


def four_wins(layout: Layout) -> float:
    return 40.0 if layout == FOUR else 10.0


@pytest.mark.parametrize(
    ("layouts", "own"),
    [((FOUR, ONE), ONE), ((FOUR, TWO, ONE), ONE), ((FOUR, TWO), Layout(1, 2)), ((FOUR, TWO, STAGES), Layout(1, 2))],
    ids=["two", "three", "a default of fewer servers", "with stages"],
)
def test_every_layout_gets_its_default_and_the_seed_that_fills_its_cache_first(
    layouts: tuple[Layout, ...], own: Layout, tmp_path: Path
) -> None:
    made = layouts_plan(tmp_path / "s", layouts, own=own)
    defaults = {made.default_of(layout) for layout in (*layouts, own)}
    proposals, _ = go_on(made, search(made), evenly, len(defaults) + len(layouts))
    assert proposals[0].candidate == made.baseline
    assert {p.candidate for p in proposals if p.role is Role.DEFAULT} == defaults
    assert {made.layout_of(p.candidate) for p in proposals if p.role is Role.SEED} == set(layouts)
    all_seeds = seeds(StudySetting.of(made, DEFAULTS))
    for proposal in (p for p in proposals if p.role is Role.SEED):
        mine = [c for c in all_seeds if made.layout_of(c) == made.layout_of(proposal.candidate)]
        assert proposal.candidate == mine[0]


def test_first_starts_of_one_size_of_server_come_together_the_defaults_own_first(tmp_path: Path) -> None:
    made = layouts_plan(tmp_path / "s", (Layout(8, 1), Layout(4, 1, 2), Layout(4, 2), Layout(1, 8)), gpus=8)
    ordered = order_of_layouts(made)
    assert ordered[0] == made.own_layout
    assert [layout.ranks for layout in ordered] == [8, 2, 2, 1]
    proposals, _ = go_on(made, search(made), evenly, 8)
    ranks = [made.layout_of(p.candidate).ranks for p in proposals]
    assert ranks == [8, 8, 2, 2, 2, 2, 1, 1]


def test_the_other_seeds_are_those_of_the_best_layout_first(tmp_path: Path) -> None:
    made = layouts_plan(tmp_path / "s", starts=60)
    asked = search(made)
    _, records = go_on(made, asked, lambda layout: 30.0 if layout == TWO else 29.0, 6)
    later, _ = go_on(made, asked, evenly, 3, records)
    assert all(p.role is Role.SEED for p in later)
    assert {made.layout_of(p.candidate) for p in later[:2]} == {TWO}


def test_seeds_of_the_others_leave_half_of_a_small_budget_to_the_model(tmp_path: Path) -> None:
    made = layouts_plan(tmp_path / "s", starts=12)
    proposals, _ = go_on(made, search(made), evenly, 10)
    by_layout = [made.layout_of(p.candidate) for p in proposals[6:] if p.role is Role.SEED]
    assert len(set(by_layout)) == 1
    assert proposals[-1].role is Role.SEARCH


def standing(asked: Search, layout: Layout) -> LayoutStanding:
    return next(s for s in asked.layouts if s.layout == layout)


def test_a_dropped_layout_is_announced_once_and_never_started_again(tmp_path: Path) -> None:
    made = layouts_plan(tmp_path / "s", starts=60)
    asked = search(made)
    first, records = go_on(made, asked, four_wins, 6)
    assert {made.layout_of(p.candidate) for p in first} == {FOUR, TWO, ONE}
    later, _ = go_on(made, asked, four_wins, 9, records)
    assert {made.layout_of(p.candidate) for p in later} == {FOUR}
    assert {p.role for p in later} == {Role.SEED, Role.SEARCH}
    told = [s for p in (*first, *later) for s in p.dropped]
    assert sorted(s.layout.tensor_parallel for s in told) == [2, 4]
    assert all(s.why is WhyDropped.BEHIND and s.leader == FOUR for s in told)


def test_a_layout_that_never_starts_is_dropped_and_not_asked_again(tmp_path: Path) -> None:
    made = layouts_plan(tmp_path / "s", (FOUR, ONE), starts=60)
    asked = search(made)
    _, records = go_on(made, asked, lambda layout: None if layout == FOUR else 40.0, 4)
    assert standing(asked, FOUR).why is WhyDropped.DOES_NOT_START
    later, _ = go_on(made, asked, evenly, 5, records)
    assert {made.layout_of(p.candidate) for p in later} == {ONE}


def test_candidates_of_a_dropped_layout_in_the_queue_are_answered_and_counted_as_saved(tmp_path: Path) -> None:
    made = layouts_plan(tmp_path / "s", (FOUR, ONE), starts=60)
    asked = search(made)
    first = [asked.ask() for _ in range(4)]
    late = asked.ask()
    assert late.role is Role.SEED
    dropped = made.layout_of(late.candidate)
    for trial, proposal in enumerate(first):
        mine = made.layout_of(proposal.candidate) == dropped
        asked.tell(answered(made, proposal, trial, 10.0 if mine else 40.0))
    asked.requeue(late.number)  # the machine was at fault
    assert made.layout_of(asked.ask().candidate) != dropped
    assert standing(asked, dropped).saved == 1
    resumed = search(made)
    resumed.restore([])
    assert resumed.layouts[0].saved + resumed.layouts[1].saved == 1


def test_a_resumed_search_has_the_same_layouts_and_asks_the_same_seeds(tmp_path: Path) -> None:
    made = layouts_plan(tmp_path / "s", starts=60)
    first = search(made)
    _, records = go_on(made, first, four_wins, 7)
    check = replace(record(7, made.default_of(FOUR), (level(9.0),), role=Role.CHECK), search_trial=None)
    first.observe(check)
    second = search(made)
    second.restore([*records, check])
    assert second.layouts == first.layouts
    assert standing(second, FOUR).kept == pytest.approx(0.9)
    expected = first.ask()
    third = search(made)
    third.restore([*records, check])  # the first was killed
    again = third.ask()
    assert (again.role, again.candidate) == (expected.role, expected.candidate)
    assert again.dropped == ()


def test_a_dropped_layout_is_asked_again_once_the_leader_is_refuted(tmp_path: Path) -> None:
    made = layouts_plan(tmp_path / "s", (FOUR, ONE), starts=60)
    asked = search(made)
    _, records = go_on(made, asked, four_wins, 4)
    assert standing(asked, ONE).is_dropped
    leaders = [r.candidate for r in records if made.layout_of(r.candidate) == FOUR]
    for trial, (candidate, door) in enumerate(itertools.product(leaders, made.doors), start=4):
        asked.observe(with_start(record(trial, candidate, (level(1.0, p99_ms=900),), role=Role.CONFIRM), door=door))
    assert not standing(asked, ONE).is_dropped
    later, _ = go_on(made, asked, evenly, 1, records)
    assert made.layout_of(later[0].candidate) == ONE


def test_a_broken_layout_is_not_proposed_and_nothing_is_learnt_of_it(tmp_path: Path) -> None:
    made = layouts_plan(tmp_path / "s", starts=60)
    asked = search(made)
    for trial in range(6):
        proposal = asked.ask(frozenset({FOUR, TWO}))
        assert made.layout_of(proposal.candidate) == ONE
        asked.tell(answered(made, proposal, trial, 10.0))
    study = optuna.load_study(study_name="s", storage=made.storage)
    failed = [t for t in study.trials if t.state is optuna.trial.TrialState.FAIL]
    assert len(failed) == 4  # default and first seed of each
    assert not [t for t in failed if t.values]
