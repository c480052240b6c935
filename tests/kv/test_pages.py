"""Blocks of the KV cache, as vLLM itself counts them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tuner.kv.layers import LayerCache
from tuner.kv.pages import PagingRules, linear_paging, paging

FULL = LayerCache(0, 1024)
WINDOW = LayerCache(0, 1024, window=128)
STATE = LayerCache(0, state_bytes=100_000)
RULES = PagingRules(16, 2048, steps_in_flight=2, blocks_a_state=2)


def model(*caches: LayerCache) -> list[LayerCache]:
    """Return caches of layers in a row."""
    return [
        LayerCache(i, cache.token_bytes, cache.state_bytes, cache.window, cache.latent)
        for i, cache in enumerate(caches)
    ]


def test_equal_layers_cost_the_same_for_every_token() -> None:
    pages = paging(model(*[FULL] * 4), (4,), RULES)
    assert pages.is_linear
    assert pages.block_bytes == 4 * 1024 * 16
    assert [pages.blocks(tokens) for tokens in (1, 16, 17, 160)] == [1, 1, 2, 10]
    assert pages.bytes_per_token(7) == 4096


def test_a_served_window_holds_itself_while_the_log_reserves_the_steps_in_flight() -> None:
    pages = paging(model(FULL, WINDOW), (2,), RULES)
    assert pages.blocks(16_384) == 1024 + 9
    assert pages.reserved(16_384) == 1024 + 265  # 127 + 2 · 2,048 tokens, and a block that they begin in
    assert pages.blocks(64) == 4 + 5
    assert pages.logged_tokens(2 * 1289, 16_384) == 2 * 16_384


def test_the_last_group_of_a_kind_is_padded_and_costs_in_full() -> None:
    pages = paging(model(*[FULL] * 4, *[WINDOW] * 9), (13,), RULES)
    assert sorted(group.count for group in pages.groups) == [1, 3]
    assert pages.block_bytes == 4 * 1024 * 16
    nearly = paging(model(*[FULL] * 4, *[WINDOW] * 5), (9,), RULES)
    assert nearly.block_bytes == 5 * 1024 * 16
    assert [group.count for group in nearly.groups] == [1, 1]


def test_an_attention_block_grows_to_the_size_of_a_state() -> None:
    pages = paging(model(STATE, STATE, FULL), (3,), RULES)
    assert pages.block_tokens == 112  # 100,000 bytes are 97.7 tokens
    assert pages.block_bytes == 112 * 1024
    assert pages.blocks(1) == 2 * 2 + 1
    assert not pages.is_linear


def test_each_drafted_token_has_a_state_of_its_own() -> None:
    drafting = replace(RULES, draft_tokens=3)
    plain, ahead = (paging(model(STATE, STATE, FULL), (3,), rules) for rules in (RULES, drafting))
    assert ahead.blocks(1) == plain.blocks(1) + 2 * 3
    assert all(way.rules.draft_tokens == 3 for way in ahead.ways_to_count)


def test_windows_with_wider_heads_share_the_larger_page() -> None:
    wide = LayerCache(0, 2048, window=128)
    pages = paging(model(FULL, wide), (2,), RULES)
    assert {group.window: group.block_tokens for group in pages.groups} == {None: 32, 128: 16}
    assert pages.block_bytes == 2048 * 16


def test_without_kinds_every_layer_is_kept_whole() -> None:
    whole = paging(model(FULL, WINDOW), (2,), PagingRules(16, 2048, by_kind=False))
    assert whole == paging(model(FULL, FULL), (2,), PagingRules(16, 2048, by_kind=False))


def test_the_fullest_pipeline_stage_decides() -> None:
    pages = paging(model(*[FULL] * 5), (2, 3), RULES)
    assert pages.block_bytes == 3 * 1024 * 16
    mixed = paging(model(*[FULL, WINDOW] * 4), (4, 4), RULES)
    assert mixed.block_bytes == 2 * 1024 * 16


def test_a_block_that_the_log_names_replaces_the_one_that_was_computed() -> None:
    pages = paging(model(STATE, FULL), (2,), RULES).with_block_tokens(128)
    assert pages.block_tokens == 128
    assert pages.block_bytes == 128 * 1024
    assert linear_paging(100, 16).with_block_tokens(32).bytes_per_token(1) == 100


COUNT = """
import json, sys
import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.core.kv_cache_utils import get_kv_cache_capacity, get_kv_cache_config_from_groups, get_kv_cache_groups
from vllm.v1.kv_cache_interface import FullAttentionSpec, MambaSpec, MLAAttentionSpec, SlidingWindowSpec
config = EngineArgs(model=sys.argv[1], skip_tokenizer_init=True).create_engine_config()
config.cache_config.kv_cache_layout = "LBNHC"
for case in json.load(sys.stdin):
    config.model_config.max_model_len = case["length"]
    config.scheduler_config.max_num_batched_tokens = case["step"]
    config.cache_config.mamba_cache_mode = "align" if case["states"] == 2 else "none"
    specs, block = {}, case["block"]
    for i, (token, state, window, latent) in enumerate(case["layers"]):
        width = dict(block_size=block, num_kv_heads=1, head_size=token // 4, dtype=torch.bfloat16)
        if state:
            specs[str(i)] = MambaSpec(block_size=block, shapes=((state,),), dtypes=(torch.int8,),
                page_size_padded=case["page"], mamba_cache_mode=config.cache_config.mamba_cache_mode)
        elif latent:
            specs[str(i)] = MLAAttentionSpec(**{**width, "head_size": token // 2})
        else:
            specs[str(i)] = SlidingWindowSpec(sliding_window=window, **width) if window else FullAttentionSpec(**width)
    made = get_kv_cache_config_from_groups(config, get_kv_cache_groups(config, specs), case["bytes"])
    tokens, _ = get_kv_cache_capacity(config, made)
    print("counted", config.max_in_flight_tokens // case["step"], made.num_blocks, tokens)
"""


def random_layers(draw: random.Random) -> list[LayerCache]:
    """Return the layers of some model: alike, with windows, with states, or with both."""
    latent = draw.random() < 0.2
    token = 1152 if latent else draw.choice([256, 512, 1024, 4096])
    kinds = [LayerCache(0, token, latent=latent)] * draw.randint(1, 12)
    if draw.random() < 0.5 and not latent:
        wide = draw.choice([token, token * 2, token + 64])
        kinds += [LayerCache(0, wide, window=draw.choice([128, 1024]))] * draw.randint(1, 30)
    if draw.random() < 0.5 and len({cache.token_bytes for cache in kinds}) == 1:
        kinds += [LayerCache(0, state_bytes=draw.choice([8192, 806_400, 2_146_304]))] * draw.randint(1, 30)
    draw.shuffle(kinds)
    return model(*kinds)


@pytest.mark.real_vllm
@pytest.mark.usefixtures("vllm_command")
def test_the_installed_vllm_lays_out_the_same_blocks(tiny_model: str) -> None:
    draw = random.Random(7)
    cases: list[tuple[Sequence[LayerCache], PagingRules, int]] = []
    for _ in range(200):
        rules = PagingRules(16, draw.choice([2048, 8192]), blocks_a_state=draw.choice([1, 2]))
        cases.append((random_layers(draw), rules, draw.choice([1000, 4096, 131_072])))
    asked = [
        {
            "layers": [(c.token_bytes, c.state_bytes, c.window, c.latent) for c in caches],
            "block": 16 if not pages.has_states else pages.block_tokens,
            "page": pages.block_tokens * max(c.token_bytes for c in caches),
            "length": length, "step": rules.step_tokens, "states": rules.blocks_a_state, "bytes": 20 << 30,
        }
        for caches, rules, length in cases
        for pages in [paging(caches, (len(caches),), rules)]
    ]  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-c", COUNT, tiny_model], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    counted = [tuple(map(int, line.split()[1:])) for line in ran.stdout.splitlines() if line.startswith("counted ")]
    assert len(counted) == len(cases), ran.stderr[-3000:]
    for (caches, rules, length), (steps, blocks, tokens) in zip(cases, counted, strict=True):
        known = PagingRules(16, rules.step_tokens, steps_in_flight=steps, blocks_a_state=rules.blocks_a_state)
        pages = paging(caches, (len(caches),), known)
        mine = int((20 << 30) // pages.block_bytes)
        assert mine == blocks
        assert pages.logged_tokens(mine, length) == pytest.approx(tokens, abs=1) or pages.is_linear
