"""The main job on a real server: default, a refused start, a preempted one and a winner; then its start script."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from tests.real_servers import assert_stopped, servers_of, started
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import Decision, StudyResult
from tuner.study.store import Store

pytestmark = pytest.mark.real_vllm

SPACE = """
parameters:
  kv-cache-memory-bytes: {choice: [12582912, 201326592]}   # refused; ample
  max-num-seqs: {choice: [64]}
baseline:
  kv-cache-memory-bytes: 33554432   # 2,688 tokens: 48 requests of up to 160 do not fit
env:
  VLLM_ENABLE_V1_MULTIPROCESSING: "0"
  OMP_NUM_THREADS: "1"
  HF_HUB_OFFLINE: "1"
"""


@dataclass(frozen=True)
class Search:
    folder: Path
    stdout: str
    stderr: str
    records: tuple[TrialRecord, ...]
    result: StudyResult


@pytest.fixture(scope="module")
def search(tiny_model: str, vllm_command: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Search:
    root = tmp_path_factory.mktemp("real")
    (root / "scarce.yaml").write_text(SPACE)
    words = [
        sys.executable, "-m", "tuner.cli.app", "search", "--model", tiny_model, "--vllm", " ".join(vllm_command),
        "--space", str(root / "scarce.yaml"), "--workload", "random:32-96,32-64", "--slo", "p99 ttft <= 10s",
        "--levels", "16,48", "--level-seconds", "9", "--warm-up-seconds", "2", "--trials", "3", "--confirm", "0",
        "--studies", str(root / "studies"), "--study", "real",
        "--", "--enforce-eager", "--load-format", "dummy", "--dtype", "float32",
    ]  # fmt: skip
    ended = subprocess.run(words, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stderr
    store = Store(root / "studies" / "real")
    return Search(store.folder, ended.stdout, ended.stderr, store.records(), store.result())


def test_the_default_is_the_first_trial_and_was_started_with_no_tuned_flag(search: Search) -> None:
    first = search.records[0]
    assert first.role is Role.DEFAULT
    assert "--max-num-seqs" not in first.start.launch.arguments


def test_vllm_itself_refused_a_start_and_the_record_says_why(search: Search) -> None:
    (refused,) = (r for r in search.records if r.outcome is TrialOutcome.REFUSED)
    assert refused.start.cause is not None
    assert refused.start.cause.kind == "kv-too-small"
    assert "max seq len (2048)" in refused.start.cause.line
    assert [(b.flag, b.relation) for b in refused.start.cause.bounds] == [("max-model-len", "<=")]
    assert 0 < refused.start.cause.bounds[0].limit < 2048
    assert "1 × kv-too-small" in search.stdout


def test_scarce_memory_preempts_and_the_winner_does_not(search: Search) -> None:
    assert search.records[0].preemptions_seen
    winner = search.result.winner
    assert winner is not None
    assert winner.preemptions == 0
    assert winner.candidate.as_dict()["kv-cache-memory-bytes"] == 201326592
    assert search.result.decision is Decision.WINNER


def test_every_trial_left_its_record_its_log_and_its_tables(search: Search) -> None:
    for record in search.records:
        folder = search.folder / "trials" / f"{record.trial:04d}"
        assert (folder / "server.log").stat().st_size > 0
        assert json.loads((folder / "record.json").read_text())["trial"] == record.trial
        if record.levels:
            assert (folder / "requests.parquet").is_file()
            assert (folder / "telemetry.parquet").is_file()


def test_no_server_of_the_search_is_left(search: Search) -> None:
    assert not servers_of(search.folder)


@pytest.fixture(scope="module")
def launched(search: Search) -> Iterator[tuple[int, list[str]]]:
    """The emitted start script's server: its port and its words as ps shows them."""
    with started(search.folder) as port:
        pid = int((search.folder / f"server-{port}.pid").read_text().split()[0])
        yield port, psutil.Process(pid).cmdline()


def test_start_sh_starts_exactly_the_server_that_won(search: Search, launched: tuple[int, list[str]]) -> None:
    port, words = launched
    assert search.result.winner is not None
    launch = next(r for r in search.records if r.trial == search.result.winner.trials[0]).start.launch
    at = words.index(launch.arguments[0])
    assert tuple(words[at:]) == (*launch.arguments, "--host", "127.0.0.1", "--port", str(port))
    answer = httpx.post(
        f"http://127.0.0.1:{port}/v1/chat/completions",
        json={"model": launch.arguments[0], "messages": [{"role": "user", "content": "你好"}], "max_tokens": 8},
        timeout=60,
    )
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] == 8


def test_stop_sh_leaves_no_process_and_a_free_port(search: Search, launched: tuple[int, list[str]]) -> None:
    port, _ = launched
    assert_stopped(search.folder, port)


def test_the_report_and_the_scripts_are_there(search: Search) -> None:
    assert (search.folder / "report.html").stat().st_size > 100_000
    for name in ("start.sh", "stop.sh"):
        assert subprocess.run([shutil.which("bash") or "bash", "-n", search.folder / name]).returncode == 0
