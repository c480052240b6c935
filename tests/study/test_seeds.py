from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.study.builders import plan
from tests.study.test_kv_budget import DEFAULTS, H100, planned
from tuner.candidate import Candidate
from tuner.environment import Gpu
from tuner.load.workload import workload
from tuner.space.files import read_space
from tuner.space.parameter import Kind, Parameter
from tuner.study.compile_cache import compile_key
from tuner.study.kv_budget import most_sequences
from tuner.study.plan import MOST_CLIENTS, OpenSearch, StudyPlan
from tuner.study.seeds import seeds
from tuner.study.setting import StudySetting
from tuner.vllm.defaults import vllm_defaults


def with_threshold(made: StudyPlan) -> StudyPlan:
    cap = Parameter("long-prefill-token-threshold", Kind.CHOICE, choices=(512, 1024, 2048, 4096, 0))
    return replace(made, space=replace(made.space, parameters=(*made.space.parameters, cap)))


def test_one_seed_has_as_many_sequences_as_a_large_kv_cache_holds_mean_requests(tmp_path: Path) -> None:
    made = replace(planned(tmp_path), workload=workload("random:1000-3000,500"))
    # 0.95 of 79.65 GiB less 14.96 of weights and at most 7.5 of all else are 53.2 GiB or 436,000 tokens: 174 requests
    # of 2,500. The space goes on to 0.97, where many starts are refused.
    found = [c.as_dict() for c in seeds(StudySetting.of(made, DEFAULTS, H100))]
    fitting = [c for c in found if c["gpu-memory-utilization"] == 0.95]
    assert len(fitting) == 1
    assert fitting[0]["max-num-seqs"] == pytest.approx(174, abs=2)


def test_the_same_seed_with_a_cap_on_long_prompts_where_the_space_has_one(tmp_path: Path) -> None:
    made = with_threshold(replace(planned(tmp_path), workload=workload("random:1000-3000,500")))
    fitting = [
        c.as_dict()
        for c in seeds(StudySetting.of(made, DEFAULTS, H100))
        if c.as_dict()["gpu-memory-utilization"] == 0.95
    ]
    assert [c["long-prefill-token-threshold"] for c in fitting] == [0, 2048]
    assert len({c["max-num-seqs"] for c in fitting}) == 1


def test_a_model_that_is_not_at_hand_has_the_loads_sequences_with_and_without_the_cap(tmp_path: Path) -> None:
    made = plan(tmp_path / "s")
    loads_own = [
        c for c in seeds(StudySetting.of(with_threshold(made), DEFAULTS, H100)) if c.as_dict()["max-num-seqs"] == 16
    ]
    assert [c.as_dict()["long-prefill-token-threshold"] for c in loads_own] == [0, 2048]
    assert all(c.as_dict()["gpu-memory-utilization"] != 0.95 for c in seeds(StudySetting.of(made, DEFAULTS, H100)))


@pytest.mark.parametrize("name", ["default", "chat", "rag", "blackwell-5090", "demo"])
def test_there_are_at_most_five_and_no_two_alike(name: str, tmp_path: Path) -> None:
    made = replace(planned(tmp_path), space=read_space(name).needs_at_least(1024), workload=workload("rag"))
    found = seeds(StudySetting.of(made, DEFAULTS, H100))
    assert 3 <= len(found) <= 5
    assert len(set(found)) == len(found)
    assert all(isinstance(c, Candidate) for c in found)


def sizes(candidates: list[Candidate]) -> list[tuple[object, object]]:
    return [(c.as_dict()["max-num-seqs"], c.as_dict()["max-num-batched-tokens"]) for c in candidates]


def with_throughput_mode(made: StudyPlan) -> StudyPlan:
    return replace(made, base=replace(made.base, flags=(*made.base.flags, "performance-mode")))


def test_the_throughput_mode_is_tried_as_the_sizes_that_it_doubles_where_vllm_has_it(tmp_path: Path) -> None:
    made = plan(tmp_path / "s")
    on_a_4090 = vllm_defaults("0.32.0", (Gpu(0, "NVIDIA GeForce RTX 4090", 24.0, "GPU-0"),))
    assert (512, 4096) not in sizes(seeds(StudySetting.of(made, on_a_4090)))
    assert sizes(seeds(StudySetting.of(with_throughput_mode(made), on_a_4090)))[0] == (512, 4096)
    assert set(seeds(StudySetting.of(made, on_a_4090))) < set(
        seeds(StudySetting.of(with_throughput_mode(made), on_a_4090))
    )


def test_a_large_budget_is_larger_than_vllms_own(tmp_path: Path) -> None:
    made = plan(tmp_path / "s")
    assert (128, 8192) in sizes(seeds(StudySetting.of(made, vllm_defaults("0.32.0", ()))))
    large = sizes(seeds(StudySetting.of(made, DEFAULTS)))
    assert (1024, 16384) in large and (1024, 8192) not in large, "8192 is the default of an H100"
    both = sizes(seeds(StudySetting.of(with_throughput_mode(made), DEFAULTS)))
    assert both == large, "up to 1024 sequences the mode and the large budget are the same there"


def test_seeds_that_run_the_same_compiled_code_come_one_after_the_other(tmp_path: Path) -> None:
    made = with_threshold(with_throughput_mode(replace(planned(tmp_path), workload=workload("random:1000-3000,500"))))
    keys = [compile_key(c) for c in seeds(StudySetting.of(made, DEFAULTS, H100))]
    assert len(set(keys)) == len(keys) - 1, "with and without the cap on long prompts"
    at = keys.index(next(key for key in keys if keys.count(key) == 2))
    assert keys[at] == keys[at + 1]


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
    return StudySetting.of(with_throughput_mode(made), vllm_defaults("0.32.0", ONE_5090), ONE_5090)


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
    assert most_asked(seeds(setting)) >= 512


@pytest.mark.parametrize(
    ("more", "extra"),
    [({"compress_ratios": [0, 4]}, ()), ({"vision_config": {"depth": 1}}, ()), ({}, ("--enable-lora",))],
)
def test_no_seed_goes_beyond_vllms_default_where_something_is_not_modelled(
    more: dict[str, object], extra: tuple[str, ...], tmp_path: Path
) -> None:
    assert most_asked(seeds(setting_of(tmp_path, {**GEMMA_3_12B, **more}, *extra))) == 256
