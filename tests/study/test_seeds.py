from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.study.builders import plan
from tests.study.test_kv_budget import DEFAULTS, H100, planned
from tuner.candidate import Candidate, Value
from tuner.environment import Gpu
from tuner.load.workload import workload
from tuner.space.files import read_space
from tuner.space.parameter import Kind, Parameter
from tuner.study.kv_budget import most_sequences
from tuner.study.plan import MOST_CLIENTS, OpenSearch, StudyPlan
from tuner.study.seeds import seeds
from tuner.study.setting import StudySetting
from tuner.vllm.defaults import vllm_defaults


def with_threshold(made: StudyPlan) -> StudyPlan:
    cap = Parameter("long-prefill-token-threshold", Kind.CHOICE, choices=(512, 1024, 2048, 4096, 0))
    return replace(made, space=replace(made.space, parameters=(*made.space.parameters, cap)))


def of_most_memory(made: StudyPlan) -> list[dict[str, Value]]:
    found = [c.as_dict() for c in seeds(StudySetting.of(made, DEFAULTS, H100))]
    return [c for c in found if c["gpu-memory-utilization"] == 0.95]


def test_seeds_have_as_many_sequences_as_nearly_always_fit_while_they_are_served_and_half_and_twice_as_many(
    tmp_path: Path,
) -> None:
    made = replace(planned(tmp_path), workload=workload("random:1000-3000,500"))
    # 0.95 of 79.65 GiB less 14.96 of weights and 0.7 to 7.5 of all else are 56.6 GiB or 464,000 tokens: 206 requests of
    # 2,250 (a prompt and half an answer) on average. They vary by 600, three times √191 of which is a tenth.
    sequences = [c["max-num-seqs"] for c in of_most_memory(made)]
    assert sequences[0] == pytest.approx(191, abs=3)
    assert {round(float(str(n)) / 191, 1) for n in sequences} == {0.5, 1.0, 2.0}


def test_what_varies_more_has_fewer_sequences(tmp_path: Path) -> None:
    even, varied = (
        of_most_memory(replace(planned(tmp_path / name), workload=workload(f"random:{name},500")))
        for name in ("2000-2000", "100-3900")
    )
    assert int(str(varied[0]["max-num-seqs"])) < 0.97 * int(str(even[0]["max-num-seqs"]))


def test_one_seed_has_a_cap_on_long_prompts_where_the_space_has_one(tmp_path: Path) -> None:
    made = with_threshold(replace(planned(tmp_path), workload=workload("random:1000-3000,500")))
    assert sorted({int(str(c["long-prefill-token-threshold"])) for c in of_most_memory(made)}) == [0, 2048]


def test_a_model_that_is_not_at_hand_has_the_loads_sequences(tmp_path: Path) -> None:
    made = plan(tmp_path / "s")
    found = [c.as_dict() for c in seeds(StudySetting.of(with_threshold(made), DEFAULTS, H100))]
    assert found[0]["max-num-seqs"] == 16
    assert all(c["gpu-memory-utilization"] != 0.95 for c in found)


@pytest.mark.parametrize("name", ["default", "chat", "rag", "blackwell-5090", "demo"])
def test_there_are_at_most_six_and_no_two_alike(name: str, tmp_path: Path) -> None:
    made = replace(planned(tmp_path), space=read_space(name).needs_at_least(1024), workload=workload("rag"))
    found = seeds(StudySetting.of(made, DEFAULTS, H100))
    assert 3 <= len(found) <= 6
    assert len(set(found)) == len(found)
    assert all(isinstance(c, Candidate) for c in found)


def sizes(candidates: list[Candidate]) -> list[tuple[int, int]]:
    return [(int(d["max-num-seqs"]), int(d["max-num-batched-tokens"])) for d in (c.as_dict() for c in candidates)]


def test_a_large_budget_is_larger_than_vllms_own(tmp_path: Path) -> None:
    made = plan(tmp_path / "s")
    assert max(tokens for _, tokens in sizes(seeds(StudySetting.of(made, vllm_defaults("0.32.0", ()))))) == 8192
    assert max(tokens for _, tokens in sizes(seeds(StudySetting.of(made, DEFAULTS)))) == 16384, "8192 is an H100's own"


def test_an_open_loop_that_has_no_levels_has_its_seed_all_the_same(tmp_path: Path) -> None:
    made = plan(tmp_path / "s")
    opened = replace(made, load=OpenSearch(0.0))
    assert MOST_CLIENTS in [c.as_dict()["max-num-seqs"] for c in seeds(StudySetting.of(opened, DEFAULTS))]


QWEN_3_6_35B: dict[str, object] = {
    "model_type": "qwen3_5_moe_text", "num_hidden_layers": 40, "hidden_size": 2048, "num_attention_heads": 16,
    "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 248320, "max_position_embeddings": 262144,
    "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128,
    "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "mamba_ssm_dtype": "float32", "num_experts": 256,
    "num_experts_per_tok": 8, "moe_intermediate_size": 512, "quantization_config": {"quant_algo": "NVFP4"},
}  # fmt: skip
GEMMA_3_12B: dict[str, object] = {
    "model_type": "gemma3_text", "num_hidden_layers": 48, "hidden_size": 3840, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 256, "vocab_size": 262208, "max_position_embeddings": 131072,
    "sliding_window": 1024, "sliding_window_pattern": 6, "quantization_config": {"bits": 4},
}  # fmt: skip
ONE_5090 = (Gpu(0, "NVIDIA GeForce RTX 5090", 31.84, "GPU-0"),)


def setting_of(folder: Path, config: dict[str, object], *extra: str) -> StudySetting:
    made = replace(planned(folder, *extra), workload=workload("random:300,63"), load=OpenSearch(warm_up_s=1.0))
    (folder / "config.json").write_text(json.dumps(config))
    return StudySetting.of(made, vllm_defaults("0.32.0", ONE_5090), ONE_5090)


def most_asked(candidates: list[Candidate]) -> int:
    return max(int(candidate.as_dict()["max-num-seqs"]) for candidate in candidates)


@pytest.mark.parametrize("extra", [(), ("--kv-cache-dtype", "fp8"), ("--max-model-len", "131072")])
def test_no_seed_has_more_sequences_than_vllm_has_blocks_for_their_states(
    extra: tuple[str, ...], tmp_path: Path
) -> None:
    setting = setting_of(tmp_path, QWEN_3_6_35B, *extra)
    found = seeds(setting)
    assert len(found) >= 3
    for candidate in found:
        most = most_sequences(setting, setting.values(candidate))
        assert most is not None
        assert most_asked([candidate]) <= most < 1024


def test_windows_cap_no_sequences(tmp_path: Path) -> None:
    setting = setting_of(tmp_path, GEMMA_3_12B)
    assert most_sequences(setting, setting.values(setting.plan.baseline)) is None
    assert most_asked(seeds(setting)) > 256


@pytest.mark.parametrize(
    ("more", "extra"),
    [({"compress_ratios": [0, 4]}, ()), ({"vision_config": {"depth": 1}}, ()), ({}, ("--enable-lora",))],
)
def test_no_seed_goes_beyond_vllms_default_where_something_is_not_modelled(
    more: dict[str, object], extra: tuple[str, ...], tmp_path: Path
) -> None:
    assert most_asked(seeds(setting_of(tmp_path, {**GEMMA_3_12B, **more}, *extra))) == 256
