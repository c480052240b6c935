from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.capacity import GIB
from tuner.doors import DoorChoice, chosen_doors, lacks, parse_door
from tuner.errors import EnvironmentFaultError, TunerError, UsageError
from tuner.launch import Door
from tuner.layout import Layout, parse_layouts
from tuner.layout.choice import LayoutChoice, Units, chosen_layouts, layout_parameters
from tuner.layout.request import layout_request
from tuner.layout.rules import Memory, ModelLimits, limits_of
from tuner.model import ModelShape

QWEN_27B = ModelShape("27B", 64, 64, 5120, 17408, 24, 4, 256, 248_320, 262_144)
QWEN_7B = ModelShape("7B", 28, 28, 3584, 18944, 28, 4, 128, 152_064, 32_768)
MIXTRAL = replace(QWEN_7B, heads=32, kv_heads=8, experts=8, experts_per_token=2, expert_parameters=3 * 3584 * 14336)
CARD = Memory(int(31.84 * GIB), 0.97)


def units(gpus: int, memory: Memory = CARD, *, numa: Mapping[int, int | None] | None = None, p2p: bool = True) -> Units:
    pairs = [(a, b) for a in range(gpus) for b in range(a + 1, gpus)]
    return Units(tuple(range(gpus)), numa or {}, without_p2p=() if p2p else tuple(pairs), memory=memory)


