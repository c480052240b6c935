from __future__ import annotations

import json
import os
import shlex
import stat
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.load.test_recorded import timed
from tests.load.traffic_files import lines
from tests.vllm.test_flags import HELP
from tuner import jsonfile
from tuner.bench.capacity_search import SearchSettings
from tuner.cli.console import plan_lines
from tuner.config import LADDER, Machine, SearchOptions, checked_study_name, parse_duration, plan_study, secrets_of
from tuner.environment import Environment, Gpu
from tuner.errors import EnvironmentFaultError, TunerError, UsageError
from tuner.launch import Door
from tuner.layout import Layout
from tuner.load.arrivals import Arrivals
from tuner.placement import GpuGroup
from tuner.report.conditions import environment_rows, repeat_command
from tuner.report.tables import StudyFiles
from tuner.report.translations import Language, Words
from tuner.study.kv_budget import UTILIZATION
from tuner.study.plan import Ladder, OpenSearch, StudyPlan, saturating_clients
from tuner.study.upgrade import upgraded_plan

NOW = datetime(2026, 11, 21, 22, 0, tzinfo=UTC)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 4096}')
    return folder


@pytest.fixture
def vllm(tmp_path: Path) -> str:
    path = tmp_path / "fake-vllm"
    said = f"{HELP}  --max-num-batched-tokens N\n"
    path.write_text(f"#!/bin/sh\ncase \"$*\" in *--version*) echo 0.32.0;; *) cat <<'E'\n{said}E\n;; esac\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return f"{path} serve"


def planned(options: SearchOptions, tmp_path: Path, machine: Machine | None = None) -> tuple[StudyPlan, Environment]:
    options = replace(options, studies=tmp_path / "studies")
    return plan_study(options, machine or Machine(), NOW, tmp_path / "cache", lambda _: None)


def test_everything_but_the_model_has_a_default(model: Path, vllm: str, tmp_path: Path) -> None:
    plan, environment = planned(SearchOptions(model=str(model), vllm=vllm), tmp_path)
    assert plan.time_budget_s == 8 * 3600
    assert [str(s) for s in plan.slos] == ["p99 ttft <= 500ms"]
    assert environment.vllm_version == "0.32.0"
    assert "VLLM_CACHE_ROOT" not in dict(plan.base.env)


@pytest.mark.parametrize("name", ["m" * 200, ".hidden", "+x", "a b:c"])
def test_a_study_without_a_name_gets_one_whatever_the_model_is_called(name: str, vllm: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    (folder / "config.json").write_text('{"max_position_embeddings": 4096}')
    plan, _ = planned(SearchOptions(model=str(folder), vllm=vllm), tmp_path)
    assert checked_study_name(f"{plan.study}-99") and plan.study.endswith("chat-" + f"{NOW.astimezone():%m%d-%H%M}")


def test_a_plan_has_no_relative_path(model: Path, vllm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vllm.yaml").touch()
    options = SearchOptions(
        model=os.path.relpath(model),
        vllm=shlex.join([f"./{os.path.relpath(shlex.split(vllm)[0])}", "serve"]),
        extra=("--config", "vllm.yaml"),
        storage="sqlite:///mine.db",
        studies=Path("studies"),
    )
    said: list[str] = []
    plan, _ = plan_study(options, Machine(), NOW, tmp_path / "cache", said.append)
    assert plan.model == str(model)
    assert plan.base.command == tuple(shlex.split(vllm))
    assert plan.base.extra == ("--config", str(tmp_path / "vllm.yaml"))
    assert plan.storage == f"sqlite:///{tmp_path / 'mine.db'}"
    assert any("caution: the file of --config reaches the default too" in line for line in said)


def test_flags_that_this_vllm_lacks_are_left_out_with_a_word(model: Path, vllm: str, tmp_path: Path) -> None:
    plan, _ = planned(SearchOptions(model=str(model), vllm=vllm), tmp_path)
    left_out = {d.flag for d in plan.dropped}
    assert "gpu-memory-utilization" in left_out
    assert "max-num-seqs" in {p.flag for p in plan.parameters}


def test_a_flag_of_the_users_own_is_not_searched(model: Path, vllm: str, tmp_path: Path) -> None:
    plan, _ = planned(SearchOptions(model=str(model), vllm=vllm, extra=("--max-num-seqs", "16")), tmp_path)
    assert "max-num-seqs" not in {p.flag for p in plan.parameters}
    assert plan.given["max-num-seqs"] == 16


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"model": "/nowhere/at/all"}, 2),
        ({"model": "./nope"}, 2),
        ({"model": "not-a-hub-name"}, 2),
        ({"slos": ("p99 ttft under 500",)}, 2),
        ({"slos": ("p100 ttft <= 500ms",)}, 2),
        ({"slos": ("p99 ttft <= 0ms",)}, 2),
        ({"space": "nope"}, 2),
        ({"workload": "nope"}, 2),
        ({"workload": "random:5000,10"}, 2),
        ({"gpus": "0-"}, 2),
        ({"gpus": "0"}, 4),
        ({"gpus": "all"}, 4),
        ({"vllm": "no-such-vllm serve"}, 4),
        ({"vllm": "false"}, 4),
        ({"time_budget": "soon"}, 2),
        ({"levels": "3,2,1"}, 2),
        ({"trials": 0}, 2),
        ({"level_seconds": float("nan")}, 2),
        ({"load": "half-open"}, 2),
        ({"load": "open", "levels": "10,30"}, 2),
        ({"probe_seconds": 0.5}, 2),
        ({"patience": 0}, 2),
        ({"probe_seconds": float("nan")}, 2),
        ({"burstiness": 0.0}, 2),
        ({"burstiness": float("inf")}, 2),
        ({"load": "closed", "burstiness": 0.5}, 2),
        ({"tensor_parallel_size": 0}, 2),
        ({"layouts": "2x1"}, 2),
        ({"layouts": ""}, 2),
        ({"layouts": "2x2", "workers": 2}, 2),
        ({"layouts": "3x1", "workers": 2}, 2),
        ({"layouts": "2x1", "workers": 2, "tensor_parallel_size": 2}, 2),
        ({"layouts": "2x1", "workers": 2, "extra": ("-tp", "2")}, 2),
        ({"extra": ("-dp", "2")}, 2),
        ({"extra": ("--tensor-parallel", "2")}, 2),
        ({"door": "both", "workers": 2}, 4),
        ({"door": "haproxy"}, 2),
        ({"workers": 0}, 2),
        ({"workers": 100_000}, 2),
        ({"study": "../escape"}, 2),
        ({"extra": ("--max-model-len", "100")}, 2),
        ({"extra": ("--api-key",)}, 2),
        ({"extra": ("--max-num-seq", "8")}, 2),
        ({"extra": ("Qwen/Qwen3-8B",)}, 2),
        ({"extra": ("--port", "9000")}, 2),
        ({"extra": ("--host=0.0.0.0",)}, 2),
        ({"extra": ("--disable_log_stats",)}, 2),
        ({"extra": ("--uds", "/tmp/vllm.sock")}, 2),
        ({"extra": ("--ssl_keyfile=key.pem", "--ssl-certfile", "cert.pem")}, 2),
        ({"extra": ("--headless",)}, 2),
        ({"extra": ("-n", "2")}, 2),
    ],
)
def test_bad_input_is_one_line_a_hint_and_its_exit_code(
    change: dict[str, object], code: int, model: Path, vllm: str, tmp_path: Path
) -> None:
    options = replace(SearchOptions(model=str(model), vllm=vllm), **change)  # type: ignore[arg-type]
    with pytest.raises(TunerError) as caught:
        planned(options, tmp_path)
    assert caught.value.exit_code == code
    assert caught.value.hint and "\n" not in caught.value.message


