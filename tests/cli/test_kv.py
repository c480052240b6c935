"""The KV calculator under a plan, as printed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.cli.support import STAND_IN, short_search, tuner
from tests.study.builders import layouts_plan, record, with_start
from tests.study.test_kv_budget import DEFAULTS, H100, planned, started
from tests.test_capacity import DEEPSEEK_V3, GEMMA_3_27B, LLAMA_3_8B
from tuner.cli.kv import kv_lines, layouts_lines
from tuner.cli.plan import show_plan
from tuner.cli.tables import Form
from tuner.clock import RealClock
from tuner.config import SearchOptions, plan_study
from tuner.environment import cache_folder
from tuner.layout import Layout, PlacedLayout
from tuner.load.workload import workload
from tuner.machine import this_machine
from tuner.placement import GpuGroup
from tuner.study.kv_budget import kv_table
from tuner.study.setting import StudySetting
from tuner.study.store import Store
from tuner.vllm.facts import StartFacts

REQUESTS = "          requests: how many of the workload's longest and mean fit without preemption, chat template aside"


def kv_part(stdout: str) -> list[str]:
    lines = stdout.splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith("KV cache")) :]


def test_plan_ends_with_what_fits_into_each_size_of_kv_cache(tiny_model: str, tmp_path: Path) -> None:
    ended = tuner("plan", *short_search(tiny_model, tmp_path, "planned"))
    # 12 layers · 2 heads · 64 · K and V · 2 bytes: 6,144 bytes a token, 0.75 MiB a block of 128.
    assert kv_part(ended.stdout) == [
        "KV cache  6,144 bytes a token, weights 0.00644 GiB from config.json",
        "          kv-cache-memory-bytes  KV GiB  KV tokens  requests of 160  of 112",
        "                       12582912  0.0117      2,048                7      15",
        "                       23068672  0.0215      3,712               14      28",
        "                       42991616  0.0400      6,912               26      53",
        "                       78643200  0.0732     12,800               49      99",
        "                      145752064   0.136     23,680               92     184",
        "                      268435456   0.250     43,648              170     340",
        REQUESTS,
    ]


def test_plan_without_a_config_at_hand_says_so_in_one_line(tmp_path: Path) -> None:
    ended = tuner("plan", *short_search("Qwen/Qwen3-8B", tmp_path, "planned"))
    assert ended.returncode == 0, ended.stderr
    assert kv_part(ended.stdout) == [
        "KV cache  not known: Qwen/Qwen3-8B is not on this disk, so that its config.json cannot be read"
    ]


def test_plan_of_a_study_that_was_begun_is_calibrated_by_its_first_start(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    options = SearchOptions(tiny_model, space="demo", vllm=STAND_IN, study="begun", studies=tmp_path)
    made, environment = plan_study(options, this_machine(), RealClock().wall(), cache_folder(), said.append)
    store = Store(tmp_path / "begun")
    store.create()
    store.save_plan(made, environment)
    store.save_record(with_start(record(0, made.baseline), facts=StartFacts(kv_tokens=4096)))  # 48 MiB: 12 KiB a token
    show_plan(options, Form.TEXT)
    begun = kv_part(capsys.readouterr().out)
    assert begun[0].startswith("KV cache  12,288 bytes a token")
    assert "          calibrated by the log of trial 0000: exact to a block" in begun
    show_plan(replace(options, extra=("--kv-cache-dtype", "fp8")), Form.TEXT)
    other = kv_part(capsys.readouterr().out)
    assert other[0].startswith("KV cache  3,072 bytes a token")
    assert not [line for line in other if "calibrated" in line]


@pytest.fixture
def rag(tmp_path: Path) -> tuple[list[str], list[str]]:
    """Lines for Llama-3-8B on an H100, before any start and after the first."""
    made = replace(planned(tmp_path), workload=workload("rag"))
    first = started(0, StartFacts(kv_tokens=440_000, kv_memory_gib=53.71, weights_gib=14.99))
    return kv_lines(kv_table(StudySetting.of(made, DEFAULTS, H100)), made), kv_lines(
        kv_table(StudySetting.of(made, DEFAULTS, H100), [first]), made
    )


def test_before_any_start_the_table_has_ranges_and_says_why(rag: tuple[list[str], list[str]]) -> None:
    # 0.92 of 79.65 GiB less 14.96 of weights and 2.3 to 7.5 of all else: 56.0 to 50.8 GiB, 8,192 tokens each.
    assert rag[0] == [
        "KV cache  131,072 bytes a token, weights 15.0 GiB from config.json",
        "          gpu-memory-utilization     KV GiB        KV tokens  requests of 8,200  of 5,700",
        "                            0.80  41.2-46.4  337,616-380,336              41-46     59-66",
        "                            0.85  45.2-50.4  370,240-412,960              45-50     64-72",
        "                            0.90  49.2-54.4  402,864-445,584              49-54     70-78",
        "                            0.92  50.8-56.0  415,920-458,624              50-55     72-80",
        "                            0.95  53.2-58.4  435,488-478,208              53-58     76-83",
        "                            0.97  54.8-60.0  448,544-491,248              54-59     78-86",
        f"{REQUESTS}; a shared prefix is counted in each",
        "          about: activations, CUDA graphs and the like are estimated at 2.3 to 7.5 GiB; the first start's log "
        "makes it exact",
    ]


def test_after_the_first_start_the_table_has_single_figures_and_says_whose(rag: tuple[list[str], list[str]]) -> None:
    assert rag[1] == [
        "KV cache  131,072 bytes a token, weights 15.0 GiB from the log of the first start",
        "          gpu-memory-utilization  KV GiB  KV tokens  requests of 8,200  of 5,700",
        "                            0.80    44.2    361,696                 44        63",
        "                            0.85    48.1    394,320                 48        69",
        "                            0.90    52.1    426,944                 52        74",
        "                            0.92    53.7    440,000                 53        77",
        "                            0.95    56.1    459,568                 55        80",
        "                            0.97    57.7    472,624                 57        82",
        f"{REQUESTS}; a shared prefix is counted in each",
        "          calibrated by the log of trial 0000: exact to a block at the token budget it had",
    ]


def test_what_is_not_modelled_is_a_line_each(tmp_path: Path) -> None:
    made = planned(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(GEMMA_3_27B))
    lines = kv_lines(kv_table(StudySetting.of(made, DEFAULTS, H100)), made)
    assert lines[-1].strip() == "not modelled: the weights of vision_config: fewer tokens than shown"


def test_weights_that_are_not_known_leave_the_bytes_of_a_token_and_a_reason(tmp_path: Path) -> None:
    made = replace(planned(tmp_path), layouts=(PlacedLayout(Layout(1, 2), (GpuGroup((0, 1)),)),))
    (tmp_path / "config.json").write_text(json.dumps(DEEPSEEK_V3))
    lines = kv_lines(kv_table(StudySetting.of(made, DEFAULTS, H100)), made)
    assert lines[0] == "KV cache  70,272 bytes a token, on each of 2 GPUs"
    assert "no weight files in the folder" in lines[1]


def test_each_layout_has_a_row_for_one_of_its_servers(tmp_path: Path) -> None:
    layouts = (Layout(4, 1), Layout(2, 2), Layout(1, 4))
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    made = replace(layouts_plan(tmp_path / "study", layouts), model=str(tmp_path), workload=workload("rag"))
    setting = StudySetting.of(made, DEFAULTS, H100)
    lines = layouts_lines([(layout, kv_table(setting, layout=layout)) for layout in layouts], made)
    assert lines[0].split()[:2] == ["KV", "cache"]
    cells = [line.split() for line in lines[1:4]]
    assert [row[:3] for row in cells] == [
        ["4x1", "15.0", "131,072"],
        ["2x2", "7.48", "65,536"],
        ["1x4", "3.74", "32,768"],
    ]
    assert {row[3] for row in cells} == {"0.95"}
    assert "one server" in lines[4]
    assert lines[5].startswith("          about: ")
    assert len(lines) == 6
