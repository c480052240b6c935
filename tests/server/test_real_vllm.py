"""The server room on the real vLLM, CPU build: two starts. A refused one is in tests/test_search_on_real_vllm.py."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx
import pytest

from tests.server.support import children_of_ours, eventually, fake_running, runs, session
from tuner.launch import LaunchSpec
from tuner.server import proctable
from tuner.server.diagnosis import Fault

pytestmark = pytest.mark.real_vllm

LIMIT_S = 180.0
FEW = ("--load-format", "dummy", "--enforce-eager", "--max-num-seqs", "4", "--kv-cache-memory-bytes", "24M")
ENV = (("HF_HUB_OFFLINE", "1"), ("VLLM_ENABLE_STARTUP_PLAN", "0"), ("VLLM_NO_USAGE_STATS", "1"))


def spec(command: tuple[str, ...], model: str, *words: str) -> LaunchSpec:
    return LaunchSpec((), command, (model, *FEW, *words), ENV)


def shared_memory_of(pid: int) -> set[Path]:
    return {path for p in session(pid) for path in proctable.shared_memory_files(p.pid)}


def test_start_serve_and_stop_leave_nothing(tmp_path: Path, vllm_command: tuple[str, ...], tiny_model: str) -> None:
    launch = spec(vllm_command, tiny_model, "--max-model-len", "512", "--shutdown-timeout", "10")
    with fake_running(tmp_path, spec=launch, model=tiny_model, start_limit_s=LIMIT_S) as server:
        assert server.model_name == tiny_model
        assert server.facts.max_model_len == 512
        assert server.facts.kv_tokens is not None and server.facts.vllm_version is not None
        asked = {"model": server.model_name, "prompt": "hello", "max_tokens": 4}
        answer = httpx.post(f"{server.base_url}/v1/completions", json=asked, timeout=60, trust_env=False)
        assert answer.status_code == httpx.codes.OK
        assert len(session(server.pid)) >= 3, "API server, engine core, worker"
        files = shared_memory_of(server.pid)
        assert files
        assert server.died() is None
    assert server.stopped is not None
    assert server.stopped.is_clean and server.stopped.killed == () and server.stopped.exit_code == 0
    assert not session(server.pid) and not children_of_ours()
    assert not any(path.exists() for path in files)
    assert [path.name for path in tmp_path.iterdir()] == ["server.log"]


def test_orphans_that_ignore_sigterm_are_swept_after_a_kill_9_of_the_api_server(
    tmp_path: Path, vllm_command: tuple[str, ...], tiny_model: str
) -> None:
    launch = spec(vllm_command, tiny_model, "--max-model-len", "512")
    with fake_running(tmp_path, spec=launch, model=tiny_model, start_limit_s=LIMIT_S) as server:
        family, files = session(server.pid), shared_memory_of(server.pid)
        for process in family:
            if process.pid != server.pid:
                os.kill(process.pid, signal.SIGSTOP)  # deaf to SIGTERM, as an engine in a long kernel
        os.kill(server.pid, signal.SIGKILL)
        assert eventually(lambda: not server.alive())
        cause = server.died()
        assert cause is not None and (cause.kind, cause.fault) == ("killed", Fault.ENVIRONMENT)
        assert len([p for p in family if runs(p.pid)]) >= 2, "engine core and worker outlive their API server"
    assert not any(runs(p.pid) for p in family) and not children_of_ours()
    assert files and not any(path.exists() for path in files)
    assert server.stopped is not None and server.stopped.is_clean and len(server.stopped.killed) >= 2
    assert {str(path) for path in files} <= set(server.stopped.removed)
