"""The worst cases of the matrix on the real vLLM, CPU build: three starts of some 25 s."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.faults.study_run import records_of
from tests.real_servers import servers_of
from tests.server.support import bystander, children_of_ours, eventually, fake_running, runs
from tuner.launch import LaunchSpec
from tuner.server.diagnosis import Fault
from tuner.server.service import ServerDidNotStart
from tuner.study.record import TrialOutcome
from tuner.study.store import Store
from tuner.vllm.memory import HELD_SHARE_HOST

pytestmark = pytest.mark.real_vllm

LIMIT_S = 180.0
HOG_BYTES = 3 * 2**30

SPACE = """
parameters:
  max-num-seqs: {choice: [32]}
env:
  VLLM_ENABLE_V1_MULTIPROCESSING: "0"
  OMP_NUM_THREADS: "1"
  HF_HUB_OFFLINE: "1"
"""


def test_a_tuner_killed_while_it_measures_is_resumed_to_the_end(
    tiny_model: str, vllm_command: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "space.yaml").write_text(SPACE)
    studies = tmp_path / "studies"
    folder = studies / "killed"
    tuner = [sys.executable, "-m", "tuner.cli.app"]
    search = [
        *tuner, "search", "--model", tiny_model, "--vllm", " ".join(vllm_command),
        "--space", str(tmp_path / "space.yaml"), "--workload", "random:32,16", "--slo", "p99 ttft <= 20s",
        "--levels", "8,16", "--level-seconds", "8", "--warm-up-seconds", "1", "--trials", "1", "--confirm", "0",
        "--studies", str(studies), "--study", "killed",
        "--", "--enforce-eager", "--load-format", "dummy", "--dtype", "float32", "--kv-cache-memory-bytes", "64M",
    ]  # fmt: skip
    with bystander(*vllm_command, tiny_model) as other, (tmp_path / "first.log").open("w") as log:
        first = subprocess.Popen(search, stdout=log, stderr=log)
        try:
            # The first level is on disk: the second one is being measured.
            measured = folder / "trials" / "0000" / "requests.parquet"
            assert eventually(lambda: measured.exists() or first.poll() is not None, LIMIT_S)
            assert first.poll() is None, (tmp_path / "first.log").read_text()
        finally:
            first.kill()
            first.wait()
        orphans = servers_of(folder)
        assert orphans and records_of(folder) == {}
        resume = [*tuner, "resume", "killed", "--studies", str(studies)]
        second = subprocess.run(resume, capture_output=True, text=True, timeout=LIMIT_S + 60)
        assert second.returncode == 0, second.stderr
        assert "an earlier run had left a server" in second.stderr
        assert not any(runs(process.pid) for process in orphans) and not servers_of(folder)
        assert runs(other)
    assert [r.outcome for r in Store(folder).records()] == [TrialOutcome.FEASIBLE]
    assert Store(folder).result().complete
    assert not list(folder.rglob("running.json"))


@contextmanager
def hog() -> Iterator[int]:
    script = f"import time; held = bytearray(b'x') * {HOG_BYTES}; print(flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    try:
        with process.stdout:
            process.stdout.readline()
        yield process.pid
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def test_memory_that_another_process_holds_refuses_the_start_and_says_so(
    tmp_path: Path, vllm_command: tuple[str, ...], tiny_model: str
) -> None:
    """The share would fit, were it not for the other process."""
    memory = psutil.virtual_memory()
    share = (memory.available - HOG_BYTES // 2) / memory.total
    words = (
        "--load-format", "dummy", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "4",
        "--gpu-memory-utilization", f"{share:.3f}",
    )  # fmt: skip
    spec = LaunchSpec((), vllm_command, (tiny_model, *words), (("HF_HUB_OFFLINE", "1"),))
    with (
        hog() as other,
        pytest.raises(ServerDidNotStart) as refused,
        fake_running(tmp_path, spec=spec, model=tiny_model, start_limit_s=LIMIT_S),
    ):
        pytest.fail("there is not that much memory")
    assert not runs(other)
    cause = refused.value.cause
    assert cause.kind == "host-memory-wanted"
    free = memory.available / memory.total
    expected = Fault.ENVIRONMENT if 1 - free > HELD_SHARE_HOST else Fault.CANDIDATE
    assert cause.fault is expected
    if expected is Fault.CANDIDATE:
        (bound,) = cause.bounds
        assert bound.flag == "gpu-memory-utilization" and bound.limit < share
    assert refused.value.stopped.is_clean and not children_of_ours()
