"""Several engines in one server, several servers on one machine: names, metrics, balance, deaths, disturbance."""

from __future__ import annotations

import asyncio
import os
import selectors
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.ports import free_port
from tests.server.support import eventually
from tests.sim.conftest import Serve, Server
from tuner.sim import EngineArguments, Noise, Started, hardware_profile, held_bytes, load_model, startup
from tuner.sim.engine_loop import EngineLoop
from tuner.sim.engine_pool import EnginePool, least_loaded
from tuner.sim.faults import ActiveFaults
from tuner.sim.frontend import Frontend
from tuner.sim.metrics import Metrics, MetricsPage
from tuner.sim.neighbours import Neighbours

TWO = ("--data-parallel-size", "2")
SLOW = {"TUNER_SIM_SPEED": "1", "TUNER_SIM_STARTUP_S": "0.3"}
H100, SMALL = hardware_profile("h100"), load_model("Qwen/Qwen3-0.6B")


def titles(server: Server) -> list[str]:
    return sorted(title.removeprefix("VLLM::") for title in server.children().values())


def pid_of(server: Server, title: str) -> int:
    return next(pid for pid, name in server.children().items() if name == f"VLLM::{title}")


def by_engine(server: Server, metric: str) -> dict[str, float]:
    """Map the engine's label to a metric's value."""
    lines = [line for line in server.call("/metrics")[1].splitlines() if line.startswith(f"vllm:{metric}{{")]
    return {line.split('engine="')[1].split('"')[0]: float(line.split()[-1]) for line in lines}


def ask_in_background(server: Server, count: int, tokens: int = 1500) -> None:
    for _ in range(count):
        threading.Thread(target=server.chat, args=(tokens,), kwargs={"timeout_s": 5.0}, daemon=True).start()


def test_each_engine_has_its_processes_gpus_and_log_prefix(serve: Serve) -> None:
    server = serve(*TWO, "--tensor-parallel-size", "2", env={"CUDA_VISIBLE_DEVICES": "2,3,4,5"}).ready()
    assert titles(server) == [
        "APIServer_0", "APIServer_1", "DPCoordinator", "EngineCore_DP0", "EngineCore_DP1",
        "Worker_DP0_TP0", "Worker_DP0_TP1", "Worker_DP1_TP0", "Worker_DP1_TP1",
    ]  # fmt: skip
    assert all(held_bytes(server.gpu_dir, gpu) > 0 for gpu in (2, 3, 4, 5))
    for prefix in ("(EngineCore_DP0 pid=", "(EngineCore_DP1 pid=", "(ApiServer_0 pid=", "(ApiServer_1 pid="):
        assert prefix in server.log


def test_workers_of_stages_are_named_by_stage(serve: Serve) -> None:
    server = serve("--pipeline-parallel-size", "2").ready()
    assert titles(server) == ["EngineCore", "Worker_PP0", "Worker_PP1"]


def test_one_api_server_is_the_parent_itself(serve: Serve) -> None:
    server = serve(*TWO, "--api-server-count", "1").ready()
    assert titles(server) == ["DPCoordinator", "EngineCore_DP0", "EngineCore_DP1"]


def test_metrics_have_every_engine_and_requests_alternate_between_idle_ones(serve: Serve) -> None:
    server = serve(*TWO).ready()
    for _ in range(6):
        assert server.chat(tokens=4)[0] == 200
    assert by_engine(server, "generation_tokens_total") == {"0": 12.0, "1": 12.0}
    assert len(by_engine(server, "cache_config_info")) == 2


def test_requests_under_way_are_spread_over_the_engines(serve: Serve) -> None:
    server = serve(*TWO, env=SLOW).ready()
    ask_in_background(server, 8)
    assert eventually(lambda: by_engine(server, "num_requests_running") == {"0": 4.0, "1": 4.0})


@pytest.mark.parametrize(
    ("loads", "first", "chosen"),
    [
        ([(0, 3, 0.1), (0, 2, 0.1)], 0, 1),
        ([(0, 2, 0.1), (0, 2, 0.1), (0, 2, 0.1)], 2, 2),
        ([(4, 2, 0.2), (0, 7, 0.2)], 0, 0),
        ([(4, 2, 0.9), (0, 7, 0.9)], 0, 1),  # a queue before a full cache drains slowly
    ],
)
def test_a_request_goes_to_the_least_loaded_engine(
    loads: list[tuple[int, int, float]], first: int, chosen: int
) -> None:
    assert least_loaded(loads, first) == chosen


