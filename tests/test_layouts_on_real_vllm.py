"""The whole machine on real servers: two layouts of two cores, confirmed through both doors; then its start script."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.real_servers import assert_stopped, servers_of, started
from tuner.deploy.start import write_scripts
from tuner.launch import Door
from tuner.layout import Layout
from tuner.load.drive import drive_closed
from tuner.load.prompts import Request
from tuner.load.stream import Target
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import StudyResult
from tuner.study.store import Store
from tuner.telemetry.prometheus import scrape

pytestmark = [pytest.mark.real_vllm, pytest.mark.timeout(1200)]

SPACE = """
parameters:
  max-num-seqs: {choice: [8, 32]}
always:
  kv-cache-memory-bytes: 134217728
  max-model-len: 512
env:
  HF_HUB_OFFLINE: "1"
  VLLM_NO_USAGE_STATS: "1"
"""
REPLICAS, SPLIT = Layout(2, 1), Layout(1, 2)
TOKENS = 400


@dataclass(frozen=True)
class Search:
    folder: Path
    stdout: str
    plan: StudyPlan
    records: tuple[TrialRecord, ...]
    result: StudyResult

    def of(self, layout: Layout, *roles: Role) -> list[TrialRecord]:
        return [r for r in self.records if r.role in roles and self.plan.layout_of(r.candidate) == layout]


@pytest.fixture(scope="module")
def search(tiny_model: str, vllm_command: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Search:
    """A search of both layouts, without confirmation: which is faster depends on the machine."""
    return searched(tiny_model, vllm_command, tmp_path_factory.mktemp("layouts"), "--trials", "3", "--confirm", "0")


@pytest.fixture(scope="module")
def machine(tiny_model: str, vllm_command: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Search:
    """A study of two replicas alone, whose default is confirmed through both doors."""
    words = ("--layouts", "2x1", "--door", "both", "--trials", "1", "--confirm", "2")
    return searched(tiny_model, vllm_command, tmp_path_factory.mktemp("machine"), *words)


def searched(model: str, vllm: tuple[str, ...], root: Path, *words: str) -> Search:
    (root / "small.yaml").write_text(SPACE)
    command = [
        sys.executable, "-m", "tuner.cli.app", "search", "--model", model, "--vllm", " ".join(vllm),
        "--workers", "2", "--space", str(root / "small.yaml"), "--workload", "random:16-48,4-8",
        "--slo", "p99 ttft <= 60s", "--levels", "8", "--level-seconds", "8", "--warm-up-seconds", "6", *words,
        "--studies", str(root / "studies"), "--study", "machine",
        "--", "--enforce-eager", "--load-format", "dummy", "--dtype", "float32", "--api-server-count", "1",
    ]  # fmt: skip
    ended = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    store = Store(root / "studies" / "machine")
    return Search(store.folder, ended.stdout, store.plan(), store.records(), store.result())


def test_both_layouts_of_two_workers_were_measured(search: Search) -> None:
    assert {placed.layout for placed in search.plan.layouts} == {REPLICAS, SPLIT}
    assert search.plan.own_layout == SPLIT
    assert search.records[0].candidate == search.plan.baseline
    for layout in (REPLICAS, SPLIT):
        (default,) = search.of(layout, Role.DEFAULT)
        assert default.outcome is TrialOutcome.FEASIBLE
        assert default.candidate == search.plan.default_of(layout)
        assert default.replicas == layout.replicas


def test_a_server_gets_the_cores_of_its_workers_and_no_other(search: Search) -> None:
    (split,), (one,) = search.of(SPLIT, Role.DEFAULT), search.of(REPLICAS, Role.DEFAULT)
    cores = dict(split.start.launch.env)["VLLM_CPU_OMP_THREADS_BIND"].split("|")
    assert len(set(cores)) == 2
    assert dict(one.start.launch.env)["VLLM_CPU_OMP_THREADS_BIND"] in cores


def test_the_replicas_are_measured_side_by_side_too(search: Search) -> None:
    together = search.of(REPLICAS, Role.CHECK)
    assert {r.start.group for r in together} == {"cpu0", "cpu1"}
    assert all(r.outcome is TrialOutcome.FEASIBLE for r in together)


def test_the_whole_machine_is_confirmed_through_both_doors(machine: Search) -> None:
    winner = machine.result.winner
    assert winner is not None and winner.fresh
    runs = machine.of(REPLICAS, Role.CONFIRM)
    assert {r.start.door: len(r.start.launches) for r in runs} == {Door.VLLM: 1, Door.NGINX: 2}
    assert {door.door for door in machine.result.doors} == {Door.VLLM, Door.NGINX}
    assert all(r.levels[0].measurement.server.preemptions == 0 for r in runs)


def test_no_server_of_the_searches_is_left(search: Search, machine: Search) -> None:
    assert not servers_of(search.folder)
    assert not servers_of(machine.folder)


@pytest.fixture(scope="module")
def port(machine: Search) -> Iterator[int]:
    """The deployment of the script for the run behind nginx: the port of its door."""
    write_scripts(machine.folder, next(r.trial for r in machine.records if r.start.door is Door.NGINX))
    with started(machine.folder) as port:
        yield port


def test_start_sh_starts_two_servers_behind_nginx_that_share_streams_and_pass_them_unbuffered(
    machine: Search, port: int
) -> None:
    request = Request((("user", "你好"),), 1, TOKENS, {"ignore_eos": True})
    door = Target(f"http://127.0.0.1:{port}", machine.plan.model)
    answers = drive_closed(door, [request] * 4, 4, 0.1).requests
    assert [(answer.failure, answer.output_tokens) for answer in answers] == [(None, TOKENS)] * 4
    for answer in answers:
        assert answer.first_ns is not None and answer.last_ns is not None
        # A buffered stream comes in one piece at its end. A server's first answer waits some seconds before it streams.
        assert answer.last_ns - answer.first_ns > (answer.last_ns - answer.sent_ns) / 10
    seen = [scrape(f"http://127.0.0.1:{port + number}/metrics") for number in (1, 2)]
    assert [one.generation_tokens for one in seen if one is not None] == [2 * TOKENS, 2 * TOKENS]


def test_stop_sh_leaves_no_process_and_a_free_port(machine: Search, port: int) -> None:
    assert_stopped(machine.folder, port)