def limits(shape: ModelShape | None, weights_gib: float | None) -> ModelLimits:
    return ModelLimits(shape, None if weights_gib is None else int(weights_gib * GIB), GIB // 2)


def names(choice: LayoutChoice) -> list[str]:
    return [str(placed.layout) for placed in choice.layouts]


# ── words


@pytest.mark.parametrize(
    ("text", "layouts"),
    [
        ("4x1,2x2,1x4", (Layout(4, 1), Layout(2, 2), Layout(1, 4))),
        ("2×1×2", (Layout(2, 1, 2),)),
        (" 2X2 , 2x2x1 ", (Layout(2, 2),)),
        ("auto", None),
    ],
)
def test_layouts_parse_as_people_write_them(text: str, layouts: tuple[Layout, ...] | None) -> None:
    assert parse_layouts(text) == layouts


@given(sizes=st.lists(st.tuples(st.integers(1, 999), st.integers(1, 999), st.integers(1, 999)), min_size=1))
def test_a_written_layout_is_read_back(sizes: list[tuple[int, int, int]]) -> None:
    layouts = tuple(dict.fromkeys(Layout(*each) for each in sizes))
    assert parse_layouts(",".join(map(str, layouts))) == layouts


@pytest.mark.parametrize("text", ["", "4", "0x1", "1x0", "axb", "4x", "x4", "4x1,", "2x2x2x2", "-1x4", "²x2", "9" * 9])
def test_what_is_no_layout_is_a_usage_error_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_layouts(text)
    assert "4x1,2x2,1x4" in caught.value.hint


@pytest.mark.parametrize("words", [("-tp", "2"), ("--tensor-parallel-size=2",), ("--tensor_parallel_size", "2")])
def test_vllms_own_size_alone_is_a_layout_and_leaves_the_words(words: tuple[str, ...]) -> None:
    request = layout_request("auto", None, ("--max-num-seqs", "8", *words), units(4))
    assert list(request.layouts or ()) == [Layout(2, 2)]
    assert request.extra == ("--max-num-seqs", "8")


@pytest.mark.parametrize(
    ("layouts", "tensor_parallel", "extra", "hint"),
    [
        ("4x1", 2, (), "one of them"),
        ("4x1", None, ("-tp", "2"), "keep --layouts"),
        ("auto", 2, ("-pp", "2"), "keep --tensor-parallel-size"),
        ("auto", None, ("-dp", "2"), "--layouts 4x1,2x2"),
        ("4x1", None, ("--data-parallel-size", "4"), "keep --layouts"),
        ("auto", None, ("-tp",), "whole number"),
        ("auto", None, ("-tp", "0"), "whole number"),
        ("auto", 0, (), "at least 1"),
    ],
)
def test_two_choices_of_the_layout_are_refused(
    layouts: str, tensor_parallel: int | None, extra: tuple[str, ...], hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        layout_request(layouts, tensor_parallel, extra, units(4))
    assert hint in caught.value.hint


def test_layouts_of_an_undivided_cpu_are_refused() -> None:
    with pytest.raises(UsageError) as caught:
        layout_request("2x1", None, (), Units())
    assert "--workers" in caught.value.hint


# ── which layouts


def test_a_model_that_fits_one_gpu_has_every_layout_that_its_heads_allow() -> None:
    choice = chosen_layouts(units(8), limits(QWEN_7B, 14), "7B")
    assert names(choice) == ["8x1", "4x2", "2x4"]
    assert [(str(out.layout), out.why) for out in choice.ruled_out] == [
        ("1x8", "28 attention heads do not divide by 8")
    ]
    assert choice.own == Layout(1, 4)


def test_a_model_that_no_single_gpu_holds_is_not_started_on_one() -> None:
    choice = chosen_layouts(units(4), limits(QWEN_27B, 50.4), "27B")
    assert names(choice) == ["2x2", "1x4"]
    assert choice.own == Layout(1, 4)
    (out,) = choice.ruled_out
    assert str(out.layout) == "4x1" and "50.4 GiB" in out.why and "31.8 GiB" in out.why


def test_stages_are_tried_where_gpus_lack_p2p_and_more_than_one_is_needed() -> None:
    assert names(chosen_layouts(units(4, p2p=False), limits(QWEN_27B, 50.4), "27B")) == ["2x2", "1x4", "2x1x2"]
    assert names(chosen_layouts(units(4, p2p=False), limits(QWEN_7B, 14), "7B")) == ["4x1", "2x2", "1x4"]
    assert names(chosen_layouts(units(4, p2p=False), limits(QWEN_27B, None), "27B")) == ["4x1", "2x2", "1x4"]


def test_stages_are_the_last_resort_where_the_heads_do_not_divide_far_enough() -> None:
    choice = chosen_layouts(units(8), limits(QWEN_7B, 200), "7B")
    assert names(choice) == ["1x4x2"] and choice.own == Layout(1, 4, 2)
    assert {str(out.layout) for out in choice.ruled_out} == {"8x1", "4x2", "2x4", "1x8"}
    assert names(chosen_layouts(units(3), limits(QWEN_7B, 80), "7B")) == ["1x1x3"]


def test_a_model_that_is_not_on_disk_rules_nothing_out() -> None:
    choice = chosen_layouts(units(8), ModelLimits(), "org/unknown")
    assert names(choice) == ["8x1", "4x2", "2x4", "1x8"] and choice.ruled_out == ()
    assert choice.own == Layout(1, 8)


@pytest.mark.parametrize(
    ("shape", "layout", "why"),
    [
        (QWEN_27B, Layout(1, 5), "24 attention heads do not divide by 5"),
        (QWEN_27B, Layout(1, 3), "4 KV heads and 3 GPUs do not divide each other"),
        (QWEN_27B, Layout(1, 8), None),  # each KV head is on two GPUs
        (replace(QWEN_27B, latent_width=576), Layout(1, 3), "the vocabulary, padded to 248,320 rows"),
        (replace(QWEN_27B, kv_heads=24, vocab=192_000), Layout(1, 3), "the intermediate size 17,408"),
        (replace(QWEN_27B, kv_heads=24, vocab=191_990, intermediate=18_000), Layout(1, 3), None),
        (MIXTRAL, Layout(1, 16), "8 experts are fewer than 16 GPUs"),
        (replace(MIXTRAL, expert_parameters=3 * 3584 * 14340), Layout(1, 8), "an expert's width 14,340"),
        (QWEN_7B, Layout(1, 1, 29), "28 layers are fewer than 29 stages"),
        (QWEN_7B, Layout(1, 1, 28), None),
    ],
)
def test_sizes_that_vllm_refuses_are_ruled_out_with_the_reason(
    shape: ModelShape, layout: Layout, why: str | None
) -> None:
    found = ModelLimits(shape).indivisible(layout)
    assert found is None if why is None else (found is not None and why in found)


def test_whole_experts_need_not_divide() -> None:
    odd = replace(MIXTRAL, expert_parameters=3 * 3584 * 14340)
    assert ModelLimits(odd, whole_experts=True).indivisible(Layout(1, 8)) is None


@given(gpus=st.integers(1, 16), heads=st.sampled_from([8, 14, 24, 28, 32, 40]), weights=st.floats(1, 600))
def test_layouts_are_disjoint_places_on_the_given_gpus_and_the_default_is_one_of_them(
    gpus: int, heads: int, weights: float
) -> None:
    model = limits(replace(QWEN_7B, heads=heads, kv_heads=heads), weights)
    try:
        choice = chosen_layouts(units(gpus), model, "any")
    except EnvironmentFaultError:
        assert all(model.too_large(n, CARD) for n in range(1, gpus + 1))
        return
    for placed in choice.layouts:
        taken = [gpu for group in placed.machine for gpu in group.gpus]
        assert len(placed.machine) == placed.layout.replicas
        assert len(taken) == len(set(taken)) == placed.layout.gpus and set(taken) <= set(range(gpus))
    assert choice.own.tensor_parallel in {placed.layout.tensor_parallel for placed in choice.layouts}
    assert choice.own == choice.layouts[0].layout if len(choice.layouts) == 1 else choice.own.replicas == 1


def test_the_machine_s_facts_are_cautions_of_a_layout() -> None:
    machine = units(6, numa={0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 1}, p2p=False)
    cautions = {str(p.layout): p.cautions for p in chosen_layouts(machine, ModelLimits(), "m").layouts}
    assert cautions["6x1"] == ()
    assert cautions["3x2"] == (
        "no P2P between the GPUs: they talk through the host's memory",
        "GPUs of gpu2-3 on several NUMA nodes",
    )
    assert cautions["1x4"][-1] == "2 of 6 GPUs idle"


@pytest.mark.parametrize(
    ("gpus", "weights", "message", "hint"),
    [
        (1, 50.4, "27B does not fit on 1 GPU: ", "at least 2 GPUs of this kind; or a checkpoint of 8 bits"),
        (2, 110, "27B does not fit on 2 GPUs: ", "at least 4 GPUs of this kind; or a checkpoint of 8 bits"),
        (1, 85, "27B does not fit on 1 GPU: ", "at least 3 GPUs of this kind; or a checkpoint of 4 bits"),
        (1, 600, "27B does not fit on 1 GPU: ", "at least 19 GPUs of this kind"),
    ],
)
def test_a_model_that_fits_nowhere_says_what_it_needs(gpus: int, weights: float, message: str, hint: str) -> None:
    with pytest.raises(EnvironmentFaultError) as caught:
        chosen_layouts(units(gpus), limits(QWEN_27B, weights), "27B")
    assert caught.value.message.startswith(message) and caught.value.exit_code == 4
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize(
    ("layout", "hint"),
    [
        (Layout(3, 1), "write 4x1, or choose fewer GPUs with --gpus"),
        (Layout(8, 1), "write 4x1"),
        (Layout(2, 3), "write 1x3"),
        (Layout(1, 8), "at most 4 GPUs"),
        (Layout(1, 3), "tensor-parallel sizes of this model here: 1, 2, 4"),
        (Layout(1, 1, 29), "at most 4 GPUs"),
        (Layout(4, 1), "may fit: --layouts 2x2,1x4"),
    ],
)
def test_a_layout_that_cannot_be_says_which_can(layout: Layout, hint: str) -> None:
    with pytest.raises(TunerError) as caught:
        chosen_layouts(units(4), limits(QWEN_27B, 50.4), "27B", {layout: f"--layouts {layout}"})
    assert caught.value.hint == hint
    assert caught.value.message.startswith(f"--layouts {layout}")


def test_the_default_of_asked_layouts_has_the_largest_tensor_parallel_size_of_them() -> None:
    asked = {layout: str(layout) for layout in (Layout(4, 1), Layout(2, 2))}
    choice = chosen_layouts(units(4), limits(QWEN_7B, 14), "7B", asked)
    assert names(choice) == ["4x1", "2x2"] and choice.own == Layout(2, 2)


def test_workers_have_the_layouts_that_divide_them() -> None:
    shares = Units(shares=("0", "1", "2", "3", "4", "5"))
    model = limits(replace(QWEN_7B, heads=24, kv_heads=24, intermediate=18_432), None)
    assert names(chosen_layouts(shares, model, "7B")) == ["6x1", "3x2", "2x3", "1x6"]
    assert names(chosen_layouts(Units(), limits(QWEN_7B, 14), "7B")) == ["1x1"]


def test_a_size_is_a_parameter_only_where_it_differs() -> None:
    assert layout_parameters([Layout(1, 4)]) == ()
    (tensor,) = layout_parameters([Layout(4, 1), Layout(2, 2)])
    assert (tensor.flag, tensor.choices) == ("tensor-parallel-size", (1, 2))
    tensor, pipeline = layout_parameters([Layout(2, 2), Layout(1, 4), Layout(2, 1, 2)])
    assert (tensor.choices, pipeline.flag, pipeline.choices) == ((1, 2, 4), "pipeline-parallel-size", (1, 2))


# ── weights


LLAMA = {
    "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128_256, "intermediate_size": 14_336, "torch_dtype": "bfloat16",
}  # fmt: skip


def model_folder(folder: Path, *, weights: int | None = None, index: int | None = None, **config: object) -> Path:
    (folder / "config.json").write_text(json.dumps(LLAMA | config))
    if weights is not None:
        with (folder / "model-00001-of-00002.safetensors").open("wb") as file:
            file.truncate(weights)
    if index is not None:
        text = json.dumps({"metadata": {"total_size": index}, "weight_map": {}})
        (folder / "model.safetensors.index.json").write_text(text)
    return folder


def test_weights_are_known_from_files_or_their_index_and_never_guessed(tmp_path: Path) -> None:
    assert limits_of(model_folder(tmp_path), {}, ()).weights_bytes is None
    half = limits_of(model_folder(tmp_path, weights=8 * GIB), {}, ()).weights_bytes
    whole = limits_of(model_folder(tmp_path, index=16 * GIB), {}, ()).weights_bytes
    assert (half, whole) == (8 * GIB, 16 * GIB)


def test_weights_that_may_hold_layers_for_speculation_are_not_ruled_out_by_a_little(tmp_path: Path) -> None:
    small = Memory(16 * GIB, 1.0)
    assert limits_of(model_folder(tmp_path, weights=int(16.2 * GIB)), {}, ()).too_large(1, small) is None
    why = limits_of(model_folder(tmp_path, weights=int(16.6 * GIB)), {}, ()).too_large(1, small)
    assert why == "weights of 16.6 GiB on a GPU do not fit into 100 % of its 16.0 GiB"


def test_quantisation_on_load_is_counted_where_it_is_known_and_else_nothing_is_ruled_out(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, weights=16 * GIB)
    stored = limits_of(folder, {}, ()).weights_bytes
    eight = limits_of(folder, {"quantization": "fp8"}, ("quantization",)).weights_bytes
    assert stored is not None and eight is not None and 0.5 * stored < eight < 0.6 * stored
    assert limits_of(folder, {"quantization": "new"}, ("quantization",)).weights_bytes is None
    assert limits_of(folder, {}, ("quantization",)).weights_bytes is None  # searched


@pytest.mark.parametrize("flag", ["cpu-offload-gb", "hf-overrides", "language-model-only"])
def test_flags_that_leave_less_on_a_gpu_rule_nothing_out(flag: str, tmp_path: Path) -> None:
    assert limits_of(model_folder(tmp_path, weights=16 * GIB), {}, (flag,)).weights_bytes is None


@pytest.mark.parametrize("config", ["[]", "{", '{"hidden_size": "x"}', "{}"])
def test_a_config_that_is_not_understood_rules_nothing_out(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    assert limits_of(tmp_path, {}, ()) == ModelLimits()
    assert limits_of(None, {}, ()) == ModelLimits()


# ── doors


VLLM = ("data-parallel-size", "max-num-seqs")


@pytest.mark.parametrize(
    ("flags", "experts", "container", "nginx", "doors"),
    [
        (VLLM, False, False, True, (Door.VLLM, Door.NGINX)),
        (VLLM, False, False, False, (Door.VLLM,)),
        (VLLM, True, False, True, (Door.NGINX,)),
        (VLLM, False, True, True, (Door.NGINX,)),
        ((), False, False, True, (Door.NGINX,)),
    ],
)
def test_the_doors_are_those_that_the_machine_and_the_model_allow(
    flags: tuple[str, ...], experts: bool, container: bool, nginx: bool, doors: tuple[Door, ...]
) -> None:
    lacking = lacks(flags, has_experts=experts, in_container=container, has_nginx=nginx)
    assert chosen_doors(DoorChoice.AUTO, lacking, [Layout(4, 1), Layout(1, 4)]) == doors
    assert chosen_doors(DoorChoice.AUTO, lacking, [Layout(1, 4)]) == ()


@pytest.mark.parametrize(
    ("choice", "hint"),
    [
        (DoorChoice.AUTO, "install nginx, or search single servers only: --layouts 1x4"),
        (DoorChoice.BOTH, "install nginx, or search single servers only: --layouts 1x4"),
        (DoorChoice.NGINX, "install nginx, or search single servers only: --layouts 1x4"),
        (DoorChoice.VLLM, "leave --door out, or search single servers only: --layouts 1x4"),
    ],
)
def test_a_missing_door_says_what_works_without_it(choice: DoorChoice, hint: str) -> None:
    lacking = lacks(VLLM, has_experts=True, in_container=False, has_nginx=False)
    with pytest.raises(EnvironmentFaultError) as caught:
        chosen_doors(choice, lacking, [Layout(4, 1), Layout(1, 4)])
    assert caught.value.hint == hint


def test_an_unknown_door_is_a_usage_error() -> None:
    assert parse_door(" Both ") is DoorChoice.BOTH
    with pytest.raises(UsageError):
        parse_door("haproxy")
