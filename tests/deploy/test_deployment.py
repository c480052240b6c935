"""start.sh and stop.sh of several servers: the stand-in for vLLM behind a real nginx, and what goes wrong there."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from tests.deploy.conftest import on_the_machine
from tests.deploy.ports import neighbouring_ports
from tests.server.support import listens, runs
from tuner.deploy.recorded import Recorded
from tuner.deploy.start import write_pair
from tuner.launch import Door
from tuner.placement import GpuGroup

pytestmark = pytest.mark.skipif(
    shutil.which("nginx") is None and not Path("/usr/sbin/nginx").exists(), reason="no nginx here"
)
CORES = (GpuGroup(workers=(0,), cores=("0",)), GpuGroup(workers=(1,), cores=("1",)))

SIM = (sys.executable, "-m", "tuner.sim", "serve")
GPUS = (GpuGroup((0,)), GpuGroup((1,)))


@dataclass(frozen=True)
class Scripts:
    """The two scripts in a folder of their own, the door's port, and the variables that they are run with."""

    folder: Path
    port: int
    env: Mapping[str, str]

    def run(self, name: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.folder / name, *words], env={**self.env, **env}, capture_output=True, text=True, timeout=90
        )

    def begin(self, name: str, *words: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.folder / name, *words],
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def state(self) -> Path:
        return self.folder / f"deployment-{self.port}"

    def noted(self, name: str) -> psutil.Process:
        """The process that start.sh noted, as soon as it has."""
        path = self.state / f"{name}.pid"
        for _ in range(200):
            if path.exists() and path.read_text().count("\n") == 5:
                return psutil.Process(int(path.read_text().split()[0]))
            time.sleep(0.05)
        raise AssertionError(f"no {name}")

    def family(self) -> list[int]:
        """All processes of the servers and the door."""
        leaders = [self.noted(name) for name in ("door", "server-1", "server-2")]
        return [one.pid for leader in leaders for one in (leader, *leader.children(recursive=True))]

    def nothing_is_left(self) -> bool:
        """No process has one of the ports or the folder in its command, and no port answers."""
        ports = [str(self.port + i) for i in range(3)]
        for process in psutil.process_iter(["cmdline", "status"]):
            words = process.info["cmdline"] or []
            mine = {*ports, f"{self.state}/nginx/"} & set(words)
            if mine and process.info["status"] != psutil.STATUS_ZOMBIE:
                return False
        return not any(listens(self.port + i) for i in range(3)) and not list(self.state.glob("*.pid"))


def machine_of(
    recorded: Recorded, command: tuple[str, ...], groups: tuple[GpuGroup, ...], door: Door = Door.NGINX
) -> Recorded:
    """Two servers on this machine."""
    base = dataclasses.replace(recorded.plan.base, command=command, secret_env=(), env=(), extra=())
    plan = dataclasses.replace(recorded.plan, base=base)
    return on_the_machine(dataclasses.replace(recorded, plan=plan), door, groups)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A path with all that an unquoted word would break at."""
    folder = tmp_path / "my study's ü 模型 $x"
    folder.mkdir()
    return folder


@pytest.fixture
def scripts(recorded: Recorded, folder: Path, vllm_on_path: Path) -> Iterator[Scripts]:
    """Two servers of the program in stand_in.py."""
    write_pair(folder, machine_of(recorded, ("vllm", "serve"), CORES))
    port = neighbouring_ports(3)
    made = Scripts(folder, port, {**os.environ, "PORT": str(port)})
    yield made
    made.run("stop.sh", STOP_TIMEOUT="1")


@pytest.fixture
def simulated(recorded: Recorded, folder: Path, tmp_path: Path) -> Iterator[Scripts]:
    """Two servers of tuner.sim. Each takes most of its GPU's memory, so that both do not start on one."""
    yield from simulation(recorded, folder, tmp_path, Door.NGINX)


