"""Spellings of the kinds of layers."""

from __future__ import annotations

import pytest

from tuner.kv.config_json import Config, UnknownModelError
from tuner.kv.kinds import LayerKind, layer_kinds

F, W, C, S, B, N = (
    LayerKind.FULL, LayerKind.WINDOW, LayerKind.CHUNKED, LayerKind.STATE, LayerKind.FULL_AND_STATE, LayerKind.NOTHING,
)  # fmt: skip


def of(layers: int, **more: object) -> Config:
    return {"num_hidden_layers": layers, "hidden_size": 64, "num_attention_heads": 4, **more}


@pytest.mark.parametrize(
    ("config", "kinds"),
    [
        (of(3), [F, F, F]),
        (of(2, sliding_window=128), [W, W]),
        (of(2, sliding_window=128, use_sliding_window=False), [F, F]),
        (of(3, sliding_window=128, max_window_layers=2, use_sliding_window=True), [F, F, W]),
        (of(2, layer_types=["sliding_attention", "full_attention"], sliding_window=128), [W, F]),
        (of(2, layer_types=["sliding_attention", "full_attention"]), [F, F]),  # a window without a length
        (of(2, layer_types=["full_attention"] * 5), [F, F]),  # the list goes on with a draft model's layers
        (of(4, layers_block_type=["mamba", "attention", "moe", "mlp"]), [S, F, N, N]),
        ({"layers_block_type": ["mamba", "attention"]}, [S, F]),
        (of(2, layers_block_type=["mamba", "hybrid"]), [S, B]),
        (of(4, hybrid_override_pattern="M*-E"), [S, F, N, N]),
        (of(4, full_attention_interval=2), [S, F, S, F]),
        (of(4, attn_layer_period=4, attn_layer_offset=1), [S, F, S, S]),
        (of(3, linear_attn_config={"full_attn_layers": [3], "kda_layers": [1, 2]}), [S, S, F]),
        (of(3, linear_attn_config={"kda_layers": [1, 2]}), [S, S, F]),
        (of(3, full_attn_idxs=[2]), [S, S, F]),
        (of(3, attn_layer_indices=[0]), [F, S, S]),
        (of(3, hybrid_layer_ids=[1]), [S, B, S]),
        (of(3, attn_type_list=[0, 0, 1]), [S, S, F]),
        (of(3, hybrid_layer_pattern=[0, 1, 1], sliding_window=128), [F, W, W]),
        (of(5, layer_group_size=2, model_type="bailing_hybrid"), [S, F, S, F, S]),
        (of(5, layer_group_size=2, model_type="bailing_moe_v3"), [S, F, S, F, F]),
        (of(4, sliding_window=128, sliding_window_pattern=2), [W, F, W, F]),
        (of(4, sliding_window=128, sliding_window_pattern="LLG"), [W, W, F, F]),
        (of(4, sliding_window=128, global_attn_every_n_layers=4), [W, W, W, F]),
        (of(2, interleaved_sliding_window=[128, None]), [W, F]),
        (of(4, attention_chunk_size=64), [C, C, C, F]),
        (of(2, attention_chunk_size=64, no_rope_layers=[0, 1]), [F, C]),
        (of(2, attention_chunk_size=64, model_type="mimo_v2_flash"), [F, F]),
        (of(2, block_configs=[{"attention": {"no_op": True}}, {"attention": {"n_heads_in_group": 2}}]), [N, F]),
        (of(2, block_configs=[{"block_type": "mamba"}, {"block_type": "moe"}]), [S, N]),
        (of(2, model_type="falcon_h1"), [B, B]),
        (of(2, model_type="mamba2", state_size=128), [S, S]),
        (of(4, model_type="gemma2", sliding_window=128), [W, F, W, F]),
        (of(4, model_type="qwen3_next"), [S, S, S, F]),
        (of(4, model_type="cwm", sliding_window=128), [F, W, W, W]),
        (of(5, layer_types=["full_attention"] * 5, num_kv_shared_layers=2), [F, F, F, N, N]),
    ],
)  # fmt: skip
def test_each_spelling_tells_the_kind_of_every_layer(config: Config, kinds: list[LayerKind]) -> None:
    assert list(layer_kinds(config)) == kinds


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (of(2, layer_types=["full_attention", "compressed_sparse_attention"]), "compressed_sparse_attention"),
        (of(3, layer_types=["full_attention"]), "1 kinds of layers for 3 layers"),
        (of(2, layer_types=[0, 1]), "kind 0, 1"),
        (of(2, hybrid_override_pattern="MX"), "'X' in hybrid_override_pattern"),
        (of(2, linear_num_value_heads=4), "linear_num_value_heads"),
        (of(2, linear_attn_config={"num_heads": 4}), "linear_attn_config"),
        (of(2, full_attention_interval="4"), "full_attention_interval"),
        (of(2, mamba_d_state=16), "mamba_d_state"),
        (of(2, attn_type_list=[[0], 1]), "attn_type_list"),
        (of(2, block_configs=[None, {}]), "block_configs"),
    ],
)
def test_kinds_that_are_not_told_are_refused_by_name(config: Config, said: str) -> None:
    with pytest.raises(UnknownModelError, match=said):
        layer_kinds(config)
