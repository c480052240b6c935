"""A plan → what fits at each setting that it searches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.study.builders import layouts_plan, plan, record, with_start
from tests.test_capacity import LLAMA_3_8B, bytes_of_a_token
from tuner.candidate import Candidate
from tuner.capacity import GIB
from tuner.environment import Gpu
from tuner.kv.config_json import UnknownModelError
from tuner.layout import Layout
from tuner.space.parameter import Kind, Parameter
from tuner.study.kv_budget import KvTable, default_room, fullest, kv_table
from tuner.study.plan import StudyPlan
from tuner.study.record import TrialRecord
from tuner.study.setting import StudySetting
from tuner.vllm.defaults import vllm_defaults
from tuner.vllm.facts import StartFacts

H100 = (Gpu(0, "NVIDIA H100 80GB HBM3", 79.65, "GPU-0"),)
DEFAULTS = vllm_defaults("0.32.0", H100)


def planned(folder: Path, *extra: str) -> StudyPlan:
    made = plan(folder / "study")
    (folder / "config.json").write_text(json.dumps(LLAMA_3_8B))
    base = replace(made.base, model=str(folder), extra=extra)
    return replace(made, model=str(folder), base=base)


def with_words(made: StudyPlan, *extra: str) -> StudyPlan:
    return replace(made, base=replace(made.base, extra=extra))


def searching(made: StudyPlan, parameter: Parameter) -> StudyPlan:
    return replace(made, space=replace(made.space, parameters=(*made.space.parameters[:2], parameter)))


def started(trial: int, facts: StartFacts, utilization: float | None = None) -> TrialRecord:
    flags = {} if utilization is None else {"gpu-memory-utilization": utilization}
    return with_start(record(trial, Candidate.of(flags)), facts=facts)


def values(table: KvTable) -> list[float]:
    return [value for value, _ in table.rows]


def test_a_searched_share_has_a_row_for_each_usual_value_and_both_ends(tmp_path: Path) -> None:
    made = planned(tmp_path)
    assert values(kv_table(StudySetting.of(made, DEFAULTS, H100))) == [0.80, 0.85, 0.90, 0.92, 0.95, 0.97]
    narrow = searching(made, Parameter("gpu-memory-utilization", Kind.FLOAT, 0.87, 0.93))
    assert values(kv_table(StudySetting.of(narrow, DEFAULTS, H100))) == [0.87, 0.90, 0.92, 0.93]
    chosen = searching(made, Parameter("gpu-memory-utilization", Kind.CHOICE, choices=(0.9, 0.7)))
    assert values(kv_table(StudySetting.of(chosen, DEFAULTS, H100))) == [0.7, 0.9]


def test_a_searched_number_of_bytes_has_rows_from_end_to_end_and_needs_no_gpu(tmp_path: Path) -> None:
    made = searching(planned(tmp_path), Parameter("kv-cache-memory-bytes", Kind.LOG_INT, GIB, 32 * GIB, 1 << 20))
    table = kv_table(StudySetting.of(made, vllm_defaults("0.32.0", ()), ()))
    assert values(table) == [GIB, 2 * GIB, 4 * GIB, 8 * GIB, 16 * GIB, 32 * GIB]
    assert [room.kv_tokens.low for _, room in table.rows] == [8192 << i for i in range(6)]


def test_what_the_user_fixed_is_the_only_row(tmp_path: Path) -> None:
    made = searching(planned(tmp_path), Parameter("stream-interval", Kind.INT, 1, 4))
    assert values(kv_table(StudySetting.of(made, DEFAULTS, H100))) == [0.92]
    share = with_words(made, "--gpu-memory-utilization=0.7")
    assert values(kv_table(StudySetting.of(share, DEFAULTS, H100))) == [0.7]
    fixed = with_words(made, "--kv-cache-memory-bytes", "3G")
    assert kv_table(StudySetting.of(fixed, DEFAULTS, H100)).rows[0][1].kv_tokens.low == 3 * 8192


def test_a_share_of_no_gpu_is_no_row_but_a_reason(tmp_path: Path) -> None:
    table = kv_table(StudySetting.of(planned(tmp_path), vllm_defaults("0.32.0", ()), ()))
    assert table.rows == ()
    assert table.why_empty is not None
    assert "no GPU" in table.why_empty


def test_the_users_own_flags_are_in_the_sum(tmp_path: Path) -> None:
    plain = kv_table(StudySetting.of(planned(tmp_path), DEFAULTS, H100)).memory
    own = planned(tmp_path, "--kv-cache-dtype", "fp8", "--quantization=fp8", "--enable-lora")
    half = kv_table(StudySetting.of(own, DEFAULTS, H100)).memory
    assert bytes_of_a_token(half) == bytes_of_a_token(plain) / 2
    assert plain.weights_bytes is not None
    assert half.weights_bytes is not None
    assert half.weights_bytes < plain.weights_bytes
    assert half.not_modelled == ("--enable-lora",)
    over_four = kv_table(StudySetting.of(planned(tmp_path, "-tp", "4"), DEFAULTS, H100)).memory
    assert bytes_of_a_token(over_four) == bytes_of_a_token(plain) / 4


def test_fewer_sequences_and_a_smaller_budget_leave_more_room(tmp_path: Path) -> None:
    usual = kv_table(StudySetting.of(planned(tmp_path), DEFAULTS, H100)).memory.overhead_bytes
    small = planned(tmp_path, "--max-num-seqs=64", "--max_num_batched_tokens", "2k")
    assert kv_table(StudySetting.of(small, DEFAULTS, H100)).memory.overhead_bytes.high < usual.high


def test_a_model_that_is_not_on_this_disk_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="/models/tiny"):
        kv_table(StudySetting.of(plan(tmp_path / "study"), DEFAULTS, H100))


def test_the_first_start_with_facts_calibrates_and_the_default_has_vllms_own_share(tmp_path: Path) -> None:
    silent = started(0, StartFacts())
    reported = started(1, StartFacts(kv_tokens=440_000, kv_memory_gib=53.71, weights_gib=14.99))
    later = started(2, StartFacts(kv_tokens=360_000), utilization=0.8)
    table = kv_table(StudySetting.of(planned(tmp_path), DEFAULTS, H100), (silent, reported, later))
    assert table.calibrated_by == 1
    rooms = dict(table.rows)
    assert rooms[0.92].kv_tokens.low == rooms[0.92].kv_tokens.high == 440_000
    assert 0 <= 440_000 - 0.02 * 79.65 * GIB / 131_072 - rooms[0.90].kv_tokens.low < 17


def test_the_share_that_a_candidate_had_is_the_one_that_calibrates(tmp_path: Path) -> None:
    first = started(0, StartFacts(kv_tokens=360_000), utilization=0.8)
    assert (
        dict(kv_table(StudySetting.of(planned(tmp_path), DEFAULTS, H100), (first,)).rows)[0.80].kv_tokens.low == 360_000
    )


# ── several layouts

ONE, TWO, STAGES = Layout(4, 1), Layout(2, 2), Layout(2, 1, 2)


def of_layouts(folder: Path) -> StudySetting:
    made = layouts_plan(folder / "study", (ONE, TWO, STAGES))
    (folder / "config.json").write_text(json.dumps(LLAMA_3_8B))
    return StudySetting.of(replace(made, model=str(folder)), DEFAULTS, H100)


def test_a_server_over_two_gpus_has_half_the_bytes_of_a_token_on_each_and_more_than_twice_the_tokens(
    tmp_path: Path,
) -> None:
    setting = of_layouts(tmp_path)
    tables = {layout: kv_table(setting, layout=layout) for layout in (ONE, TWO, STAGES)}
    for layout in (TWO, STAGES):
        assert bytes_of_a_token(tables[layout].memory) == bytes_of_a_token(tables[ONE].memory) / 2
        for (value, one), (same, two) in zip(tables[ONE].rows, tables[layout].rows, strict=True):
            assert value == same
            assert two.kv_tokens.low > 2 * one.kv_tokens.low  # the weights are halved too
    assert fullest(setting, TWO)["max-num-seqs"] > 2 * fullest(setting, ONE)["max-num-seqs"]


def test_stages_have_half_of_the_layers_and_one_matrix_of_the_vocabulary(tmp_path: Path) -> None:
    setting = of_layouts(tmp_path)
    one, stages = (kv_table(setting, layout=layout).memory.weights_bytes for layout in (ONE, STAGES))
    assert one is not None and stages == one // 2  # the embedding is as large as the output matrix
    assert kv_table(setting, layout=STAGES).memory.not_modelled == ()


def test_the_number_of_servers_changes_nothing_of_one(tmp_path: Path) -> None:
    setting = of_layouts(tmp_path)
    assert kv_table(setting, layout=ONE) == kv_table(setting, layout=Layout(1, 1))
    assert "data-parallel-size" not in " ".join(kv_table(setting, layout=ONE).memory.not_modelled)


def test_a_layouts_table_is_calibrated_by_its_own_start(tmp_path: Path) -> None:
    setting = of_layouts(tmp_path)
    facts = StartFacts(kv_tokens=400_000, weights_gib=15.0)
    start = with_start(record(3, Candidate.of(ONE.flags)), facts=facts)
    assert kv_table(setting, [start], ONE).calibrated_by == 3
    assert kv_table(setting, [start], TWO).calibrated_by is None


def test_the_defaults_room_is_that_of_the_smallest_layout_that_surely_holds_what_is_needed(tmp_path: Path) -> None:
    setting = of_layouts(tmp_path)
    at_default = {layout: dict(kv_table(setting, layout=layout).rows)[0.92] for layout in (ONE, TWO, STAGES)}
    one = at_default[ONE].kv_tokens.low
    smallest, larger, none = (default_room(setting, tokens) for tokens in (one, one + 1, 10**9))
    assert smallest is not None and smallest[0] == at_default[ONE]
    assert larger is not None and larger[0] in (at_default[TWO], at_default[STAGES])
    assert none is not None and none[0] == at_default[setting.plan.own_layout]