@pytest.fixture
def engines_of_one_vllm(recorded: Recorded, folder: Path, tmp_path: Path) -> Iterator[Scripts]:
    """One tuner.sim with an engine on each GPU, behind its own door."""
    yield from simulation(recorded, folder, tmp_path, Door.VLLM)


def simulation(recorded: Recorded, folder: Path, tmp_path: Path, door: Door) -> Iterator[Scripts]:
    """The scripts of a stand-in that has two GPUs and is quick."""
    write_pair(folder, machine_of(recorded, SIM, GPUS, door))
    port = neighbouring_ports(3)
    env = {
        "PORT": str(port),
        "TUNER_SIM_SPEED": "1000",
        "TUNER_SIM_GPUS": "2",
        "TUNER_SIM_GPU_DIR": str(tmp_path / "gpu"),
        "VLLM_CACHE_ROOT": str(tmp_path / "cache"),
    }
    made = Scripts(folder, port, {**os.environ, **env})
    yield made
    made.run("stop.sh", STOP_TIMEOUT="1")


def chat(port: int, tokens: int) -> list[str]:
    """The lines with data of one streamed answer."""
    messages = [{"role": "user", "content": "hello"}]
    body = {"messages": messages, "max_tokens": tokens, "ignore_eos": True, "stream": True}
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/chat/completions", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    return [line for line in answer.text.splitlines() if line.startswith("data: ")]


def served(port: int) -> float:
    """The requests that a server has answered."""
    lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("vllm:request_success_total"))


def test_two_servers_answer_through_the_door_and_stop_leaves_nothing(simulated: Scripts) -> None:
    started = simulated.run("start.sh")
    assert started.returncode == 0, started.stderr
    assert f"http://127.0.0.1:{simulated.port}/v1 (2 servers behind nginx)" in started.stdout
    for _ in range(6):
        lines = chat(simulated.port, 8)
        assert lines[-1] == "data: [DONE]"
        assert sum('"content"' in line and "delta" in line for line in lines) >= 8
    assert served(simulated.port + 1) + served(simulated.port + 2) == 6
    assert min(served(simulated.port + 1), served(simulated.port + 2)) > 0
    family = simulated.family()
    assert len(family) >= 6  # a master and its workers, two servers with an engine each
    stopped = simulated.run("stop.sh")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "processes: none left; ports: free" in stopped.stdout
    assert not any(map(runs, family))
    assert simulated.nothing_is_left()


def test_vllms_own_door_starts_answers_and_leaves_nothing(engines_of_one_vllm: Scripts) -> None:
    scripts = engines_of_one_vllm
    started = scripts.run("start.sh")
    assert started.returncode == 0, started.stderr
    assert all(chat(scripts.port, 8)[-1] == "data: [DONE]" for _ in range(6))
    metrics = httpx.get(f"http://127.0.0.1:{scripts.port}/metrics").text
    answered = r'vllm:request_success_total{{engine="{}",finished_reason="length".*}} ([1-9])'
    assert all(re.search(answered.format(engine), metrics) for engine in (0, 1))
    stopped = scripts.run("stop.sh")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "processes: none left" in stopped.stdout
    assert scripts.nothing_is_left()


def test_every_server_has_its_own_cores_port_log_and_session_and_is_started_and_stopped_once(scripts: Scripts) -> None:
    assert scripts.run("start.sh").returncode == 0
    servers = [scripts.noted(f"server-{number}") for number in (1, 2)]
    assert [server.environ()["VLLM_CPU_OMP_THREADS_BIND"] for server in servers] == ["0", "1"]
    assert [server.cmdline()[-1] for server in servers] == [str(scripts.port + 1), str(scripts.port + 2)]
    everyone = [*servers, scripts.noted("door")]
    assert [os.getsid(one.pid) for one in everyone] == [one.pid for one in everyone]
    for number in (1, 2):
        assert "Starting vLLM server" in (scripts.state / f"server-{number}.log").read_text()
    again = scripts.run("start.sh")
    assert again.returncode == 1
    assert "already running" in again.stderr
    assert scripts.run("stop.sh").returncode == 0
    second = scripts.run("stop.sh")
    assert (second.returncode, second.stdout.startswith("not running")) == (0, True)
    assert scripts.run("start.sh").returncode == 0


