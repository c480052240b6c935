from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tuner.kv.config_json import read_config
from tuner.model import ModelLength, model_length

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
CONFIGS: dict[str, tuple[dict[str, object], ModelLength]] = {
    "plain": ({"max_position_embeddings": 40960}, ModelLength(40960, 40960)),
    "gpt-2": ({"n_positions": 1024}, ModelLength(1024, 1024)),
    "mpt": ({"max_seq_len": 2048}, ModelLength(2048, 2048)),
    "the smallest of several": ({"max_position_embeddings": 8192, "seq_length": 4096}, ModelLength(4096, 4096)),
    "command-r": ({"max_position_embeddings": 8192, "model_max_length": 131072}, ModelLength(131072, 131072)),
    "linear": (
        {"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.0}},
        ModelLength(8192, 8192),
    ),
    "dynamic": (
        {"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
        ModelLength(16384, 16384),
    ),
    "llama-3.1": (
        {
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            },
        },
        ModelLength(131072, 131072),
    ),
    "yarn over the scaled length": (
        {"max_position_embeddings": 131072, "rope_parameters": {**YARN, "rope_theta": 1e6}},
        ModelLength(131072, 131072),
    ),
    "yarn over the original length": (
        {"max_position_embeddings": 32768, "rope_scaling": YARN},
        ModelLength(32768, 131072),
    ),
    "yarn beside a default": (
        {"max_position_embeddings": 32768, "rope_scaling": YARN, "rope_parameters": {"rope_type": "default"}},
        ModelLength(32768, 131072),
    ),
    "no factor": (
        {"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        ModelLength(4096, 4096),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_models_length_is_derived_from_its_config(name: str) -> None:
    config, length = CONFIGS[name]
    assert model_length(config) == length


def test_longrope_serves_its_original_length_unless_asked_for_more() -> None:
    config: dict[str, object] = {
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]},
    }
    assert model_length(config) == ModelLength(4096, 131072)


def test_gemma_3_states_a_length_that_is_scaled_already() -> None:
    rope = {"rope_type": "linear", "factor": 8.0}
    config = {"model_type": "gemma3_text", "max_position_embeddings": 131072, "rope_scaling": rope}
    assert model_length(config) == ModelLength(131072, 131072)


def test_rope_may_differ_by_kind_of_layer() -> None:
    ropes = {"full_attention": {"rope_type": "linear", "factor": 2.0}, "sliding_attention": {"rope_type": "default"}}
    assert model_length({"max_position_embeddings": 4096, "rope_parameters": ropes}) == ModelLength(8192, 8192)


def test_a_window_bounds_the_length_only_where_it_is_switched_off() -> None:
    config = {"max_position_embeddings": 32768, "sliding_window": 4096}
    assert model_length(config) == ModelLength(32768, 32768)
    assert model_length(config, window_off=True) == ModelLength(4096, 4096)


@pytest.mark.parametrize("factor", [1e308, float("inf"), float("nan"), -2, True, "4"])
def test_a_factor_that_no_rope_has_changes_nothing(factor: object) -> None:
    rope = {"rope_type": "linear", "factor": factor}
    assert model_length({"max_position_embeddings": 4096, "rope_scaling": rope}) == ModelLength(4096, 4096)


@pytest.mark.parametrize("key", ["text_config", "llm_config", "language_config"])
def test_yarn_of_a_nested_language_model_multiplies_its_length(key: str, tmp_path: Path) -> None:
    own = {"max_position_embeddings": 32768.0, "rope_scaling": YARN}
    for config in ({key: own}, {"thinker_config": {key: own}}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert model_length(read_config(tmp_path)) == ModelLength(32768, 131072)


@pytest.mark.parametrize("value", [None, True, "4096", 0, -1, 1e30])
def test_a_length_that_is_no_whole_number_is_not_known(value: object) -> None:
    assert model_length({"max_position_embeddings": value}) is None


def test_the_length_of_a_multimodal_model_is_its_text_models(tmp_path: Path) -> None:
    config = {"max_position_embeddings": 512, "text_config": {"max_position_embeddings": 8192}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert model_length(read_config(tmp_path)) == ModelLength(8192, 8192)


DERIVE = """
import json, sys
from vllm.config.model import ModelConfig
for folder in sys.argv[1:]:
    print("length", json.dumps(ModelConfig(model=folder, skip_tokenizer_init=True).max_model_len))
"""


@pytest.mark.real_vllm
@pytest.mark.usefixtures("vllm_command")
def test_the_installed_vllm_derives_the_same_lengths(tmp_path: Path) -> None:
    """Every version serves `own`; of YaRN the installed version may serve more unasked."""
    llama: Mapping[str, object] = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
        "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2, "vocab_size": 128,
        "torch_dtype": "float32", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    }  # fmt: skip
    lengths = []
    for i, (config, length) in enumerate(CONFIGS.values()):
        if "max_position_embeddings" in config:  # a Llama's class fills it in
            (tmp_path / str(i)).mkdir()
            (tmp_path / str(i) / "config.json").write_text(json.dumps({**llama, **config}))
            lengths.append(length)
    ran = subprocess.run(
        [sys.executable, "-c", DERIVE, *map(str, sorted(tmp_path.iterdir(), key=lambda p: int(p.name)))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    derived = [int(line.split()[1]) for line in ran.stdout.splitlines() if line.startswith("length ")]
    assert len(derived) == len(lengths), ran.stderr[-3000:]
    assert all(length.own <= found <= length.most for length, found in zip(lengths, derived, strict=True))