@pytest.mark.parametrize("words", ["--nnodes 1", "--no-enable-ssl-refresh"])
def test_flags_that_leave_the_port_open_are_taken(words: str, model: Path, vllm: str, tmp_path: Path) -> None:
    plan, _ = planned(SearchOptions(model=str(model), vllm=vllm, extra=tuple(words.split())), tmp_path)
    assert plan.base.extra == tuple(words.split())


@pytest.mark.parametrize("words", ["-p 8000:8000", "--network bridge", "--gpus all"])
def test_a_container_with_a_network_of_its_own_is_refused(words: str, model: Path, vllm: str, tmp_path: Path) -> None:
    engine = tmp_path / "docker"
    engine.symlink_to(vllm.split()[0])
    options = SearchOptions(model=str(model), vllm=f"{engine} run {words} vllm/vllm-openai")
    with pytest.raises(UsageError, match="network of its own"):
        planned(options, tmp_path)
    planned(
        replace(options, vllm=f"{engine} run --network=host {words.replace('--network bridge', '')} image"), tmp_path
    )


H100 = Machine(tuple(Gpu(i, "NVIDIA H100", 79.6, f"GPU-{i}") for i in range(4)), (0, 0, 1, 1))


def with_flag(vllm: str, flag: str) -> str:
    script = Path(vllm.split()[0])
    script.write_text(script.read_text().replace("SchedulerConfig:", f"  --{flag} N\n"))
    return vllm


