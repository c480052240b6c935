"""Configs that nobody should have written, and those that people have: one clear line or the right bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.test_capacity import SMALL_CARD, TINY, bytes_of_a_token, memory
from tuner.capacity import GIB, at_kv_bytes, model_memory
from tuner.kv.config_json import UnknownModelError, read_config
from tuner.kv.formats import own_kv_bytes, weight_bytes
from tuner.kv.weight_files import weight_file_bytes

PLAIN_BYTES = 2 * 4 * 4 * 64 * 2


@pytest.mark.parametrize(
    "more",
    [
        {"layer_types": ["full_attention"] * 9},
        {"layer_types": {"0": "full_attention"}},
        {"num_hidden_layers": 4.0},
        {"max_position_embeddings": 131072.0},
        {"max_position_embeddings": float("inf")},
        {"intermediate_size": [704, 704, 352, 352]},
        {"num_experts": [64, 64], "moe_intermediate_size": [100, 100], "num_experts_per_tok": [2, 2]},
        {"quantization_config": {"bits": 0}},
        {"quantization_config": {"bits": True}},
        {"quantization_config": [1]},
        {"quantization_config": {"config_groups": [1]}},
        {"quantization_config": {"config_groups": {"a": None, "b": {"weights": None}}}},
        {"sliding_window": "128"},
        {"sliding_window": -5},
        {"text_config": [1]},
        {"rope_scaling": [1]},
        {"interleaved_sliding_window": ["a", {}]},
    ],
)
def test_oddities_beside_the_cache_leave_its_bytes_alone(more: dict[str, object], tmp_path: Path) -> None:
    found = memory(tmp_path, {**TINY, **more}, SMALL_CARD)
    assert bytes_of_a_token(found) == PLAIN_BYTES
    assert found.weights_bytes is not None
    assert found.weights_bytes > 0


@pytest.mark.parametrize("key", ["text_config", "llm_config", "language_config", "thinker_config"])
def test_a_language_model_is_found_under_every_key(key: str, tmp_path: Path) -> None:
    assert bytes_of_a_token(memory(tmp_path, {key: TINY, "vision_config": {}}, SMALL_CARD)) == PLAIN_BYTES
    nested: dict[str, object] = {"thinker_config": {"text_config": TINY}}
    assert bytes_of_a_token(memory(tmp_path, nested, SMALL_CARD)) == PLAIN_BYTES


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"num_hidden_layers": 10**30}, "num_hidden_layers should be a whole number"),
        ({"num_hidden_layers": 10**6}, "a model of 1,000,000 layers"),
        ({"num_hidden_layers": {"language": 4}}, "num_hidden_layers should be"),
        ({"hidden_size": float("nan")}, "hidden_size should be"),
        ({"num_key_value_heads": -4}, "num_key_value_heads should be"),
        ({"head_dim": "64"}, "head_dim should be"),
    ],
)
def test_numbers_that_no_model_has_are_refused_in_one_line(more: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match=said) as refused:
        memory(tmp_path, {**TINY, **more}, SMALL_CARD)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("text", ['{"a":' * 3000 + "1" + "}" * 3000, "[" * 100_000, "", "\x00", "[]", "9" * 5000])
def test_a_file_that_is_no_config_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UnknownModelError):
        model_memory(tmp_path, SMALL_CARD)


@pytest.mark.parametrize("layers", range(6))
def test_layers_that_share_never_make_negative_bytes(layers: int, tmp_path: Path) -> None:
    found = memory(tmp_path, {**TINY, "num_kv_shared_layers": layers}, SMALL_CARD)
    room = at_kv_bytes(found, GIB)
    assert (room is None) == (layers >= 4)
    assert room is None or bytes_of_a_token(found) == PLAIN_BYTES * (4 - layers) / 4


@pytest.mark.parametrize(
    ("own", "bits"),
    [
        ({}, 16),
        ({"quant_method": "fp8"}, 8),
        ({"quant_method": "mxfp4"}, 4.25),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4.5),
        ({"quantization": {"quant_algo": "NVFP4"}}, 4.5),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, 4.5),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 4}}}}, 4),
        ({"quant_method": "awq", "bits": 4}, 4),
        ({"quant_method": "awq", "w_bit": 4}, 4),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, 4),
        ({"bits": 0}, 8),
    ],
)
def test_bits_of_a_weight_by_format(own: dict[str, object], bits: float) -> None:
    assert weight_bytes(own) * 8 == bits


@pytest.mark.parametrize(
    ("own", "beside", "expected"),
    [
        ({}, None, None),
        ({"kv_cache_scheme": {"num_bits": 8, "type": "float"}}, None, 1),
        ({"kv_cache_quant_algo": "FP8"}, None, 1),
        ({"quantization": {"kv_cache_quant_algo": "FP8"}}, None, 1),
        ({}, {"kv_cache_quant_algo": "FP8"}, 1),
        ({"quant_algo": "NVFP4"}, {"kv_cache_quant_algo": "NVFP4"}, 0.5625),
        ({}, {"kv_cache_quant_algo": None}, None),
    ],
)
def test_the_checkpoints_own_kv_format_is_read_from_both_files(
    own: dict[str, object], beside: dict[str, object] | None, expected: float | None, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "quantization_config": own}))
    if beside is not None:
        (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": beside}))
    assert own_kv_bytes(tmp_path, read_config(tmp_path)) == expected
    found = model_memory(tmp_path, SMALL_CARD)
    assert bytes_of_a_token(found) == PLAIN_BYTES * (expected or 2) / 2


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"model.safetensors": 10}, 10),
        ({"model.safetensors": 10, "model.fp16.safetensors": 5, "adapter_model.safetensors": 3}, 10),
        ({"model-00001-of-00002.safetensors": 6, "model-00002-of-00002.safetensors": 7}, 13),
        ({"model-00001-of-00001.safetensors": 6, "model.fp16-00001-of-00001.safetensors": 3}, 6),
        ({"a.safetensors": 4, "b.safetensors": 5, "lora.safetensors": 1}, 9),
        ({"consolidated.safetensors": 4}, 0),
        ({}, 0),
    ],
)
def test_one_set_of_weight_files_is_counted(files: dict[str, int], expected: int, tmp_path: Path) -> None:
    for name, size in files.items():
        (tmp_path / name).write_bytes(b"\0" * size)
    (tmp_path / "missing.safetensors").symlink_to(tmp_path / "blob")  # a download that was broken off
    assert weight_file_bytes(tmp_path) == expected
