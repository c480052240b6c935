"""Rules from refused starts: never more than they show, always with the start that showed it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.study.builders import SPACE, layouts_plan, level, plan, record, with_start
from tests.test_capacity import LLAMA_3_8B
from tuner import jsonfile
from tuner.candidate import Candidate, Value
from tuner.capacity import GIB
from tuner.environment import Gpu
from tuner.layout import Layout
from tuner.server.diagnosis import Bound, Cause, Fault, ServerPhase, diagnose
from tuner.space.parameter import Kind, Parameter
from tuner.space.space import Space
from tuner.study.kv_budget import KvFloor, kv_floor
from tuner.study.learnt import CAPACITY, FlagLimit, LearntRule, bounds, known_rules, rules
from tuner.study.plan import StudyPlan
from tuner.study.record import TrialOutcome, TrialRecord
from tuner.study.setting import StudySetting
from tuner.vllm.defaults import vllm_defaults
from tuner.vllm.facts import StartFacts
from tuner.vllm.refusals import CONTEXTS

H100 = (Gpu(0, "NVIDIA H100 80GB HBM3", 79.65, "GPU-0"),)
DEFAULTS = vllm_defaults("0.32.0", ())
AXES = ("max-num-seqs", "max-num-batched-tokens", "gpu-memory-utilization")
FLAGS = st.fixed_dictionaries({
    "max-num-seqs": st.integers(8, 1024),
    "max-num-batched-tokens": st.integers(512, 32768),
    "gpu-memory-utilization": st.integers(800, 970).map(lambda n: n / 1000),
})  # fmt: skip


def cause(kind: str, *bounds: Bound, fault: Fault = Fault.CANDIDATE) -> Cause:
    return Cause(kind, fault, "the log's line", "why", "what to do", bounds)


def refused(trial: int, values: Mapping[str, Value], why: Cause) -> TrialRecord:
    return record(trial, Candidate.of(values), outcome=TrialOutcome.REFUSED, cause=why)


def started(trial: int, values: Mapping[str, Value]) -> TrialRecord:
    return record(trial, Candidate.of(values), (level(10.0),))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> StudyPlan:
    return plan(tmp_path_factory.mktemp("learnt") / "s")


def of_one(made: StudyPlan, values: Mapping[str, Value], why: Cause) -> LearntRule:
    (rule,) = rules(StudySetting.of(made, DEFAULTS), [refused(7, values, why)])
    return rule


CORNER: dict[str, Value] = {"max-num-seqs": 256, "max-num-batched-tokens": 8192, "gpu-memory-utilization": 0.95}


@given(FLAGS, FLAGS)
def test_out_of_memory_rules_out_exactly_what_asks_at_least_as_much_of_everything(
    made: StudyPlan, taught: dict[str, float], other: dict[str, float]
) -> None:
    rule = of_one(made, taught, cause("oom"))
    assert rule.rules_out(taught)
    assert rule.rules_out(other) == all(other[flag] >= taught[flag] for flag in AXES)


@given(FLAGS, FLAGS)
def test_a_cache_that_was_too_small_is_so_with_no_more_memory_and_no_less_that_eats_it(
    made: StudyPlan, taught: dict[str, float], other: dict[str, float]
) -> None:
    rule = of_one(made, taught, cause("kv-too-small"))
    less = other[AXES[2]] <= taught[AXES[2]] and all(other[flag] >= taught[flag] for flag in AXES[:2])
    assert rule.rules_out(taught)
    assert rule.rules_out(other) == less


@given(st.lists(st.tuples(FLAGS, st.sampled_from(["oom", "kv-too-small", "no-kv-memory", "started"])), max_size=12))
def test_no_rule_that_holds_rules_out_a_candidate_that_started(
    made: StudyPlan, starts: list[tuple[dict[str, float], str]]
) -> None:
    records = [
        started(i, values) if kind == "started" else refused(i, values, cause(kind))
        for i, (values, kind) in enumerate(starts)
    ]
    holding = [rule for rule in rules(StudySetting.of(made, DEFAULTS), records) if rule.withdrawn_by is None]
    assert not [v for v, kind in starts if kind == "started" for rule in holding if rule.rules_out(v)]
    assert all(starts[rule.trial][1] == rule.cause for rule in holding)


@given(FLAGS, FLAGS, FLAGS)
def test_a_rule_implied_by_another_rules_out_nothing_more(
    made: StudyPlan, one: dict[str, float], other: dict[str, float], anyone: dict[str, float]
) -> None:
    narrow, wide = of_one(made, one, cause("oom")), of_one(made, other, cause("oom"))
    if narrow.is_implied_by(wide) and narrow.rules_out(anyone):
        assert wide.rules_out(anyone)
    assert narrow.is_implied_by(wide) == wide.rules_out(one)


@pytest.mark.parametrize("kind", ["unknown", "ended", "start-limit", "killed", "bad-argument", "oom-under-load"])
def test_nothing_is_learnt_from_what_is_unexplained(made: StudyPlan, kind: str) -> None:
    assert rules(StudySetting.of(made, DEFAULTS), [refused(0, CORNER, cause(kind))]) == ()


@pytest.mark.parametrize("kind", sorted(CONTEXTS))
def test_nothing_is_learnt_from_the_machines_fault_or_from_a_death_under_load(made: StudyPlan, kind: str) -> None:
    why = cause(kind, Bound("max-num-seqs", "<=", 9))
    assert rules(StudySetting.of(made, DEFAULTS), [refused(0, CORNER, why)]) != ()
    assert rules(StudySetting.of(made, DEFAULTS), [refused(0, CORNER, replace(why, fault=Fault.ENVIRONMENT))]) == ()
    for outcome in (TrialOutcome.INFRASTRUCTURE, TrialOutcome.DIED, TrialOutcome.INTERRUPTED):
        assert rules(StudySetting.of(made, DEFAULTS), [replace(refused(0, CORNER, why), outcome=outcome)]) == ()


def test_memory_that_others_hold_is_a_bound_for_every_candidate(made: StudyPlan) -> None:
    text = (
        "ValueError: Free memory on device cuda:0 (75.9/79.6 GiB) on startup is less than desired GPU memory "
        "utilization (0.96, 76.42 GiB)."
    )
    rule = of_one(made, CORNER, diagnose(text, exit_code=1, phase=ServerPhase.STARTING))
    assert rule.limits == (FlagLimit("gpu-memory-utilization", ">", 0.953),)
    assert str(rule) == "gpu-memory-utilization > 0.953 (memory-wanted, trial 0007)"


SEARCHED_LENGTH = Space("length", (*SPACE.parameters, Parameter("max-model-len", Kind.INT, 1024, 40960)))


def test_a_length_that_the_cache_cannot_hold_is_one_for_no_larger_caches_only(made: StudyPlan) -> None:
    text = (
        "ValueError: To serve at least one request with the model's max seq len (32768), (4.5 GiB KV cache is needed, "
        "which is larger than the available KV cache memory (1.37 GiB). Based on the available memory, the estimated "
        "maximum model length is 9984."
    )
    why = diagnose(text, exit_code=1, phase=ServerPhase.STARTING)
    values = {**CORNER, "max-model-len": 32768}
    rule = of_one(replace(made, space=SEARCHED_LENGTH), values, why)
    assert rule.rules_out({**values, "max-model-len": 9985})
    assert not rule.rules_out({**values, "max-model-len": 9984})
    assert not rule.rules_out({**values, "max-model-len": 9985, "gpu-memory-utilization": 0.951})
    assert not rule.rules_out({**values, "max-model-len": 9985, "max-num-seqs": 255})


def test_a_bound_on_another_flags_value_holds_while_that_is_no_larger(made: StudyPlan) -> None:
    why = cause("batched-below-seqs", Bound("max-num-seqs", "<=", 512))
    rule = of_one(made, {**CORNER, "max-num-batched-tokens": 512, "max-num-seqs": 600}, why)
    assert rule.rules_out({"max-num-seqs": 513, "max-num-batched-tokens": 512})
    assert not rule.rules_out({"max-num-seqs": 513, "max-num-batched-tokens": 576})


def test_flags_of_unknown_influence_must_be_equal_and_those_of_none_may_differ(made: StudyPlan) -> None:
    more = (Parameter("enable-chunked-prefill", Kind.FLAG), Parameter("stream-interval", Kind.INT, 1, 8))
    wider = replace(made, space=Space("wider", (*SPACE.parameters, *more)))
    values = {**CORNER, "enable-chunked-prefill": False, "stream-interval": 4}
    rule = of_one(wider, values, cause("oom"))
    assert rule.rules_out({**values, "stream-interval": 1})
    assert not rule.rules_out({**values, "enable-chunked-prefill": True})


def test_beside_bytes_of_kv_cache_the_share_of_the_memory_counts_for_nothing(made: StudyPlan) -> None:
    cache = Parameter("kv-cache-memory-bytes", Kind.LOG_INT, 2**24, 2**30)
    space = Space("bytes", (SPACE.parameters[0], cache))
    values: dict[str, Value] = {"kv-cache-memory-bytes": 2**24, "max-num-seqs": 64}
    rule = of_one(replace(made, space=space), values, cause("kv-too-small"))
    assert rule.words == "kv-cache-memory-bytes ≤ 16,777,216"


def test_a_default_without_the_constant_flags_of_the_others_teaches_nothing_of_them(made: StudyPlan) -> None:
    fixed = replace(made, space=replace(SPACE, fixed=(("max-model-len", 2048),)))
    bound = Bound("max-model-len", "<=", 9984)
    assert rules(StudySetting.of(fixed, DEFAULTS), [refused(0, {}, cause("kv-too-small", bound))]) == ()
    assert rules(StudySetting.of(fixed, DEFAULTS), [refused(0, {}, cause("oom"))]) == ()
    tighter = cause("kv-too-small", replace(bound, limit=1024))
    (rule,) = rules(StudySetting.of(fixed, DEFAULTS), [refused(0, {}, tighter)])
    assert rule.rules_out(StudySetting.of(fixed, DEFAULTS).values(Candidate()))


def test_a_start_that_succeeds_withdraws_the_rule_against_it(made: StudyPlan) -> None:
    records = [refused(3, CORNER, cause("oom")), started(9, {**CORNER, "max-num-seqs": 300})]
    (rule,) = rules(StudySetting.of(made, DEFAULTS), records)
    assert (rule.trial, rule.withdrawn_by) == (3, 9)
    records.append(refused(11, {**CORNER, "max-num-seqs": 900}, cause("oom")))
    assert [r.withdrawn_by for r in rules(StudySetting.of(made, DEFAULTS), records)] == [9, None]


def test_a_refusal_that_a_rule_predicted_is_no_rule_of_its_own(made: StudyPlan) -> None:
    records = [refused(1, CORNER, cause("oom")), refused(2, {**CORNER, "max-num-seqs": 999}, cause("oom"))]
    assert [rule.trial for rule in rules(StudySetting.of(made, DEFAULTS), records)] == [1]


def test_a_rule_survives_its_file(made: StudyPlan) -> None:
    rule = replace(of_one(made, CORNER, cause("oom")), saved=3, withdrawn_by=12)
    assert jsonfile.loads(jsonfile.dumps(rule), LearntRule) == rule


# ── the arithmetic, once a start's log made it exact


def on_disk(folder: Path, space: Space) -> StudyPlan:
    made = plan(folder / "study")
    (folder / "config.json").write_text(json.dumps(LLAMA_3_8B))
    return replace(made, model=str(folder), space=space)


def floors(setting: StudySetting, records: list[TrialRecord]) -> list[KvFloor]:
    floor = kv_floor(setting, records)
    return [] if floor is None else [floor]


def first_start(values: Mapping[str, Value], kv_tokens: int) -> TrialRecord:
    return with_start(started(0, values), facts=StartFacts(kv_tokens=kv_tokens, max_model_len=8192))


def test_bytes_that_hold_less_than_one_request_are_ruled_out_by_the_first_starts_log(tmp_path: Path) -> None:
    cache = Parameter("kv-cache-memory-bytes", Kind.LOG_INT, GIB // 4, 32 * GIB, 1 << 20)
    baseline: dict[str, Value] = {"kv-cache-memory-bytes": 4 * GIB}
    made = on_disk(tmp_path, Space("bytes", (SPACE.parameters[0], cache), baseline=tuple(baseline.items())))
    assert kv_floor(StudySetting.of(made, DEFAULTS, ()), []) is None
    records = [first_start(baseline, 4 * 8192)]
    (rule,) = rules(StudySetting.of(made, DEFAULTS), records, floors(StudySetting.of(made, DEFAULTS, ()), records))
    assert (rule.cause, rule.trial) == (CAPACITY, 0)
    assert rule.rules_out({"max-num-seqs": 8, "kv-cache-memory-bytes": int(0.89 * GIB)})  # 8,192 tokens of 128 KiB
    assert not rule.rules_out({"max-num-seqs": 1024, "kv-cache-memory-bytes": GIB})


def test_a_share_of_the_memory_is_ruled_out_only_where_as_much_is_eaten_as_by_the_first_start(tmp_path: Path) -> None:
    share = Parameter("gpu-memory-utilization", Kind.FLOAT, 0.1, 0.97)
    made = on_disk(tmp_path, replace(SPACE, parameters=(*SPACE.parameters[:2], share)))
    defaults = vllm_defaults("0.32.0", H100)
    records = [first_start({}, int(55 * GIB / 131_072))]
    (rule,) = rules(StudySetting.of(made, defaults), records, floors(StudySetting.of(made, defaults, H100), records))
    values: dict[str, Value] = {"max-num-seqs": 1024, "max-num-batched-tokens": 8192}
    # 0.92 of 79.65 GiB leave 55 GiB: a request of 1 GiB needs a share of (55 - 1) / 79.65 less, 0.24.
    assert rule.rules_out({**values, "gpu-memory-utilization": 0.21})
    assert not rule.rules_out({**values, "gpu-memory-utilization": 0.24})
    assert not rule.rules_out({**values, "gpu-memory-utilization": 0.21, "max-num-batched-tokens": 8128})


def test_a_range_that_lies_above_what_one_request_needs_has_no_floor(tmp_path: Path) -> None:
    made = on_disk(tmp_path, SPACE)
    defaults = vllm_defaults("0.32.0", H100)
    assert kv_floor(StudySetting.of(made, defaults, H100), [first_start({}, int(55 * GIB / 131_072))]) is None


# ── several layouts

LAYOUTS = (Layout(8, 1), Layout(4, 2), Layout(4, 1, 2), Layout(2, 2, 2), Layout(1, 8))
CONTEXT_KINDS = sorted(CONTEXTS)
BOUNDS = st.builds(
    Bound, st.sampled_from((*AXES, "max-model-len")), st.sampled_from(("<=", ">=")), st.floats(0, 40_000)
)


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> StudyPlan:
    return layouts_plan(tmp_path_factory.mktemp("layouts") / "s", LAYOUTS, gpus=8)


@given(
    st.sampled_from(LAYOUTS),
    st.sampled_from(LAYOUTS),
    FLAGS,
    FLAGS,
    st.sampled_from(CONTEXT_KINDS),
    st.lists(BOUNDS, max_size=2),
)
def test_a_rule_of_one_size_of_server_never_rules_out_another(
    laid_out: StudyPlan,
    mine: Layout,
    other: Layout,
    taught: dict[str, float],
    flags: dict[str, float],
    kind: str,
    named: list[Bound],
) -> None:
    setting = StudySetting.of(laid_out, DEFAULTS)
    start = refused(0, {**taught, **mine.flags}, cause(kind, *named))
    values = setting.values(setting.candidate({**flags, **other.flags}))
    found = known_rules(setting, [start])
    if (mine.tensor_parallel, mine.pipeline_parallel) != (other.tensor_parallel, other.pipeline_parallel):
        assert not [rule for rule in found if rule.rules_out(values)]


@given(st.sampled_from(LAYOUTS), FLAGS, st.sampled_from(CONTEXT_KINDS))
def test_the_number_of_servers_is_no_limit_of_a_rule(
    laid_out: StudyPlan, layout: Layout, taught: dict[str, float], kind: str
) -> None:
    found = rules(StudySetting.of(laid_out, DEFAULTS), [refused(0, {**taught, **layout.flags}, cause(kind))])
    assert not [limit for rule in found for limit in rule.limits if limit.flag == "data-parallel-size"]


def test_a_bound_beside_a_servers_size_is_still_one_on_a_flag_alone(laid_out: StudyPlan) -> None:
    setting = StudySetting.of(laid_out, DEFAULTS)
    why = cause("memory-wanted", Bound("gpu-memory-utilization", "<=", 0.9))
    found = rules(setting, [refused(0, {**CORNER, **LAYOUTS[1].flags}, why)])
    beyond = setting.values(setting.candidate({**CORNER, **LAYOUTS[1].flags}))
    assert bounds(found, beyond) == [FlagLimit("gpu-memory-utilization", ">", 0.9)]
    assert bounds(found, setting.values(setting.candidate({**CORNER, **LAYOUTS[0].flags}))) == []


def test_the_arithmetic_of_a_layout_comes_from_its_own_starts(tmp_path: Path) -> None:
    share = Parameter("gpu-memory-utilization", Kind.FLOAT, 0.1, 0.97)
    plan_of_two = layouts_plan(tmp_path / "study", (Layout(2, 1), Layout(1, 2)), gpus=2)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    space = replace(plan_of_two.space, parameters=(*plan_of_two.space.parameters[:-1], share))
    setting = StudySetting.of(
        replace(plan_of_two, model=str(tmp_path), space=space), vllm_defaults("0.32.0", H100), H100
    )
    one, two = ({**layout.flags} for layout in (Layout(2, 1), Layout(1, 2)))
    roomy = with_start(started(0, two), facts=StartFacts(kv_tokens=int(60 * GIB / 65_536), max_model_len=8192))
    tight = with_start(started(1, one), facts=StartFacts(kv_tokens=int(55 * GIB / 131_072), max_model_len=8192))
    refusal = refused(2, {**one, "gpu-memory-utilization": 0.15}, cause("kv-too-small"))
    found = known_rules(setting, [roomy, tight, refusal])
    assert {rule.trial for rule in found if rule.cause == CAPACITY} == {1}
    assert all(FlagLimit("tensor-parallel-size", "==", 1) in rule.limits for rule in found)