def with_data_parallel(vllm: str) -> str:
    """Let the fake vLLM have vLLM's own door too, and a machine without nginx plan several servers."""
    script = Path(vllm.split()[0])
    script.write_text(script.read_text().replace("SchedulerConfig:", "  -dp, --data-parallel-size N\n  --port N\n"))
    return vllm


@pytest.mark.parametrize(
    ("held", "most"),
    [((), 0.98), ((0.0, 0.0, 0.0, 0.0), 0.98), ((0.0, 0.004, 0.0, 0.0), 0.97), ((0.06, 0.0, 0.02, 0.0), 0.93)],
)
def test_memory_of_others_on_a_gpu_is_left_to_them(
    held: tuple[float, ...], most: float, model: Path, vllm: str, tmp_path: Path
) -> None:
    said: list[str] = []
    options = SearchOptions(model=str(model), vllm=with_flag(vllm, UTILIZATION), studies=tmp_path / "studies")
    plan, _ = plan_study(options, replace(H100, held=held), NOW, tmp_path / "cache", said.append)
    assert next(p.high for p in plan.space.parameters if p.flag == UTILIZATION) == most
    assert any("others hold" in line for line in said) is (most < 0.98)


def test_a_space_of_the_users_own_is_searched_as_it_is_written(model: Path, vllm: str, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("parameters:\n  gpu-memory-utilization: {float: [0.5, 0.99]}\n")
    options = SearchOptions(model=str(model), vllm=with_flag(vllm, UTILIZATION), space=str(own))
    plan, _ = planned(options, tmp_path, replace(H100, held=(0.3, 0.0, 0.0, 0.0)))
    assert [p.high for p in plan.space.parameters if p.flag == UTILIZATION] == [0.99]


def test_several_layouts_are_choices_of_the_candidates(model: Path, vllm: str, tmp_path: Path) -> None:
    plan, _ = planned(SearchOptions(model=str(model), vllm=with_data_parallel(vllm)), tmp_path, H100)
    assert [str(placed.layout) for placed in plan.layouts] == ["4x1", "2x2", "1x4"]
    assert {p.flag: p.choices for p in plan.parameters}["tensor-parallel-size"] == (1, 2, 4)
    assert plan.baseline.as_dict() == {"tensor-parallel-size": 4}
    assert plan.doors[0] is Door.VLLM and not plan.compares_doors
    assert not {"tensor-parallel-size", "data-parallel-size"} & set(dict(plan.base.fixed))
    assert [group.name for group in plan.groups] == [
        "gpu0", "gpu1", "gpu2", "gpu3", "gpu0-1", "gpu2-3", "gpu0-1-2-3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"layouts": "2x2"}, {"tensor_parallel_size": 2}, {"extra": ("-tp", "2")}],
)
def test_one_layout_is_constant_flags_however_it_is_asked_for(
    change: dict[str, object], model: Path, vllm: str, tmp_path: Path
) -> None:
    options = SearchOptions(model=str(model), vllm=with_data_parallel(vllm))
    plan, _ = planned(replace(options, **change), tmp_path, H100)  # type: ignore[arg-type]
    assert [placed.layout for placed in plan.layouts] == [Layout(2, 2)] == [plan.own_layout]
    assert {"tensor-parallel-size": 2, "data-parallel-size": 2}.items() <= dict(plan.base.fixed).items()
    assert plan.layout_of(plan.baseline) == Layout(2, 2)
    assert not plan.searches_layouts and plan.base.extra == ()


def test_one_server_on_a_machine_needs_no_door(model: Path, vllm: str, tmp_path: Path) -> None:
    plan, _ = planned(SearchOptions(model=str(model), vllm=vllm, layouts="1x4"), tmp_path, H100)
    assert plan.doors == ()
    undivided, _ = planned(SearchOptions(model=str(model), vllm=vllm, tensor_parallel_size=2), tmp_path)
    assert (undivided.doors, undivided.groups) == ((), (GpuGroup(),))
    assert undivided.layout_of(undivided.baseline) == Layout(1, 2)


def test_workers_are_of_a_cpu(model: Path, vllm: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        planned(SearchOptions(model=str(model), vllm=vllm, workers=2), tmp_path, H100)
    assert "--gpus" in caught.value.hint


@pytest.mark.parametrize("part", ["parameters", "fixed", "baseline", "always"])
def test_a_space_leaves_the_layout_alone(part: str, model: Path, vllm: str, tmp_path: Path) -> None:
    space = tmp_path / "own.yaml"
    text = "tensor-parallel-size: {choice: [1, 2]}" if part == "parameters" else "tensor-parallel-size: 2"
    begin = "" if part == "parameters" else "parameters:\n  max-num-seqs: {log-int: [8, 64]}\n"
    space.write_text(f"{begin}{part}:\n  {text}\n")
    with pytest.raises(UsageError) as caught:
        planned(SearchOptions(model=str(model), vllm=vllm, space=str(space)), tmp_path, H100)
    assert "--layouts" in caught.value.hint


def test_the_plan_lists_layouts_their_places_and_why_others_are_ruled_out(
    model: Path, vllm: str, tmp_path: Path
) -> None:
    qwen_7b = {
        "num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
        "vocab_size": 152_064, "intermediate_size": 18_944,
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(qwen_7b))
    with (model / "model.safetensors").open("wb") as file:
        file.truncate(100 * 2**30)
    machine = replace(H100, gpus=(*H100.gpus, *(Gpu(i, "NVIDIA H100", 79.6, f"GPU-{i}") for i in range(4, 8))))
    machine = replace(machine, without_p2p=((0, 1),))
    plan, _ = planned(SearchOptions(model=str(model), vllm=with_data_parallel(vllm)), tmp_path, machine)
    lines = plan_lines(plan, "0.32.0").splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("layouts"))
    assert lines[at : at + 6] == [
        "layouts   4x2    a server on each of gpu0-1, gpu2-3, gpu4-5, gpu6-7",
        "                 caution: no P2P between the GPUs of gpu0-1: they talk through the host's memory",
        "          2x4    a server on each of gpu0-1-2-3, gpu4-5-6-7 (the default's)",
        "                 caution: no P2P between the GPUs of gpu0-1-2-3: they talk through the host's memory",
        "                 caution: GPUs of gpu0-1-2-3 on several NUMA nodes",
        "          4x1x2  a server on each of gpu0-1, gpu2-3, gpu4-5, gpu6-7",
    ]
    said = " ".join(lines)
    assert "8x1    ruled out: weights of 100 GiB on a GPU do not fit into 92 % of its 79.6 GiB" in said
    assert "1x8    ruled out: 28 attention heads do not divide by 8" in said
    assert "\ndoor      vllm" in "\n".join(lines)


def test_of_different_gpus_the_smallest_decides_and_nothing_is_started_where_it_cannot_fit(
    model: Path, vllm: str, tmp_path: Path
) -> None:
    llama_8b = {
        "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 128_256, "intermediate_size": 14_336,
    }  # fmt: skip
    (model / "config.json").write_text(json.dumps(llama_8b))
    with (model / "model.safetensors").open("wb") as file:
        file.truncate(16 * 2**30)
    cards = (Gpu(0, "NVIDIA H100", 79.6, "GPU-0"), Gpu(1, "NVIDIA RTX A4000", 15.6, "GPU-1"))
    options = SearchOptions(model=str(model), vllm=with_data_parallel(vllm))
    both, _ = planned(options, tmp_path, Machine(cards, (None, None)))
    assert [str(placed.layout) for placed in both.layouts] == ["1x2"]
    with pytest.raises(
        EnvironmentFaultError, match=r"tiny does not fit on 1 GPU: .* into 92 % of its 15.6 GiB"
    ) as caught:
        planned(replace(options, gpus="1"), tmp_path, Machine(cards, (None, None)))
    assert caught.value.exit_code == 4 and caught.value.hint.startswith("at least 2 GPUs of this kind")
    shared = ("--gpu-memory-utilization", "1", "--cpu-offload-gb", "8")
    offloaded, _ = planned(replace(options, gpus="1", extra=shared), tmp_path, Machine(cards, (None, None)))
    assert [str(placed.layout) for placed in offloaded.layouts] == ["1x1"]


def test_no_secret_is_in_the_plan(model: Path, vllm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    space = tmp_path / "mine.yaml"
    space.write_text("parameters: {max-num-seqs: {int: [1, 64]}}\nenv: {WANDB_API_KEY: S3cret-3, A: b}\n")
    options = SearchOptions(
        model=str(model),
        vllm=f"env HF_TOKEN=S3cret-1 {vllm}",
        extra=("--api-key", "S3cret-2", "S3cret-22"),
        space=str(space),
        storage="postgresql://tuner:S3cret-4@db/optuna",
    )
    said: list[str] = []
    plan, environment = plan_study(options, Machine(), NOW, tmp_path, said.append)
    assert "S3cret" not in repr((plan, environment, said))
    assert plan.base.secret_env == ("HF_TOKEN", "VLLM_API_KEY", "WANDB_API_KEY")
    assert ("A", "b") in plan.base.env
    assert secrets_of(options) == {"HF_TOKEN": "S3cret-1", "VLLM_API_KEY": "S3cret-2", "WANDB_API_KEY": "S3cret-3"}
    assert "the first API key alone" in said[0]


@pytest.mark.parametrize(
    ("text", "seconds"), [("8h", 28800), ("90m", 5400), ("1h30m", 5400), ("45s", 45), ("none", None)]
)
def test_durations_parse(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_usage_error(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except UsageError as error:
        assert error.hint
    else:
        assert seconds is None or seconds > 0


def test_requests_arrive_by_chance_unless_a_ladder_is_asked_for(model: Path, vllm: str, tmp_path: Path) -> None:
    options = SearchOptions(model=str(model), vllm=vllm)
    open_loop, _ = planned(options, tmp_path)
    assert open_loop.load == OpenSearch(15.0, SearchSettings(), Arrivals())
    for asked, levels in (({"load": "closed"}, LADDER), ({"levels": "4,8"}, (4, 8))):
        ladder, _ = planned(replace(options, **asked), tmp_path)  # type: ignore[arg-type]
        assert ladder.load == Ladder(levels, 60.0, 15.0)


def test_the_length_of_a_probe_sets_those_of_the_others(model: Path, vllm: str, tmp_path: Path) -> None:
    usual = SearchSettings()
    twice = 2 * usual.probe_s
    plan, _ = planned(SearchOptions(model=str(model), vllm=vllm, probe_seconds=twice, burstiness=0.5), tmp_path)
    assert isinstance(plan.load, OpenSearch)
    rules = plan.load.settings
    assert (rules.probe_s, rules.saturation_s) == (twice, 2 * usual.saturation_s)
    assert (rules.longest_probe_s, rules.claim_s) == (2 * usual.longest_probe_s, 2 * usual.claim_s)
    assert str(plan.load.arrivals) == "gamma, shape 0.5"


@pytest.mark.parametrize("burstiness", [None, 1.0, 0.5])
def test_traffic_with_times_of_its_own_is_replayed_and_the_plan_and_the_page_say_so(
    burstiness: float | None, model: Path, vllm: str, tmp_path: Path
) -> None:
    own = timed(tmp_path / "own.jsonl", 0, 1, 5)
    plan, _ = planned(SearchOptions(model=str(model), vllm=vllm, workload=own, burstiness=burstiness), tmp_path)
    assert jsonfile.loads(jsonfile.dumps(plan), StudyPlan) == plan
    says = {None: "arrivals as recorded", 1.0: "Poisson arrivals", 0.5: "gamma, shape 0.5 arrivals"}[burstiness]
    assert f"open loop: {says}, " in plan_lines(plan, "0.32.0")
    page = StudyFiles(tmp_path, plan, None, None, ())
    assert (
        f"open loop, {says}: "
        in {row.label: row.text for row in environment_rows(page, Words(Language.ENGLISH))}["load levels"]
    )
    words = repeat_command(page).split()
    assert words[words.index("--workload") + 1] == own
    assert ("--burstiness" in words) is (burstiness is not None)


def test_a_trace_of_lengths_is_refused_before_vllm_is_asked_for_anything(model: Path, tmp_path: Path) -> None:
    own = lines(
        tmp_path / "own.jsonl", {"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}
    )
    with pytest.raises(UsageError, match="a trace of lengths"):
        planned(SearchOptions(model=str(model), vllm="/nowhere/vllm serve", workload=own), tmp_path)


@pytest.mark.parametrize("change", [{}, {"levels": "4,8"}, {"burstiness": 2.0}])
def test_a_plan_is_read_back_as_it_was(change: dict[str, object], model: Path, vllm: str, tmp_path: Path) -> None:
    plan, _ = planned(replace(SearchOptions(model=str(model), vllm=vllm), **change), tmp_path)  # type: ignore[arg-type]
    assert jsonfile.loads(jsonfile.dumps(plan), StudyPlan) == plan


def _before_layouts(raw: dict[str, Any]) -> dict[str, Any]:
    """Return a plan as it was before layouts. A group without GPUs had the number of its worker."""
    (placed,) = raw["layouts"]
    groups = [{"gpus": g["gpus"], "numactl": [], "numa_node": None, "worker": None} for g in placed["groups"]]
    new = ("layouts", "own_layout", "ruled_out", "asked_layouts", "units", "doors", "compares_doors")
    return {**{key: value for key, value in raw.items() if key not in new}, "groups": groups}


def test_a_plan_of_before_open_loop_is_a_ladder(model: Path, vllm: str, tmp_path: Path) -> None:
    plan, _ = planned(SearchOptions(model=str(model), vllm=vllm, levels="4,8"), tmp_path)
    raw = json.loads(jsonfile.dumps(plan))
    old = {**_before_layouts(raw), "load": {"levels": [4, 8], "level_s": 60.0, "warm_up_s": 15.0}, "schema": 1}
    assert upgraded_plan({**old, "load": {**old["load"], "open": None}})["load"] == {"kind": "ladder", **old["load"]}
    assert jsonfile.loads(json.dumps(upgraded_plan(old)), StudyPlan) == plan


def test_a_plan_of_schema_1_with_an_open_loop_is_read_as_it_was(model: Path, vllm: str, tmp_path: Path) -> None:
    plan, _ = planned(SearchOptions(model=str(model), vllm=vllm), tmp_path)
    raw = json.loads(jsonfile.dumps(plan))
    search = {"rules": raw["load"]["settings"], "arrivals": raw["load"]["arrivals"]}
    old = {
        **_before_layouts(raw),
        "load": {"levels": [], "level_s": 0.0, "warm_up_s": 15.0, "open": search},
        "schema": 1,
    }
    assert jsonfile.loads(json.dumps(upgraded_plan(old)), StudyPlan) == plan


def test_a_plan_of_before_early_stop_never_stops_early(model: Path, vllm: str, tmp_path: Path) -> None:
    plan, _ = planned(SearchOptions(model=str(model), vllm=vllm, patience=30), tmp_path)
    assert plan.patience == 30
    text = jsonfile.dumps(plan).replace(' "patience": 30,\n', "")
    assert '"patience"' not in text
    assert jsonfile.loads(text, StudyPlan) == replace(plan, patience=None)


@pytest.mark.parametrize(("sequences", "clients"), [(8, 10), (64, 80), (1024, 320), (None, 320)])
def test_a_saturating_loop_has_a_few_more_clients_than_sequences(sequences: int | None, clients: int) -> None:
    assert saturating_clients(sequences) == clients
