"""Length of a request that the servers of a study accept."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.cli.support import STAND_IN
from tuner import jsonfile
from tuner.candidate import Candidate
from tuner.config import Machine, SearchOptions, plan_study
from tuner.environment import Gpu
from tuner.errors import UsageError
from tuner.launch import launch
from tuner.study.plan import StudyPlan
from tuner.study.request_length import LengthSource, cautions

NOW = datetime(2026, 11, 21, 22, 0, tzinfo=UTC)
NEED = 260 + 256 + 128
"""The longest prompt and answer of the workload `chat`, with room for a template."""

LLAMA = {
    "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
}  # fmt: skip
"""15 GiB of weights, 128 KiB of KV cache a token: 1 GiB for one request of 8,192 tokens."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def planned(
    folder: Path, *extra: str, gpu_gib: float | None = 80, asked: str | None = None, space: str = "default",
    model: str | None = None, **config: object,
) -> StudyPlan:  # fmt: skip
    (folder / "config.json").write_text(json.dumps({**LLAMA, **config}))
    gpus = () if gpu_gib is None else (Gpu(0, "H100", gpu_gib, "GPU-0"),)
    options = SearchOptions(
        model or str(folder), vllm=STAND_IN, studies=folder / "studies", max_model_len=asked, space=space, extra=extra,
        gpus=None if gpu_gib is None else "0",
    )  # fmt: skip
    made, _ = plan_study(options, Machine(gpus, (None,) * len(gpus)), NOW, folder / "cache", lambda _: None)
    assert jsonfile.loads(jsonfile.dumps(made), StudyPlan) == made
    return made


def given_to(plan: StudyPlan, candidate: Candidate) -> object:
    return launch(plan.base, candidate, plan.groups[0]).value("max-model-len")


def both(plan: StudyPlan) -> tuple[object, object]:
    """The length that the default configuration is given, and that of a candidate."""
    return given_to(plan, plan.baseline), given_to(plan, plan.space.candidate({}, dict(plan.given)))


def chosen(plan: StudyPlan) -> tuple[int | None, LengthSource]:
    assert plan.length is not None
    return plan.length.tokens, plan.length.source


def test_servers_accept_what_the_model_accepts_where_the_kv_cache_has_room(folder: Path) -> None:
    plan = planned(folder)
    assert chosen(plan) == (8192, LengthSource.MODEL)
    assert both(plan) == (8192, 8192)
    assert plan.length and cautions(plan.length) == []


@pytest.mark.parametrize("gpu_gib", [16, 19])
def test_where_the_kv_cache_may_be_too_small_it_is_the_workloads_need_with_a_caution(
    gpu_gib: float, folder: Path
) -> None:
    plan = planned(folder, gpu_gib=gpu_gib)
    assert chosen(plan) == (NEED, LengthSource.NO_ROOM)
    assert both(plan) == (None, NEED)
    assert plan.length and plan.length.model == 8192 and len(cautions(plan.length)) == 1


def test_what_the_arithmetic_leaves_out_asks_for_twice_the_room(folder: Path) -> None:
    speculative = ("--speculative-config", '{"method": "ngram"}')
    fits_once = 21.5
    assert chosen(planned(folder, gpu_gib=fits_once)) == (8192, LengthSource.MODEL)
    assert chosen(planned(folder, *speculative, gpu_gib=fits_once)) == (NEED, LengthSource.NO_ROOM)
    assert chosen(planned(folder, *speculative)) == (8192, LengthSource.MODEL)


def test_without_a_gpu_the_bytes_of_the_kv_cache_count(folder: Path) -> None:
    assert chosen(planned(folder, gpu_gib=None)) == (NEED, LengthSource.MEMORY_UNKNOWN)
    large, small = ("--kv-cache-memory-bytes", "2G"), ("--kv-cache-memory-bytes", "512M")
    assert chosen(planned(folder, *large, gpu_gib=None)) == (8192, LengthSource.MODEL)
    assert chosen(planned(folder, *small, gpu_gib=None)) == (NEED, LengthSource.NO_ROOM)


def test_the_demo_keeps_the_tiny_models_own_length(tiny_model: str, folder: Path) -> None:
    plan = planned(folder, gpu_gib=None, model=tiny_model, space="demo")
    assert chosen(plan) == (2048, LengthSource.MODEL)


def test_a_hub_model_is_read_from_the_local_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    repository = folder / "models--Some--Llama"
    (repository / "snapshots" / "1").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("1")
    (repository / "snapshots" / "1" / "config.json").write_text(json.dumps(LLAMA))
    assert chosen(planned(folder, model="Some/Llama")) == (8192, LengthSource.MODEL)


def test_a_length_that_cannot_be_known_is_the_workloads_need(folder: Path) -> None:
    assert chosen(planned(folder, model="Nobody/Has-This")) == (NEED, LengthSource.NOT_ON_DISK)
    assert chosen(planned(folder, max_position_embeddings=None)) == (NEED, LengthSource.LENGTH_UNKNOWN)
    assert chosen(planned(folder, "--hf-overrides", "{}")) == (NEED, LengthSource.LENGTH_UNKNOWN)