def test_a_start_beside_leftovers_is_refused(scripts: Scripts) -> None:
    assert scripts.run("start.sh", STAND_IN="orphan").returncode == 0
    for name in ("door", "server-1", "server-2"):
        scripts.noted(name).kill()
    again = scripts.run("start.sh")
    assert again.returncode == 1
    assert "already running: " in again.stderr
    assert scripts.run("stop.sh", STOP_TIMEOUT="1").returncode == 0
    assert scripts.nothing_is_left()


@pytest.mark.parametrize("taken", [0, 1, 2], ids=["the door's", "the first server's", "the second server's"])
def test_a_taken_port_is_refused_before_anything_starts(scripts: Scripts, taken: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", scripts.port + taken))
        other.listen()
        refused = scripts.run("start.sh")
    assert refused.returncode == 1
    assert f"port {scripts.port + taken} is taken" in refused.stderr
    assert not list(scripts.state.glob("*.log"))


def test_a_server_that_dies_during_the_start_ends_the_others(scripts: Scripts) -> None:
    with scripts.begin("start.sh", STAND_IN="slow") as start:
        first, second = scripts.noted("server-1"), scripts.noted("server-2")
        first.kill()
        said = start.communicate(timeout=40)[1]
    assert start.returncode == 1
    assert "server-1 ended after" in said
    assert not runs(second.pid)
    assert scripts.nothing_is_left()


def test_servers_that_never_answer_are_ended_after_the_limit(scripts: Scripts) -> None:
    slow = scripts.run("start.sh", STAND_IN="slow", START_TIMEOUT="1")
    assert slow.returncode == 1
    assert "no answer from server-1 after 1 s" in slow.stderr
    assert scripts.nothing_is_left()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_start_ends_what_it_started(scripts: Scripts, sent: signal.Signals) -> None:
    with scripts.begin("start.sh", STAND_IN="slow") as start:
        scripts.noted("server-2")
        while start.poll() is None:  # an impatient user
            start.send_signal(sent)
            time.sleep(0.3)
        said = start.communicate(timeout=40)[1]
    assert (start.returncode, "interrupted: all servers were ended again" in said) == (1, True)
    assert scripts.nothing_is_left()


@pytest.mark.parametrize("manner", ["stubborn", "odd"])
def test_stop_kills_what_ignores_term(scripts: Scripts, manner: str) -> None:
    assert scripts.run("start.sh", STAND_IN=manner).returncode == 0
    family = scripts.family()
    began = time.monotonic()
    stopped = scripts.run("stop.sh", STOP_TIMEOUT="2")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert time.monotonic() - began < 8  # side by side
    assert not any(map(runs, family))


def test_stop_ends_the_servers_when_the_door_is_dead(scripts: Scripts) -> None:
    assert scripts.run("start.sh").returncode == 0
    family = scripts.family()
    scripts.noted("door").kill()
    stopped = scripts.run("stop.sh")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert not any(map(runs, family))


def test_in_front_term_ends_all(scripts: Scripts) -> None:
    with scripts.begin("start.sh", "--foreground") as start:
        assert start.stdout is not None
        assert "ready after" in start.stdout.readline()
        family = scripts.family()
        start.terminate()
        start.communicate(timeout=40)
    assert start.returncode == 0
    assert not any(map(runs, family))
    assert scripts.nothing_is_left()


def test_in_front_a_server_that_dies_ends_all(scripts: Scripts) -> None:
    with scripts.begin("start.sh", "--foreground") as start:
        assert start.stdout is not None
        assert "ready after" in start.stdout.readline()
        second = scripts.noted("server-2")
        for one in (*second.children(recursive=True), second):
            one.kill()
        said = start.communicate(timeout=40)[1]
    assert (start.returncode, "server-2 ended after" in said) == (1, True)
    assert scripts.nothing_is_left()


def test_a_door_that_does_not_open_ends_the_servers(scripts: Scripts) -> None:
    text = (scripts.folder / "start.sh").read_text()
    (scripts.folder / "start.sh").write_text(text.replace("least_conn;", "least_con;"))
    refused = scripts.run("start.sh")
    assert refused.returncode == 1
    assert 'unknown directive "least_con"' in refused.stderr
    assert scripts.nothing_is_left()


def test_without_nginx_nothing_starts(scripts: Scripts, tmp_path: Path, vllm_on_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("bash", "env", "dirname", "mkdir", "setsid", "flock"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    text = (scripts.folder / "start.sh").read_text()
    (scripts.folder / "start.sh").write_text(text.replace(":/usr/local/sbin:/usr/sbin:/sbin", ""))
    refused = scripts.run("start.sh", PATH=f"{vllm_on_path.parent}:{programs}")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: nginx is not installed\nhint: ")
    assert not scripts.state.exists()


def test_the_door_is_at_the_address_that_was_asked_for(scripts: Scripts) -> None:
    base = neighbouring_ports(2)
    started = scripts.run("start.sh", HOST="0.0.0.0", BASE_PORT=str(base))
    assert started.returncode == 0, started.stderr
    assert "can be reached from other machines" in started.stderr
    doors = {(c.laddr.ip, c.laddr.port) for c in scripts.noted("door").net_connections() if c.status == "LISTEN"}
    assert doors == {("0.0.0.0", scripts.port)}
    assert listens(base) and listens(base + 1)
    assert scripts.run("stop.sh").returncode == 0
    assert not listens(base) and not listens(base + 1)


def test_containers_are_stopped_by_their_ids(recorded: Recorded, tmp_path: Path, vllm_on_path: Path) -> None:
    port = neighbouring_ports(3)
    scripts = Scripts(tmp_path, port, {**os.environ, "PORT": str(port)})
    docker = vllm_on_path.with_name("docker")
    docker.write_text(
        f"""#!/bin/bash
echo "$1 ${{*: -1}}" >>{tmp_path}/docker.log
case "$1" in
  run) basename "$3" .container >"$3"; shift 3; exec {vllm_on_path} "$@" ;;
  stop) kill -TERM "$(head -n 1 {scripts.state}/"$4".pid)" ;;
esac
"""
    )
    docker.chmod(0o755)
    write_pair(tmp_path, machine_of(recorded, ("docker", "run", "vllm/vllm-openai:v0.32.0"), CORES))
    try:
        started = scripts.run("start.sh")
        assert started.returncode == 0, started.stderr
        family = scripts.family()
    finally:
        stopped = scripts.run("stop.sh")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    said = (tmp_path / "docker.log").read_text().splitlines()
    assert sorted(said[2:]) == ["stop server-1", "stop server-2"]
    assert not any(map(runs, family))
    assert not list(scripts.state.glob("*.container"))


def test_an_open_request_is_answered_to_its_end_while_all_is_stopped(simulated: Scripts) -> None:
    assert simulated.run("start.sh", TUNER_SIM_SPEED="12").returncode == 0
    body = {"model": "Qwen/Qwen3-32B", "prompt": "a", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with httpx.stream("POST", f"http://127.0.0.1:{simulated.port}/v1/completions", json=body, timeout=60) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        stop = simulated.begin("stop.sh")
        rest, is_closed, after = [], False, 0
        for line in filter(None, lines):
            rest.append(line)
            after += is_closed
            is_closed = is_closed or not listens(simulated.port)
    assert json.loads(first.removeprefix("data: "))["object"] == "text_completion"
    assert rest[-1] == "data: [DONE]"
    assert after > 1, "the door closed too late to tell"
    said = stop.communicate(timeout=60)[0]
    assert (stop.returncode, "processes: none left; ports: free" in said) == (0, True)
