from __future__ import annotations

import json
import os
import resource
import shutil
from collections import namedtuple
from pathlib import Path

import psutil
import pytest

from tests.cli.support import STAND_IN, tuner
from tests.fakes import RecordedGpu
from tuner import machine
from tuner.machine import Finding, Grade, peers_without
from tuner.telemetry.gpu import GpuHolders, GpuProcess, GpuReading, Installed

MATRIX = """\
 \tGPU0\tGPU1\tGPU2\t
 GPU0\tX\tOK\tCNS\t
 GPU1\tOK\tX\tOK\t
 GPU2\tCNS\tOK\tX\t

Legend:
  X    = Self
  OK   = Status Ok
  CNS  = Chipset not supported
"""


def test_check_of_a_machine_without_a_gpu_is_in_order(tmp_path: Path) -> None:
    ended = tuner("check", "--vllm", STAND_IN, "--studies", str(tmp_path), "--json")
    findings = json.loads(ended.stdout)["findings"]
    assert ended.returncode == (4 if any(f["grade"] == "error" for f in findings) else 0)
    grades = {f["what"]: f["grade"] for f in findings}
    assert grades["vLLM"] == "ok"
    assert {"vLLM's flags", "NUMA", "limits", "disk", "/dev/shm", "ports", "clock"} <= set(grades)


def test_check_without_vllm_is_an_error_with_what_to_do_and_exit_code_4(tmp_path: Path) -> None:
    ended = tuner("check", "--vllm", "no-such-vllm serve", "--studies", str(tmp_path))
    assert ended.returncode == 4
    first, todo = ended.stdout.splitlines()[:2]
    assert first.split()[:2] == ["error", "vLLM"]
    assert "→ install vLLM" in todo
    assert ended.stderr.strip().splitlines()[-2] == "error: this machine is not ready: vLLM"


def test_every_finding_that_is_not_ok_says_what_to_do(tmp_path: Path) -> None:
    for finding in machine.findings("no-such-vllm", None, tmp_path, lambda _: None):
        assert (finding.grade is Grade.OK) == (finding.todo == ""), finding


def test_the_peer_matrix_names_pairs_that_cannot_read_each_other() -> None:
    assert peers_without(MATRIX, (0, 1)) == []
    assert peers_without(MATRIX, (0, 1, 2)) == [(0, 2, "CNS")]
    assert peers_without(MATRIX, (0, 3)) is None
    assert peers_without("NVIDIA-SMI has failed", (0, 1)) is None


@pytest.mark.parametrize(
    ("answer", "code", "pairs"),
    [(MATRIX, 0, [(0, 2, "CNS")]), (MATRIX, 1, None), ("no devices were found", 0, None)],
)
def test_the_driver_is_asked_for_pairs_without_p2p(
    answer: str, code: int, pairs: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n[ \"$*\" = 'topo -p2p r' ] || exit 9\ncat <<'E'\n{answer}E\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert machine._without_p2p((0, 1, 2)) == pairs
    assert machine._without_p2p((0,)) == []


@pytest.mark.parametrize(("held_gib", "grade"), [(0.4, Grade.OK), (3.0, Grade.WARNING), (20.0, Grade.ERROR)])
def test_gpu_memory_in_others_hands_is_graded_by_its_share(
    held_gib: float, grade: Grade, monkeypatch: pytest.MonkeyPatch
) -> None:
    holders = GpuHolders(0, int(held_gib * 2**30))
    monkeypatch.setattr(machine, "gpu_adapter", lambda: RecordedGpu(holders=[holders]))
    (finding,) = machine._gpu_memory([Installed(0, "H100", 80.0, "GPU-x", 0)])
    assert finding.grade is grade


def held(holders: GpuHolders) -> Finding:
    return machine._held("GPU 0 memory", holders, 32.0)


def test_the_drivers_own_share_is_not_mentioned() -> None:
    """0.4 GiB on a card of 32 GiB that nobody holds, as a driver reports that does not set its reserve apart."""
    assert held(GpuHolders(0, 429_916_160)) == Finding("GPU 0 memory", Grade.OK, "free")


def test_processes_that_hold_gpu_memory_are_named_with_their_size() -> None:
    me = psutil.Process().name()
    ours, other = GpuProcess(os.getpid(), 3 * 2**30, computes=True), GpuProcess(2**22 - 1, None, computes=False)
    finding = held(GpuHolders(0, 4 * 2**30, (ours, other)))
    assert finding.grade is Grade.ERROR
    assert finding.says == (
        f"4.00 GiB of 32.0 GiB held by {me} (pid {os.getpid()}, 3,072 MiB), process (pid {2**22 - 1})"
    )
    assert finding.todo.startswith("end them:")


def test_a_process_that_computes_is_a_warning_however_little_it_holds() -> None:
    small = 100 * 2**20
    assert held(GpuHolders(0, small, (GpuProcess(1, small, computes=True),))).grade is Grade.WARNING
    assert held(GpuHolders(0, small, (GpuProcess(1, small, computes=False),))).grade is Grade.OK


def test_a_throttled_gpu_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = GpuReading(0, 0.0, 0, 60.0, 40.0, 345.0, ("power cap",))
    monkeypatch.setattr(machine, "gpu_adapter", lambda: RecordedGpu([(reading,)]))
    (finding,) = machine._throttled([Installed(0, "H100", 80.0, "GPU-x", 0)])
    assert (finding.grade, finding.says) == (Grade.WARNING, "throttled: power cap")


def test_few_open_files_are_a_warning_with_the_command_that_raises_them(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {resource.RLIMIT_NOFILE: (1024, 1_048_576), resource.RLIMIT_NPROC: (-1, -1)}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[kind])
    assert list(machine._limits()) == [Finding("limits", Grade.WARNING, "open files up to 1,024", "ulimit -n 65536")]


@pytest.mark.parametrize(("free_gib", "grade"), [(0.5, Grade.ERROR), (5.0, Grade.WARNING), (50.0, Grade.OK)])
def test_free_disk_is_graded(free_gib: float, grade: Grade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 0, int(free_gib * 2**30)))
    (finding,) = machine._disk(tmp_path / "not" / "yet")
    assert finding.grade is grade