@pytest.mark.parametrize(
    ("asked", "tokens"), [("5000", 5000), ("8k", 8000), ("8K", 8192), ("2.5k", 2500), ("644", NEED)]
)
def test_what_production_must_accept_is_the_same_for_every_server(asked: str, tokens: int, folder: Path) -> None:
    plan = planned(folder, asked=asked)
    assert chosen(plan) == (tokens, LengthSource.ASKED)
    assert both(plan) == (tokens, tokens)


def test_a_length_that_the_kv_cache_surely_cannot_hold_is_cautioned(folder: Path) -> None:
    asked = planned(folder, asked="100k", max_position_embeddings=131072, gpu_gib=24)
    assert asked.length and asked.length.surely_too_long and len(cautions(asked.length)) == 1


def test_more_than_a_models_own_length_may_be_asked_for_where_some_vllm_takes_it(folder: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}
    assert chosen(planned(folder, rope_scaling=yarn)) == (8192, LengthSource.MODEL)
    assert chosen(planned(folder, asked="32K", rope_scaling=yarn)) == (32768, LengthSource.ASKED)
    with pytest.raises(UsageError):
        planned(folder, asked="33K", rope_scaling=yarn)


@pytest.mark.parametrize("asked", ["0", "-1", "auto", "", "8x", "8.5K", "1e4", "5000.0", "643", "8193", "9" * 400])
def test_a_length_that_no_server_could_keep_is_refused_before_vllm_is_asked(asked: str, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(LLAMA))
    options = SearchOptions(str(folder), vllm="/no/vllm serve", max_model_len=asked, studies=folder)
    with pytest.raises(UsageError) as caught:
        plan_study(options, Machine(), NOW, folder, lambda _: None)
    assert caught.value.hint and "\n" not in caught.value.message


def test_a_flag_after_the_dashes_counts_as_before(folder: Path) -> None:
    plan = planned(folder, "--max-model-len", "4k")
    assert chosen(plan) == (4000, LengthSource.OWN_FLAG)
    assert both(plan) == (4000, 4000)
    assert chosen(planned(folder, "--max_model_len=auto")) == (None, LengthSource.OWN_FLAG)
    with pytest.raises(UsageError, match="before and after"):
        planned(folder, "--max-model-len", "4k", asked="4k")


def in_file(folder: Path, text: str) -> str:
    path = folder / "own.yaml"
    path.write_text(f"parameters:\n  max-num-seqs: {{int: [1, 64]}}\n{text}")
    return str(path)


def test_a_searched_length_begins_at_the_need_or_at_what_was_asked_for(folder: Path) -> None:
    space = in_file(folder, "  max-model-len: {int: [workload, 8192]}\n")
    for asked, least in ((None, NEED), ("4k", 4000)):
        plan = planned(folder, space=space, asked=asked)
        (length,) = (p for p in plan.parameters if p.flag == "max-model-len")
        assert (length.low, length.high) == (least, 8192)
        assert chosen(plan) == (least, LengthSource.SEARCHED)
        assert both(plan) == (None, None)


def test_a_space_may_fix_the_length(folder: Path) -> None:
    need = in_file(folder, "fixed:\n  max-model-len: workload\n")
    assert chosen(planned(folder, space=need)) == (NEED, LengthSource.SPACE)
    assert chosen(planned(folder, space=need, asked="4k")) == (4000, LengthSource.ASKED)
    literal = in_file(folder, "fixed:\n  max-model-len: 4096\n")
    assert chosen(planned(folder, space=literal)) == (4096, LengthSource.SPACE)
    with pytest.raises(UsageError, match="fixes max-model-len to 4096"):
        planned(folder, space=literal, asked="5000")
    with pytest.raises(UsageError, match="the workload needs 644"):
        planned(folder, space=in_file(folder, "always:\n  max-model-len: 500\n"))


@pytest.mark.parametrize(("length", "searched"), [(32768, True), (32769, False)])
def test_chunked_prefill_stays_on_where_no_batch_holds_a_whole_request(
    length: int, searched: bool, folder: Path
) -> None:
    space = in_file(folder, "  enable-chunked-prefill: flag\n  max-num-batched-tokens: {log-int: [512, 32768]}\n")
    plan = planned(folder, max_position_embeddings=length, space=space)
    assert ("enable-chunked-prefill" in {p.flag for p in plan.parameters}) is searched
    assert ("enable-chunked-prefill" in {d.flag for d in plan.dropped}) is not searched


def test_a_plan_of_before_the_length_was_chosen_has_none(folder: Path) -> None:
    plan = replace(planned(folder), length=None)
    text = jsonfile.dumps(plan).replace(' "length": null,\n', "")
    assert '"length"' not in text
    assert jsonfile.loads(text, StudyPlan) == plan
