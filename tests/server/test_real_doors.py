"""Both doors on the real vLLM, CPU build: two servers behind nginx, and one with two engines. Three starts."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.server.support import children_of_ours, eventually, fake_serving, listens, runs, session
from tests.server.test_real_vllm import shared_memory_of, spec
from tuner.launch import Door
from tuner.load.drive import Samples, drive_closed
from tuner.load.prompts import Request
from tuner.load.stream import Failure, Target
from tuner.server import running_file
from tuner.server.diagnosis import Fault
from tuner.server.door import nginx_program
from tuner.server.service import Deployment, ServerDidNotStart, Service
from tuner.telemetry.prometheus import engines, read_page, scrape
from tuner.vllm import knobs, variables

pytestmark = pytest.mark.real_vllm

LIMIT_S = 600.0
TOKENS = 300
LONG_TOKENS = 1000
"""Answer that still streams, some ten seconds on one core, when a page of /metrics took two."""


@contextmanager
def swept(folder: Path, deployment: Deployment, model: str) -> Iterator[Service]:
    """A service for a body that harms it: whatever that was, the stop leaves nothing of it."""
    with fake_serving(folder, deployment, model=model, start_limit_s=LIMIT_S) as service:
        family = [process.pid for leader in service.pids for process in session(leader)]
        files = {file for leader in service.pids for file in shared_memory_of(leader)}
        yield service
    assert not any(map(runs, family)) and not children_of_ours()
    assert files and not any(path.exists() for path in files)
    assert not any(listens(server.port) for server in service.servers)
    assert not running_file.found_below(folder)
    assert service.stopped is not None and service.stopped.is_clean


def asked(target: Target, count: int = 1, tokens: int = TOKENS, drain_s: float = 60.0) -> Samples:
    """Send `count` streams at once."""
    request = Request((("user", "hello"),), 1, tokens, {"ignore_eos": True})
    requests = [request] * count
    return drive_closed(target, requests, count, 0.1, drain_s=drain_s, watch=lambda _: None)


def bound(command: tuple[str, ...], model: str, cores: str, *words: str) -> Deployment:
    """One server on these cores, one text for each rank."""
    launch = spec(command, model, "--max-model-len", "1024", "--shutdown-timeout", "2", *words)
    env = (*launch.env, (variables.CPU_CORES, cores))
    return Deployment((type(launch)(launch.prefix, launch.command, launch.arguments, env),))


@pytest.mark.skipif(nginx_program() is None, reason="no nginx here")
def test_two_servers_behind_nginx_share_streams_and_one_dies_and_one_does_not_act_on_sigterm(
    tmp_path: Path, vllm_command: tuple[str, ...], tiny_model: str
) -> None:
    specs = [bound(vllm_command, tiny_model, core).specs[0] for core in ("0", "1")]
    with swept(tmp_path, Deployment(tuple(specs), Door.NGINX), tiny_model) as service:
        door = Target(service.base_url, service.model_name)
        samples = asked(door, 4)
        assert all(sample.failure is None for sample in samples.requests)
        for sample in samples.requests:  # a buffered stream comes in one piece at its end
            assert sample.first_ns is not None and sample.last_ns is not None
            # A server's first answer waits a second or two before it streams.
            assert (sample.last_ns - sample.first_ns) > (sample.last_ns - sample.sent_ns) / 10
        pages = [f"{server.base_url}/metrics" for server in service.servers]
        seen = list(map(scrape, pages))
        assert [one.generation_tokens for one in seen if one] == [2 * TOKENS, 2 * TOKENS]
        assert [facts.kv_tokens for facts in service.facts] == [service.facts[0].kv_tokens] * 2
        assert service.died() is None
        with ThreadPoolExecutor(1) as pool:
            load = pool.submit(asked, door, 4, LONG_TOKENS)
            assert eventually(
                lambda: all((one := scrape(f"{s.base_url}/metrics")) and one.running for s in service.servers)
            )
            os.kill(service.servers[1].pid, signal.SIGKILL)
            failed = [sample for sample in load.result().requests if sample.failure]
        assert len(failed) == 2, "the other server's streams go on, and those that had begun are not repeated"
        cause = service.died()
        assert cause is not None and (cause.kind, cause.fault) == ("killed", Fault.ENVIRONMENT)
        deaf = session(service.servers[0].pid)
        for process in deaf:
            os.kill(process.pid, signal.SIGSTOP)  # SIGTERM stays pending, as under a hung system call
    stopped = service.servers[0].stopped
    assert stopped is not None
    assert len(stopped.killed) == len(deaf) >= 3 and stopped.exit_code == -signal.SIGKILL


def test_an_engine_of_two_that_freezes_or_dies_is_seen(
    tmp_path: Path, vllm_command: tuple[str, ...], tiny_model: str
) -> None:
    words = (f"--{knobs.DATA_PARALLEL}", "2", "--api-server-count", "1")
    deployment = bound(vllm_command, tiny_model, "0|1", *words)
    with swept(tmp_path, Deployment(deployment.specs, Door.VLLM), tiny_model) as service:
        (server,) = service.servers
        assert service.base_url == server.base_url
        assert server.facts.kv_tokens is not None and server.facts.vllm_version is not None
        each = [Target(server.base_url, server.model_name, headers=header(engine)) for engine in (0, 1)]
        assert all(asked(target, 2).requests[1].failure is None for target in each)
        page = read_page(f"{server.base_url}/metrics")
        assert page is not None
        assert [one.generation_tokens for one in engines(page.text, 0)] == [2 * TOKENS, 2 * TOKENS]
        second = engine_pids(server.pid)[1]
        os.kill(second, signal.SIGSTOP)
        assert httpx.get(f"{server.base_url}/health", trust_env=False).status_code == httpx.codes.OK
        ended = [asked(target, tokens=1, drain_s=5.0).requests[0].failure for target in each]
        assert ended == [None, Failure.TIMEOUT]
        os.kill(second, signal.SIGCONT)
        os.kill(second, signal.SIGKILL)
        assert eventually(lambda: not runs(second))
        # vLLM ends the other engine first, and answers /health with 200 for some seconds more.
        cause = service.died()
        assert cause is not None and (cause.kind, cause.fault) == ("engine-died", Fault.UNKNOWN)


def test_a_refusal_of_several_engines_teaches_its_bound(
    tmp_path: Path, vllm_command: tuple[str, ...], tiny_model: str
) -> None:
    words = (f"--{knobs.DATA_PARALLEL}", "2", "--api-server-count", "1")
    small = ("--max-model-len", "2048", "--kv-cache-memory-bytes", "8M")
    deployment = bound(vllm_command, tiny_model, "0|1", *words, *small)
    with pytest.raises(ServerDidNotStart) as refused, swept(tmp_path, deployment, tiny_model):
        pytest.fail("8 MiB cannot hold a request of 2048 tokens")
    assert (refused.value.cause.kind, refused.value.cause.fault) == ("kv-too-small", Fault.CANDIDATE)
    assert refused.value.cause.bounds[0].flag == "max-model-len"
    assert refused.value.stopped.is_clean and not children_of_ours()


def header(engine: int) -> tuple[tuple[str, str], ...]:
    return ((variables.ENGINE_HEADER, str(engine)),)


def engine_pids(leader: int) -> list[int]:
    """The engines, which vLLM names after their rank."""
    named = {Path(f"/proc/{p.pid}/cmdline").read_text().strip("\0 "): p.pid for p in session(leader)}
    return [next(pid for words, pid in named.items() if f"EngineCore_DP{rank}" in words) for rank in (0, 1)]
