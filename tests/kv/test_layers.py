"""Bytes that a layer keeps, by kind, reckoned by hand."""

from __future__ import annotations

import pytest

from tuner.kv.config_json import Config, UnknownModelError
from tuner.kv.layers import KvElement, LatentPacking, LayerCache, layer_caches, with_draft_layers

BF16 = KvElement(2)
FP8 = KvElement(1, name="fp8")

PLAIN: dict[str, object] = {
    "num_hidden_layers": 2, "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64,
}  # fmt: skip
GLOBAL = {
    **PLAIN, "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 128, "global_head_dim": 128,
    "num_global_key_value_heads": 2, "attention_k_eq_v": True,
}  # fmt: skip
LATENT = {**PLAIN, "kv_lora_rank": 512, "qk_rope_head_dim": 64}
INDEXED = {**LATENT, "index_topk": 2048, "index_head_dim": 128}
GATED = {
    **PLAIN, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 32, "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4,
}  # fmt: skip
MAMBA_2 = {
    **PLAIN, "layer_types": ["mamba", "attention"], "mamba_n_heads": 16, "mamba_d_head": 64, "mamba_d_state": 128,
    "mamba_n_groups": 1, "mamba_d_conv": 4, "mamba_expand": 2,
}  # fmt: skip


def tokens(config: Config, element: KvElement = BF16, ranks: int = 1) -> list[int]:
    return [cache.token_bytes for cache in layer_caches(config, element, ranks)]


def states(config: Config, element: KvElement = BF16, ranks: int = 1) -> list[int]:
    return [cache.state_bytes for cache in layer_caches(config, element, ranks) if cache.state_bytes]


@pytest.mark.parametrize(
    ("config", "element", "ranks", "expected"),
    [
        (PLAIN, BF16, 1, [1024, 1024]),  # 2 · 4 heads · 64 · 2 bytes
        (PLAIN, BF16, 2, [512, 512]),
        (PLAIN, BF16, 8, [256, 256]),  # a copy of one head on each
        (PLAIN, FP8, 1, [512, 512]),
        (PLAIN, KvElement(0.5625, name="nvfp4"), 1, [288, 288]),
        (PLAIN, KvElement(1, name="int8_per_token_head"), 1, [544, 544]),  # a scale of 4 bytes for K and for V
        ({**PLAIN, "head_dim": None}, BF16, 1, [1024, 1024]),
        ({**PLAIN, "head_dim": 0}, BF16, 1, [1024, 1024]),
        (GLOBAL, BF16, 1, [1024, 1024]),  # the full layer: 2 · 2 · 128 · 2
        ({**GLOBAL, "attention_k_eq_v": False}, BF16, 1, [1024, 2048]),
        ({**GLOBAL, "num_global_key_value_heads": None}, BF16, 1, [1024, 2048]),
        (LATENT, BF16, 8, [1152, 1152]),  # one latent vector, whole on every GPU
        (INDEXED, BF16, 8, [1284, 1284]),  # and the indexer's 128 bytes with a scale
        (INDEXED, FP8, 8, [788, 788]),
        (INDEXED, KvElement(1, name="fp8", packing=LatentPacking.NEVER), 8, [708, 708]),
        (INDEXED, KvElement(2, packing=LatentPacking.NEVER), 8, [1284, 1284]),
        (INDEXED, KvElement(2, packing=LatentPacking.ALWAYS), 8, [788, 788]),
        (LATENT, KvElement(2, packing=LatentPacking.ALWAYS), 8, [1152, 1152]),
        ({**INDEXED, "index_topk_pattern": "FS"}, BF16, 1, [1284, 1152]),
        ({**INDEXED, "layer_types": ["full_attention", "indexed_attention"]}, BF16, 1, [1152, 1284]),
        ({**PLAIN, "num_key_value_heads_per_layer": [4, 1]}, BF16, 1, [1024, 256]),
        ({**PLAIN, "block_configs": [{"attention": {"n_heads_in_group": n}} for n in (2, 8)]}, BF16, 1, [1024, 256]),
        (
            {**PLAIN, "hybrid_layer_pattern": [0, 1], "sliding_window": 128, "model_type": "mimo_v2_flash",
             "v_head_dim": 32, "swa_num_key_value_heads": 8, "swa_head_dim": 64, "swa_v_head_dim": 32},
            BF16, 1, [768, 1536],
        ),
        (
            {**PLAIN, "layer_types": ["full_attention", "sliding_attention"], "sliding_window": 128,
             "num_key_value_heads": None, "num_attention_groups": 4,
             "attention_other_setting": {"num_attention_groups": 2, "head_dim": 64}},
            BF16, 1, [1024, 512],
        ),
        ({"n_layer": 1, "n_embd": 64, "n_head": 4, "multi_query": True}, BF16, 1, [64]),
    ],
)  # fmt: skip
def test_bytes_of_a_token_by_kind(config: Config, element: KvElement, ranks: int, expected: list[int]) -> None:
    assert tokens(config, element, ranks) == expected


