"""A search that begins with an earlier study: its best candidates and its rules, translated, and what is left out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.study.builders import REFUSAL, SPACE, layouts_plan, level, plan, record
from tests.study.study_run import DEFAULTS, StudyRun
from tuner import jsonfile
from tuner.candidate import Candidate, Value
from tuner.environment import Environment, Gpu, describe
from tuner.errors import UsageError
from tuner.layout import Layout
from tuner.load.workload import workload
from tuner.slo import parse_slo
from tuner.space.axis import ParameterAxis
from tuner.space.parameter import Kind, Parameter
from tuner.study.begin import BEST, begins_with, with_earlier
from tuner.study.earlier import BeginsWith, Differs
from tuner.study.learnt import known_rules
from tuner.study.mechanics import COSTS, Mechanics
from tuner.study.plan import Ladder, StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.rule import FlagLimit, LearntRule
from tuner.study.seeds import seeds
from tuner.study.setting import StudySetting
from tuner.study.store import Store
from tuner.study.surrogate import Ends, Seen, Surrogate, full_servers
from tuner.study.upgrade import read_plan

NOW = describe("0.32.0", "/models/tiny", (), None)
H100 = Gpu(0, "NVIDIA H100 80GB HBM3", 79.6, "GPU-0")
SEQS, TOKENS, MEMORY = (p.flag for p in SPACE.parameters)


def earlier_study(
    folder: Path, records: tuple[TrialRecord, ...], environment: Environment = NOW, **of_plan: Any
) -> Path:
    """Write a study that is not finished. Its records say all that counts."""
    store = Store(folder)
    store.create()
    made = replace(of_plan.pop("made", None) or plan(folder), **of_plan)
    store.save_plan(made, environment)
    for one in records:
        store.save_record(one)
    return folder


def at(seqs: int, tokens: int = 4096, memory: float = 0.9) -> Candidate:
    return Candidate.of({SEQS: seqs, TOKENS: tokens, MEMORY: memory})


def measured(trial: int, candidate: Candidate, qps: float, role: Role = Role.SEARCH) -> TrialRecord:
    return record(trial, candidate, (level(qps),), role=role)


def refused(trial: int, candidate: Candidate) -> TrialRecord:
    cause = replace(REFUSAL, kind="oom")
    return record(trial, candidate, role=Role.SEARCH, outcome=TrialOutcome.REFUSED, cause=cause)


def spaced(later: StudyPlan, *parameters: Parameter) -> StudyPlan:
    return replace(later, space=replace(later.space, parameters=parameters))


def test_a_search_begins_with_the_default_and_the_earlier_best_five_in_their_order(tmp_path: Path) -> None:
    qps = (40.0, 60.0, 55.0, 90.0, 60.0, 10.0, 70.0)
    records = [measured(trial, at(64 + trial), rate) for trial, rate in enumerate(qps)]
    records += [measured(7, plan(tmp_path / "first").baseline, 95.0, Role.DEFAULT), refused(8, at(1000))]
    later = plan(tmp_path / "later", starts=2 + BEST, confirm_starts=0)
    found = begins_with(earlier_study(tmp_path / "first", tuple(records)), later, NOW)
    best = [c.candidate for c in found.candidates]
    assert best == [at(64 + trial) for trial in (3, 6, 1, 4, 2)]
    assert [c.qps for c in found.candidates] == [90.0, 70.0, 60.0, 60.0, 55.0]
    later = replace(later, begins_with=found)
    setting = StudySetting.of(later, DEFAULTS)
    run = StudyRun(later, first=with_earlier(later, seeds(setting)))
    run.loop.run()
    searched = [r for r in run.loop.records if r.role.searches]
    assert searched[0].role is Role.DEFAULT
    assert [(r.role, r.candidate) for r in searched[1 : 1 + BEST]] == [(Role.EARLIER, c) for c in best]
    assert all(r.role is not Role.EARLIER for r in searched[1 + BEST :])
    assert read_plan(run.store.folder / "plan.json").begins_with == found


def test_as_many_first_candidates_are_started_as_without_an_earlier_study(tmp_path: Path) -> None:
    later = plan(tmp_path / "later")
    usual = seeds(StudySetting.of(later, DEFAULTS))
    for n in (0, 1, 3, BEST):
        folder = earlier_study(tmp_path / f"s{n}", tuple(measured(i, at(100 + i), 50.0 + i) for i in range(n)))
        first = with_earlier(replace(later, begins_with=begins_with(folder, later, NOW)), usual)
        assert len(first) == max(n, len(usual))
        assert first[n:] == usual[: max(0, len(usual) - n)]


@pytest.mark.parametrize("kept", [1, 3, 5])
def test_a_search_that_was_cut_among_the_earlier_candidates_starts_the_rest_of_them(kept: int, tmp_path: Path) -> None:
    records = tuple(measured(i, at(100 + i), 50.0 + i) for i in range(BEST))
    later = plan(tmp_path / "later", starts=1 + BEST, confirm_starts=0)
    later = replace(later, begins_with=begins_with(earlier_study(tmp_path / "first", records), later, NOW))
    first = with_earlier(later, seeds(StudySetting.of(later, DEFAULTS)))
    StudyRun(later, first=first).cut(kept)
    again = StudyRun(later, first=first)
    again.loop.run()
    counted = [r for r in again.loop.records if r.counts]
    begun = [r.candidate for r in counted if r.role is Role.EARLIER]
    assert later.begins_with is not None
    assert len(begun) == BEST and set(begun) == {c.candidate for c in later.begins_with.candidates}


VALUES = st.fixed_dictionaries(
    {SEQS: st.integers(8, 1024), TOKENS: st.integers(512, 32768), MEMORY: st.integers(800, 970).map(lambda n: n / 1000)}
)
RANGES = st.tuples(st.integers(8, 512), st.integers(8, 512)).map(sorted)


@settings(max_examples=25)
@given(values=VALUES, ends=RANGES, choices=st.lists(st.integers(512, 32768), min_size=1, max_size=4, unique=True))
def test_a_candidate_keeps_what_the_later_space_has_and_every_move_is_named(
    values: Mapping[str, Value], ends: list[int], choices: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("moved")
    study = earlier_study(folder / "first", (measured(0, Candidate.of(values), 50.0),))
    low, high = ends
    later = spaced(
        plan(folder / "later"),
        Parameter(SEQS, Kind.INT, low, high),
        Parameter(TOKENS, Kind.CHOICE, choices=tuple(choices)),
    )
    found = begins_with(study, later, NOW)
    (one,) = found.candidates
    now = one.candidate.as_dict()
    assert found.not_searched == (MEMORY,) and MEMORY not in now
    assert low <= float(now[SEQS]) <= high and now[TOKENS] in choices
    moved = {d.what: (d.was, d.now) for d in one.changed}
    for flag in (SEQS, TOKENS):
        assert (flag in moved) == (now[flag] != values[flag])
        assert moved.get(flag, (values[flag], now[flag])) == (values[flag], now[flag])
    nearest = min(abs(choice - float(values[TOKENS])) for choice in choices)
    assert abs(float(now[TOKENS]) - float(values[TOKENS])) == nearest


def test_a_move_that_vllms_argument_rules_ask_for_is_named_too(tmp_path: Path) -> None:
    study = earlier_study(tmp_path / "first", (measured(0, at(600, 1024), 50.0),))
    later = spaced(plan(tmp_path / "later"), SPACE.parameters[0], Parameter(TOKENS, Kind.INT, 256, 512))
    (one,) = begins_with(study, later, NOW).candidates
    assert one.candidate == Candidate.of({SEQS: 600, TOKENS: 600})
    assert one.changed == (Differs(TOKENS, 1024, 600),)


def test_a_parameter_that_only_the_later_space_has_gets_vllms_default(tmp_path: Path) -> None:
    narrow = spaced(plan(tmp_path / "first"), SPACE.parameters[0])
    study = earlier_study(tmp_path / "first", (measured(0, Candidate.of({SEQS: 128}), 50.0),), made=narrow)
    (one,) = begins_with(study, plan(tmp_path / "later"), NOW).candidates
    assert one.candidate == at(128, int(DEFAULTS[TOKENS]), float(DEFAULTS[MEMORY]))
    assert one.changed == ()


def test_what_a_confirmation_refuted_is_not_among_the_best(tmp_path: Path) -> None:
    broke = record(2, at(128), (level(90.0, p99_ms=900.0),), role=Role.CONFIRM)
    records = (measured(0, at(128), 90.0), measured(1, at(64), 80.0), broke)
    found = begins_with(earlier_study(tmp_path / "first", records), plan(tmp_path / "later"), NOW)
    assert [c.candidate for c in found.candidates] == [at(64)]


def test_candidates_keep_their_layout_and_those_of_others_are_named(tmp_path: Path) -> None:
    before = layouts_plan(tmp_path / "first", (Layout(4, 1), Layout(2, 2), Layout(1, 4)))
    records = tuple(
        measured(trial, Candidate.of({**at(64).as_dict(), **layout.flags}), 50.0 - trial)
        for trial, layout in enumerate((Layout(4, 1), Layout(2, 2)))
    )
    study = earlier_study(tmp_path / "first", records, made=before)
    later = layouts_plan(tmp_path / "later", (Layout(1, 2), Layout(2, 1)), gpus=2)
    found = begins_with(study, later, NOW)
    assert [later.layout_of(c.candidate) for c in found.candidates] == [Layout(2, 1), Layout(1, 2)]
    only = layouts_plan(tmp_path / "only", (Layout(2, 2),))
    found = begins_with(study, only, NOW)
    assert found.without_layout == (0,)
    assert [c.candidate for c in found.candidates] == [at(64)]


def test_rules_hold_in_a_study_under_the_same_conditions_and_say_where_they_come_from(tmp_path: Path) -> None:
    study = earlier_study(tmp_path / "first", (refused(0, at(512, memory=0.96)),))
    later = plan(tmp_path / "later")
    later = replace(later, begins_with=begins_with(study, later, NOW))
    setting = StudySetting.of(later, DEFAULTS)
    (rule,) = known_rules(setting, ())
    assert (rule.study, rule.trial) == ("first", 0)
    assert str(rule).endswith("(oom, trial 0000 of first)")
    assert rule.rules_out(setting.values(at(600, memory=0.96)))
    assert not rule.rules_out(setting.values(at(500, memory=0.96)))
    (withdrawn,) = known_rules(setting, (measured(3, at(700, 8192, 0.97), 40.0),))
    assert withdrawn.withdrawn_by == 3


@pytest.mark.parametrize(
    ("change", "version", "differs"),
    [
        ({}, "0.33.0", Differs("vLLM", "0.32.0", "0.33.0")),
        ({"fixed": (("max-model-len", 8192),)}, "0.32.0", Differs("max-model-len", 4096, 8192)),
        ({"fixed": ()}, "0.32.0", Differs("max-model-len", 4096, None)),
        ({"extra": ("--kv-cache-dtype", "fp8")}, "0.32.0", Differs("kv-cache-dtype", "auto", "fp8")),
        ({"env": (("VLLM_USE_X", "1"),)}, "0.32.0", Differs("VLLM_USE_X", None, "1")),
    ],
)
def test_rules_that_may_not_hold_any_more_are_left_out_with_the_reason(
    change: dict[str, Any], version: str, differs: Differs, tmp_path: Path
) -> None:
    base = replace(plan(tmp_path / "first").base, fixed=(("max-model-len", 4096),))
    study = earlier_study(tmp_path / "first", (refused(0, at(512)), measured(1, at(64), 50.0)), base=base)
    later = replace(plan(tmp_path / "later"), base=replace(base, **change))
    found = begins_with(study, later, replace(NOW, vllm_version=version))
    assert (found.rules, found.stale_rules) == ((), 1)
    (mine,) = found.stale_by
    assert (mine.what, mine.now) == (differs.what, differs.now)
    assert len(found.candidates) == 1


@settings(max_examples=25)
@given(values=VALUES, asked=VALUES, was=st.sets(st.sampled_from([SEQS, TOKENS, MEMORY]), min_size=1), now=st.sets(
    st.sampled_from([SEQS, TOKENS, MEMORY]), min_size=1))  # fmt: skip
def test_a_translated_rule_excludes_nothing_that_the_earlier_one_would_not(
    values: Mapping[str, Value], asked: Mapping[str, Value], was: set[str], now: set[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("rules")
    of = {p.flag: p for p in SPACE.parameters}
    before = spaced(plan(folder / "first"), *(of[flag] for flag in sorted(was)))
    chosen = Candidate.of({flag: values[flag] for flag in was})
    study = earlier_study(folder / "first", (refused(0, chosen),), made=before)
    later = spaced(plan(folder / "later"), *(of[flag] for flag in sorted(now)))
    found = begins_with(study, later, NOW)
    earlier, setting = StudySetting.of(before, DEFAULTS), StudySetting.of(later, DEFAULTS)
    (rule,) = known_rules(earlier, (refused(0, chosen),))
    candidate = Candidate.of({flag: asked[flag] for flag in now})
    here = setting.values(candidate)
    if any(mine.rules_out(here) for mine in found.rules):
        assert rule.rules_out(here)
        assert all(here[flag] == earlier.constant[flag] for flag in now - was)


def test_a_study_without_anything_feasible_or_finished_begins_with_nothing(tmp_path: Path) -> None:
    found = begins_with(earlier_study(tmp_path / "first", ()), plan(tmp_path / "later"), NOW)
    assert found == BeginsWith("first", "0.32.0")


@pytest.mark.parametrize(
    ("then", "now", "says"),
    [
        (replace(NOW, model="/models/other"), NOW, "searched another model: /models/other"),
        (replace(NOW, model_digest="a"), replace(NOW, model_digest="b"), "searched another model"),
        (replace(NOW, gpus=(H100,)), replace(NOW, gpus=(replace(H100, name="NVIDIA L40S"),)), "this is NVIDIA L40S"),
        (replace(NOW, gpus=(H100,)), NOW, f"ran on {H100.name}, this is {NOW.cpu}"),
    ],
)
def test_another_model_and_other_gpus_are_refused(
    then: Environment, now: Environment, says: str, tmp_path: Path
) -> None:
    study = earlier_study(tmp_path / "first", (), then)
    with pytest.raises(UsageError) as error:
        begins_with(study, plan(tmp_path / "later"), now)
    assert says in error.value.message and "leave --from out" in error.value.hint


def test_more_of_the_same_gpus_and_the_same_model_elsewhere_are_fine(tmp_path: Path) -> None:
    then = replace(NOW, gpus=(H100,), model_digest="a")
    now = replace(then, gpus=(H100, replace(H100, index=1)), model="/elsewhere/tiny", host="other")
    study = earlier_study(tmp_path / "first", (measured(0, at(64), 50.0),), then)
    assert len(begins_with(study, plan(tmp_path / "later"), now).candidates) == 1


def test_a_study_cannot_begin_with_itself(tmp_path: Path) -> None:
    study = earlier_study(tmp_path / "first", ())
    with pytest.raises(UsageError, match="cannot begin with itself"):
        begins_with(study, plan(study), NOW)


def test_a_result_keeps_which_study_a_rule_is_of(tmp_path: Path) -> None:
    rule = LearntRule(3, "oom", (FlagLimit(SEQS, ">=", 512),), study="first")
    path = tmp_path / "rule.json"
    jsonfile.dump(path, rule)
    assert jsonfile.load(path, LearntRule) == rule


# ---------------------------------------------------------------- constants of the model's mean


TRUE = (0.002, 0.004, 0.003)
"""Seconds of a request, of its steps of decoding and of its prefill."""


def of_physics(made: StudyPlan, constants: tuple[float, ...] = TRUE, n: int = 12) -> tuple[TrialRecord, ...]:
    """Measure candidates of a server that is always full and obeys the physics of mechanics.py."""
    setting = StudySetting.of(made, DEFAULTS)
    mechanics = Mechanics(setting, [ParameterAxis(p) for p in made.parameters], ())
    found = []
    for trial in range(n):
        candidate = at(8 << (trial % 4), 512 << (trial % 5), 0.9)
        terms = mechanics.view(candidate, 64).full[:COSTS]
        qps = 1 / sum(constant * term for constant, term in zip(constants, terms, strict=True))
        found.append(record(trial, candidate, (level(qps, concurrency=64),)))
    return tuple(found)


def test_a_later_model_predicts_from_one_figure_what_the_earlier_study_found(tmp_path: Path) -> None:
    study = earlier_study(tmp_path / "first", of_physics(plan(tmp_path / "first")))
    later = plan(tmp_path / "later")
    known = begins_with(study, later, NOW).constants
    figures = _figures(later, of_physics(later))
    errors = [
        _worst_error(Surrogate(figures[:1], full_servers(constants), Ends.of([f.view for f in figures]), 0), figures)
        for constants in (known, ())
    ]
    assert errors[0] < 0.02 < 0.3 < errors[1]


def test_a_later_studys_own_figures_outweigh_the_earlier_constants(tmp_path: Path) -> None:
    study = earlier_study(tmp_path / "first", of_physics(plan(tmp_path / "first")))
    later = plan(tmp_path / "later")
    known = begins_with(study, later, NOW).constants
    figures = _figures(later, of_physics(later, (0.004, 0.001, 0.009), n=20))
    ends = Ends.of([f.view for f in figures])
    assert _worst_error(Surrogate(figures, full_servers(known), ends, 0), figures) < 0.02


@pytest.mark.parametrize(
    ("change", "known"),
    [
        ({}, None),
        ({"slos": (parse_slo("p99 ttft <= 100ms"),)}, COSTS),
        ({"workload": workload("random:640,16")}, COSTS),
        ({"load": Ladder((64,), 1.0, 0.0)}, COSTS),
    ],
)
def test_under_other_limits_or_traffic_only_constants_of_a_full_server_are_taken_over(
    change: dict[str, Any], known: int | None, tmp_path: Path
) -> None:
    study = earlier_study(tmp_path / "first", of_physics(plan(tmp_path / "first")))
    found = begins_with(study, replace(plan(tmp_path / "later"), **change), NOW).constants
    assert len(found) > COSTS
    assert sum(constant > 0 for constant in found[:COSTS]) > 1
    assert not any(found[known:] if known else ())


def test_constants_of_servers_of_another_size_are_not_taken_over(tmp_path: Path) -> None:
    study = earlier_study(tmp_path / "first", of_physics(plan(tmp_path / "first")))
    later = layouts_plan(tmp_path / "later", (Layout(1, 2),), gpus=2)
    assert begins_with(study, later, NOW).constants == ()


def _figures(made: StudyPlan, records: tuple[TrialRecord, ...]) -> list[Seen]:
    setting = StudySetting.of(made, DEFAULTS)
    mechanics = Mechanics(setting, [ParameterAxis(p) for p in made.parameters], ())
    return [Seen(mechanics.view(r.candidate, 64), r.qps or 0.0, 0.01, 1) for r in records]


def _worst_error(model: Surrogate, figures: list[Seen]) -> float:
    mean, _ = model.predict([f.view for f in figures])
    return max(abs(math.exp(log) / f.qps - 1) for log, f in zip(mean, figures, strict=True))
