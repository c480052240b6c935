"""Conditions, cost, and the words that are quoted."""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.load.traffic_files import lines
from tuner.launch import LaunchSpec
from tuner.load.workload import workload
from tuner.report.conditions import environment_rows, repeat_command
from tuner.report.cost import cost
from tuner.report.quote import production_env, shell_line, shell_word
from tuner.report.summary import flag_rows
from tuner.report.tables import StudyFiles
from tuner.report.translations import Language, Words


def test_the_search_can_be_repeated_from_the_page(one_layout: StudyFiles) -> None:
    files = one_layout
    base = dataclasses.replace(files.plan.base, command=("python3", "-m", "vllm.entrypoints.openai.api_server"))
    plan = dataclasses.replace(files.plan, base=base, patience=30)
    words = shlex.split(repeat_command(dataclasses.replace(files, plan=plan)))
    assert words[:4] == ["tuner", "search", "--model", "Qwen/Qwen3-32B"]
    assert words[words.index("--slo") + 1] == "p99 ttft <= 500ms"
    assert words[words.index("--gpus") + 1] == "0,1"
    assert words[words.index("--confirm") + 1] == "3"
    assert words[words.index("--time-budget") + 1] == "28800s"
    assert words[words.index("--warm-up-seconds") + 1] == "20"
    assert words[words.index("--patience") + 1] == "30"
    assert words[words.index("--vllm") + 1] == "python3 -m vllm.entrypoints.openai.api_server"
    assert words[words.index("--") :] == ["--", "--disable-uvicorn-access-log"]


def test_the_environment_is_shown_in_full(files: StudyFiles, words: Words) -> None:
    rows = {row.label: row.text for row in environment_rows(files, words)}
    assert rows["vLLM"] == "0.32.0"
    gpus = files.environment.gpus if files.environment else ()
    assert rows["GPUs"].count("NVIDIA H100 80GB HBM3, 79.6 GiB") == len(gpus) > 1
    assert rows["not searched"].startswith("max-num-partial-prefills: ")
    without = {row.label for row in environment_rows(dataclasses.replace(files, environment=None), words)}
    assert "vLLM" not in without and "workload" in without


def test_what_was_read_of_a_traffic_file_is_shown_with_what_was_left_out(
    files: StudyFiles, words: Words, tmp_path: Path
) -> None:
    text = lines(tmp_path / "own.jsonl", {"prompt": "secret words"}, None, {"prompt": "more", "output_length": 5})
    plan = dataclasses.replace(files.plan, workload=workload(text))
    shown = "\n".join(row.text for row in environment_rows(dataclasses.replace(files, plan=plan), words))
    english = words.language is Language.ENGLISH
    assert ("2 of 3 requests are sent" if english else "3 个请求中发送 2 个") in shown
    assert ("1 not an object (first: line 2)" if english else "1 个不是 JSON 对象（首个：line 2）") in shown
    assert "256 token" in shown and "secret" not in shown


def test_cost_follows_from_price_gpus_and_qps(files: StudyFiles) -> None:
    record = files.quoted(files.winner)
    assert record is not None
    made = cost(10.0, record.best_level, gpus=4, gpu_price=2.5)
    assert made.per_thousand_requests == pytest.approx(4 * 2.5 / 3600 / 10 * 1000)
    assert made.per_million_output_tokens == pytest.approx(4 * 2.5 / 3600 / 10 / 203 * 1e6)
    assert cost(None, record.best_level, 4, 2.5) == cost(10.0, None, 0, 2.5) == (None, None)
    assert cost(10.0, None, 1, 2.5).per_million_output_tokens is None


@pytest.mark.parametrize("word", ["a", "it's", "", "a b", "\x1b[31m", "line\nbreak'\\", "\u202e$x", "\t`id`", "ü"])
def test_bash_reads_a_quoted_word_back_and_no_control_character_is_in_it(word: str) -> None:
    quoted = shell_word(word)
    assert quoted.isprintable()
    shown = subprocess.run(
        ["bash", "-c", f"printf %s {quoted}"], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    )
    assert shown.stdout.decode() == word


LAUNCH = LaunchSpec(
    ("numactl", "--membind=0"),
    ("vllm", "serve"),
    ("m", "--max-num-seqs", "64", "--no-enable-chunked-prefill", "--x=1", "--enforce-eager"),
    (("CUDA_VISIBLE_DEVICES", "2,3"), ("VLLM_CACHE_ROOT", "/s/c"), ("VLLM_RPC_BASE_PATH", "/s/r"), ("A", "1")),
)


def test_what_belongs_to_the_studys_folders_is_not_quoted() -> None:
    assert production_env(LAUNCH) == (("CUDA_VISIBLE_DEVICES", "2,3"), ("A", "1"))
    assert LAUNCH.gpus == (2, 3)
    line = shell_line(LAUNCH)
    assert line.startswith("CUDA_VISIBLE_DEVICES=2,3 A=1 numactl --membind=0 vllm serve m --max-num-seqs 64 ")
    assert line.endswith(" --host 127.0.0.1 --port 8000")


def test_the_flags_of_one_launch_are_shown_with_their_values(words: Words) -> None:
    assert [row[:2] for row in flag_rows(LAUNCH, None, words)] == [
        ("max-num-seqs", "64"),
        ("enable-chunked-prefill", "off"),
        ("x", "1"),
        ("enforce-eager", "on"),
    ]


def test_of_two_launches_only_the_flags_that_differ_are_shown(words: Words) -> None:
    other = LaunchSpec((), ("vllm", "serve"), ("m", "--max-num-seqs", "32", "--x=1", "--y", "2"))
    rows = flag_rows(LAUNCH, other, words)
    assert [(row.flag, row.first, row.second) for row in rows] == [
        ("max-num-seqs", "64", "32"),
        ("enable-chunked-prefill", "off", "vLLM's default"),
        ("enforce-eager", "on", "vLLM's default"),
        ("y", "vLLM's default", "2"),
    ]
    assert len(flag_rows(LAUNCH, None, words)) == 4