@pytest.mark.parametrize(
    ("config", "ranks", "expected"),
    [
        (GATED, 1, (2 * 64 + 256) * 3 * 2 + 4 * 64 * 32 * 2),
        ({**GATED, "mamba_ssm_dtype": "float32"}, 1, (2 * 64 + 256) * 3 * 2 + 4 * 64 * 32 * 4),
        (GATED, 2, (2 * 64 + 256) // 2 * 3 * 2 + 2 * 64 * 32 * 2),
        (
            {**PLAIN, "linear_attn_config": {"full_attn_layers": [2], "num_heads": 4, "head_dim": 32}}, 1,
            3 * 128 * 3 * 2 + 4 * 32 * 32 * 4,
        ),
        ({**PLAIN, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3}, 1, 512 * 2 * 2),
        (MAMBA_2, 1, (1024 + 2 * 128) * 3 * 2 + 16 * 64 * 128 * 2),
        (MAMBA_2, 2, (1024 + 2 * 2 * 128) // 2 * 3 * 2 + 8 * 64 * 128 * 2),  # every rank has a group
        ({**MAMBA_2, "mamba_d_head": "auto"}, 1, (1024 + 2 * 128) * 3 * 2 + 16 * 64 * 128 * 2),
        ({**MAMBA_2, "model_type": "nemotron_h"}, 1, (1024 + 2 * 128) * 3 * 2 + 16 * 64 * 128 * 4),
        (
            {**PLAIN, "model_type": "jamba", "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 16,
             "mamba_d_conv": 4, "mamba_expand": 2}, 2,
            512 * (3 * 2 + 16 * 2),
        ),
        ({**PLAIN, "model_type": "minimax", "attn_type_list": [0, 1]}, 2, 4 * 64 * 64 * 2),
    ],
)  # fmt: skip
def test_bytes_of_a_state_by_kind(config: Config, ranks: int, expected: int) -> None:
    assert states(config, ranks=ranks) == [expected]


@pytest.mark.parametrize(
    ("config", "more"),
    [
        ({**LATENT, "num_nextn_predict_layers": 1}, [1152]),
        ({**PLAIN, "mtp_num_hidden_layers": 2}, [1024, 1024]),
        (GLOBAL, [1024]),
        ({**GATED, "mtp_num_hidden_layers": 1}, [1024]),  # no state
    ],
)
def test_a_models_own_draft_layers_keep_what_its_last_full_layer_does(config: Config, more: list[int]) -> None:
    plain = layer_caches(config, BF16, 1)
    added = with_draft_layers(config, plain)[len(plain) :]
    assert [cache.token_bytes for cache in added] == more
    assert all(cache.window is None and cache.layer == plain[-1].layer for cache in added)


def test_a_layer_of_both_kinds_has_two_caches() -> None:
    config = {**MAMBA_2, "model_type": "falcon_h1", "layer_types": None}
    assert [(cache.layer, cache.token_bytes, bool(cache.state_bytes)) for cache in layer_caches(config, BF16, 1)] == [
        (0, 0, True), (0, 1024, False), (1, 0, True), (1, 1024, False),
    ]  # fmt: skip


def test_a_window_is_the_layers_own_and_a_chunk_is_kept_whole() -> None:
    chunked = {**PLAIN, "attention_chunk_size": 64, "no_rope_layers": [1, 0]}
    assert [cache.window for cache in layer_caches(GLOBAL, BF16, 1)] == [128, None]
    assert [cache.window for cache in layer_caches(chunked, BF16, 1)] == [None, None]


def test_shared_layers_keep_nothing() -> None:
    assert layer_caches({**PLAIN, "num_kv_shared_layers": 1}, BF16, 1) == (LayerCache(0, 1024),)
    assert layer_caches({**PLAIN, "num_kv_shared_layers": 9}, BF16, 1) == ()


def test_a_model_with_two_attentions_a_layer_keeps_twice_as_much() -> None:
    twice = {**LATENT, "num_hidden_layers": None, "num_layers": 2, "model_type": "longcat_flash"}
    assert tokens(twice) == [1152] * 4


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({**LATENT, "compress_ratios": [0, 4]}, "compressed KV"),
        ({**PLAIN, "sparse_attention_config": {"topk": 1}}, "sparse attention"),
        ({**PLAIN, "layer_types": ["indexed_attention"] * 2}, "what its layers keep"),
        ({**PLAIN, "is_encoder_decoder": True}, "encoder"),
        ({**PLAIN, "layer_types": ["mamba", "attention"]}, "the size of the state"),
        ({**PLAIN, "num_key_value_heads": [4, 4]}, "num_key_value_heads should be a whole number"),
    ],
)
def test_what_is_not_modelled_is_refused_by_name(config: Config, said: str) -> None:
    with pytest.raises(UnknownModelError, match=said):
        layer_caches(config, BF16, 1)