def test_a_stopped_server_leaves_nothing(serve: Serve) -> None:
    server = serve(*TWO).ready()
    server.process.terminate()
    assert server.wait() == 0
    assert not server.children()
    assert held_bytes(server.gpu_dir, 0) == held_bytes(server.gpu_dir, 1) == 0


@pytest.mark.parametrize("victim", ["EngineCore_DP1", "APIServer_0", "DPCoordinator"])
def test_the_death_of_any_process_ends_the_server_with_1(serve: Serve, victim: str) -> None:
    server = serve(*TWO).ready()
    os.kill(pid_of(server, victim), signal.SIGKILL)
    assert server.wait() == 1
    assert f"process {victim}" in server.log or f"Process {victim}" in server.log
    assert eventually(lambda: not server.children())


def test_with_one_api_server_a_dead_engine_is_exit_0_as_with_one_engine(serve: Serve) -> None:
    server = serve(*TWO, "--api-server-count", "1").ready()
    os.kill(pid_of(server, "EngineCore_DP0"), signal.SIGKILL)
    assert server.wait() == 0


def test_a_killed_parent_leaves_engines_memory_and_a_taken_port(serve: Serve) -> None:
    server = serve(*TWO).ready()
    server.process.kill()
    server.wait()
    assert "APIServer_0" in titles(server) and held_bytes(server.gpu_dir, 1) > 0
    with socket.socket() as probe, pytest.raises(OSError, match="Address already in use"):
        probe.bind(("127.0.0.1", server.port))


def test_an_engine_that_finds_no_memory_refuses_the_whole_server(serve: Serve) -> None:
    serve(env={"CUDA_VISIBLE_DEVICES": "1"}).ready()
    server = serve(*TWO, env={"CUDA_VISIBLE_DEVICES": "0,1"})
    assert server.wait() == 1
    assert "Failed core proc(s): {'EngineCore_DP1': 1}" in server.log
    assert eventually(lambda: not server.children() and held_bytes(server.gpu_dir, 0) == 0)


def test_more_engines_than_gpus_are_refused(serve: Serve) -> None:
    server = serve(*TWO, env={"CUDA_VISIBLE_DEVICES": "0"})
    assert server.wait() == 1
    assert "Error setting CUDA_VISIBLE_DEVICES: local range: [1, 2)" in server.log


# ---------------------------------------------------------------- faults at one place


@pytest.mark.parametrize(("fault", "code"), [("die-before-ready%gpu1", -9), ("refuse-memory-held%engine1", 1)])
def test_a_fault_can_strike_one_engine_at_its_start(serve: Serve, fault: str, code: int) -> None:
    server = serve(*TWO, "--fault", fault)
    assert server.wait() == 1
    assert f"Failed core proc(s): {{'EngineCore_DP1': {code}}}" in server.log


def test_a_fault_can_strike_one_engine_under_load(serve: Serve) -> None:
    server = serve(*TWO, "--fault", "engine-dies-under-load:3%engine1").ready()
    assert [server.chat()[0] for _ in range(2)] == [200, 200]
    server.chat()
    assert server.wait() == 1
    assert "Engine core process EngineCore_DP1 died unexpectedly." in server.log


def test_one_hung_engine_answers_half_of_the_requests(serve: Serve) -> None:
    server = serve(*TWO, "--fault", "hung-engine:1%engine0").ready()
    body = {"prompt": "x", "max_tokens": 2}
    answers = [server.call("/v1/completions", body, timeout_s=0.5)[0] for _ in range(4)]
    assert answers.count(200) >= 2 and 0 in answers


@pytest.mark.parametrize("where", ["gpu1", "index1"])
def test_a_fault_can_strike_one_of_several_servers(serve: Serve, where: str) -> None:
    env = {"TUNER_SIM_FAULTS": f"metrics-missing%{where}"}
    servers = [serve(env={**env, "TUNER_SIM_INDEX": str(i), "CUDA_VISIBLE_DEVICES": str(i)}).ready() for i in range(2)]
    assert [server.call("/metrics")[0] for server in servers] == [200, 404]


def test_the_server_on_a_port_can_be_struck(serve: Serve) -> None:
    port = free_port()
    server = serve("--port", str(port), "--fault", f"metrics-missing%port{port}")
    server.port = port
    other = serve("--fault", f"metrics-missing%port{port}", env={"CUDA_VISIBLE_DEVICES": "1"})
    assert (server.ready().call("/metrics")[0], other.ready().call("/metrics")[0]) == (404, 200)


def test_the_start_of_a_place_is_counted_there_alone(serve: Serve) -> None:
    env = {"TUNER_SIM_FAULTS": "metrics-missing@2%gpu1"}
    answers = []
    for gpu in ("0", "1", "0", "1"):
        server = serve(env={**env, "CUDA_VISIBLE_DEVICES": gpu}).ready()
        answers.append(server.call("/metrics")[0])
        server.process.terminate()
        server.wait()
    assert answers == [200, 200, 200, 404]


# ---------------------------------------------------------------- cores on a CPU


def test_workers_on_a_cpu_need_a_binding(serve: Serve) -> None:
    env = {"TUNER_SIM_PROFILE": "cpu"}
    flags = ("--tensor-parallel-size", "2", "--kv-cache-memory-bytes", "256M", "--max-model-len", "512")
    refused = serve(*flags, env=env)
    bound = serve(*flags, env={**env, "VLLM_CPU_OMP_THREADS_BIND": "0|1"}).ready()
    assert refused.wait() == 1
    assert "Not enough allowed NUMA nodes to bind threads of 2 local CPUWorkers." in refused.log
    assert titles(bound) == ["EngineCore", "Worker_TP0", "Worker_TP1"]


def test_a_core_can_be_struck(serve: Serve) -> None:
    env = {"TUNER_SIM_PROFILE": "cpu", "TUNER_SIM_FAULTS": "metrics-missing%core3"}
    flags = ("--kv-cache-memory-bytes", "256M", "--max-model-len", "512")
    servers = [serve(*flags, env={**env, "VLLM_CPU_OMP_THREADS_BIND": cores}).ready() for cores in ("0-1", "2-3")]
    assert [server.call("/metrics")[0] for server in servers] == [200, 404]


# ---------------------------------------------------------------- time that engines and servers take from each other


class SkippingSelector(selectors.SelectSelector):
    """Selector that does not wait: the loop's clock jumps to the next timer."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now_s += timeout or 0.0
        return super().select(0)


def virtually(main: Callable[[], object]) -> object:
    """Run a coroutine in virtual time."""
    selector = SkippingSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now_s  # type: ignore[method-assign]
    try:
        return loop.run_until_complete(main())  # type: ignore[arg-type]
    finally:
        loop.close()


def tokens_per_s(engines: int, api_servers: int) -> float:
    """Answer 128 requests an engine at once, and count the tokens of a second."""
    arguments = EngineArguments(max_model_len=2048, data_parallel_size=engines)
    started = startup(arguments, H100, SMALL)
    assert isinstance(started, Started)

    async def main() -> float:
        page = MetricsPage("m")
        loops = [
            EngineLoop(started, H100, SMALL, Metrics(page, i), ActiveFaults(()), speed=1.0, noise=Noise(), seed=0)
            for i in range(engines)
        ]
        pool = EnginePool(loops, [Frontend(H100) for _ in range(api_servers)])
        running = asyncio.create_task(pool.run(lambda rank: False))

        async def one() -> int:
            stream, finished, count = await pool.submit(50, 200, (), 0.0), False, 0
            while not finished:
                taken, finished = await stream.take()
                count += taken
            return count

        begun_s = asyncio.get_running_loop().time()
        counts = await asyncio.gather(*(one() for _ in range(128 * engines)))
        took_s = asyncio.get_running_loop().time() - begun_s
        pool.die()
        await running
        return sum(counts) / took_s

    rate = virtually(main)
    assert isinstance(rate, float)
    return rate


def test_one_api_server_before_four_engines_is_the_bottleneck() -> None:
    one, four = tokens_per_s(4, 1), tokens_per_s(4, 4)
    assert one < 1.05 / H100.frontend_s_per_token
    assert four > 1.8 * one


def test_every_other_server_and_engine_costs_its_share(serve: Serve, tmp_path: Path) -> None:
    clock_s = [0.0]
    neighbours = Neighbours(tmp_path / "gpu", 0.1, 1, lambda: clock_s[0])
    assert neighbours.factor() == pytest.approx(1 / 0.9)
    serve("--tensor-parallel-size", "2").ready()
    serve(env={"CUDA_VISIBLE_DEVICES": "4"}).ready()
    assert neighbours.factor() == pytest.approx(1 / 0.9)  # it looks now and then
    clock_s[0] = 10.0
    assert neighbours.factor() == pytest.approx(1 / 0.7)
