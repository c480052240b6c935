"""nginx in front of several servers: really run, where nginx is installed."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.server.fake_server import CHUNKS, PAUSE_S
from tests.server.support import children_of_ours, eventually, fake_serving, fake_spec, listens, runs, session
from tuner.errors import EnvironmentFaultError
from tuner.launch import Deployment, Door
from tuner.server import door, leftovers, proctable, running_file, shutdown
from tuner.server.diagnosis import Fault
from tuner.server.leftovers import end_leftovers
from tuner.server.service import ServerDidNotStart, Service

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(door.nginx_program() is None, reason="no nginx here")


@pytest.fixture(autouse=True)
def short_graces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "SETTLE_S", 0.3)
    monkeypatch.setattr(shutdown, "ORPHAN_GRACE_S", 0.3)
    monkeypatch.setattr(leftovers, "LEFTOVER_GRACE_S", 2.0)


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test did: no child, no running file and no temporary file is there afterwards."""
    temporary = Path(tempfile.mkdtemp(prefix="door-"))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield
    assert not children_of_ours()
    assert not running_file.found_below(tmp_path)
    temporary.rmdir()


def behind_nginx(*words: tuple[str, ...]) -> Deployment:
    """One fake server for each tuple of words."""
    return Deployment(tuple(fake_spec(*given) for given in words), Door.NGINX)


def two(folder: Path) -> AbstractContextManager[Service]:
    return fake_serving(folder, behind_nginx((), ()))


class Stream(NamedTuple):
    """Port of the server that answered, its lines, and the seconds until the first and the last one. `whole` is false
    if the stream broke."""

    port: int
    lines: int
    first_s: float
    last_s: float
    whole: bool


def stream(base_url: str, body: bytes = b"{}") -> Stream:
    address = httpx.URL(base_url)
    connection = http.client.HTTPConnection(address.host, address.port, timeout=60)
    began = time.monotonic()
    try:
        connection.request("POST", "/v1/chat/completions", body=body, headers={"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.status == 200, response.read()
        first, first_s, lines, whole = b"", 0.0, 1, True
        try:
            first, first_s = response.readline(), time.monotonic() - began
            while line := response.readline():
                lines += line.startswith(b"data:")
        except (http.client.IncompleteRead, ConnectionError):
            whole = False
        server = int(first.split()[1]) if first else -1  # nginx may die between the head and the first chunk
        return Stream(server, lines, first_s, time.monotonic() - began, whole and lines == CHUNKS)
    finally:
        connection.close()


def streams_of(base_url: str) -> tuple[int, int]:
    """How many streams a server began, and how many clients left theirs."""
    begun, lost = httpx.get(f"{base_url}/streams", trust_env=False).json()
    return begun, lost


def test_the_door_leads_to_every_server_and_streams_unbuffered(tmp_path: Path) -> None:
    with two(tmp_path) as service, ThreadPoolExecutor(8) as pool:
        ports = [server.port for server in service.servers]
        assert service.base_url not in [server.base_url for server in service.servers]
        assert service.died() is None and service.alive()
        assert len(service.pids) == 3 and len(session(service.pids[-1])) >= 2
        answers = list(pool.map(lambda _: stream(service.base_url), range(8)))
        assert Counter(answer.port for answer in answers) == dict.fromkeys(ports, 4)
        assert all(answer.whole for answer in answers)
        # A buffered stream comes in one piece at its end.
        assert all(answer.last_s - answer.first_s > PAUSE_S * (CHUNKS - 2) for answer in answers)
        assert stream(service.base_url, b"x" * 2**20).whole, "a long prompt passes"
        door_port = httpx.URL(service.base_url).port
        assert door_port is not None
        all_ports, pids = [*ports, door_port], [*service.pids, *(p.pid for p in session(service.pids[-1]))]
    assert not any(map(runs, pids)) and not any(map(listens, all_ports))
    assert service.stopped is not None and service.stopped.is_clean and not service.stopped.killed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["door.log", "server-1.log", "server.log"]


def test_a_client_that_leaves_ends_its_stream_at_the_server(tmp_path: Path) -> None:
    with two(tmp_path) as service:
        address = httpx.URL(service.base_url)
        with socket.create_connection((address.host, address.port or 80)) as client:
            client.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        assert eventually(lambda: sum(streams_of(server.base_url)[1] for server in service.servers) == 1)


def under_load(service: Service, strike: Callable[[], None]) -> list[Stream]:
    """Strike when four streams run. Returns the streams that got an answer at all."""
    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(stream, service.base_url) for _ in range(4)]
        assert eventually(lambda: sum(streams_of(server.base_url)[0] for server in service.servers) == 4)
        strike()
        return [one.result() for one in running]


def test_a_replica_killed_under_load_is_the_one_cause_and_no_request_is_repeated(tmp_path: Path) -> None:
    with two(tmp_path) as service:
        first, second = service.servers
        answers = under_load(service, lambda: os.kill(second.pid, signal.SIGKILL))
        assert {(a.port, a.whole) for a in answers} == {(first.port, True), (second.port, False)}
        assert streams_of(first.base_url)[0] == 2, "a stream that had begun went to the other server again"
        assert not service.alive() and first.died() is None
        cause = service.died()
    assert cause is not None and (cause.kind, cause.fault) == ("killed", Fault.ENVIRONMENT)
    assert not any(map(runs, service.pids))


@pytest.mark.parametrize("killed", ["master", "all of it"])
def test_a_killed_nginx_is_named_as_the_cause(tmp_path: Path, killed: str) -> None:
    with two(tmp_path) as service:
        struck = session(service.pids[-1])

        def strike() -> None:
            for process in struck:
                if killed == "all of it" or process.pid == service.pids[-1]:
                    os.kill(process.pid, signal.SIGKILL)

        under_load(service, strike)
        assert eventually(lambda: not service.alive())
        assert all(server.alive() and server.died() is None for server in service.servers)
        cause = service.died()
    assert cause is not None and (cause.kind, cause.fault) == ("door-died", Fault.ENVIRONMENT)
    assert cause.explanation == "The door (nginx) died: it was ended by SIGKILL."
    assert not any(runs(process.pid) for process in struck)


def test_one_refused_server_ends_the_others_and_the_door(tmp_path: Path) -> None:
    deployment = behind_nginx((), ("--exit", "3"), ("--fault", "hang"))
    with pytest.raises(ServerDidNotStart) as refused, fake_serving(tmp_path, deployment):
        pytest.fail("was never ready")
    assert refused.value.cause.kind == "ended" and refused.value.stopped.is_clean


def test_without_nginx_no_server_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(door, "_USUAL_FOLDERS", ())
    with pytest.raises(EnvironmentFaultError, match="not installed") as refused, two(tmp_path):
        pytest.fail("was started")
    assert refused.value.exit_code == 4 and "nginx-light" in (refused.value.hint or "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("second", [(), ("--fault", "hang")], ids=["seen when the servers are ready", "nginx gave up"])
def test_a_door_whose_port_another_process_took_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: tuple[str, ...]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(door, "fresh_port", lambda: port)
        with pytest.raises(ServerDidNotStart) as refused, fake_serving(tmp_path, behind_nginx((), second)):
            pytest.fail("was taken for ours")
    assert (refused.value.cause.kind, refused.value.cause.fault) == ("foreign-listener", Fault.ENVIRONMENT)
    assert str(port) in refused.value.cause.explanation


def test_an_nginx_that_refuses_its_configuration_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "whole_conf", lambda site, open_files: f"{site}no_such_directive;")
    with pytest.raises(ServerDidNotStart) as refused, fake_serving(tmp_path, behind_nginx((), ("--fault", "hang"))):
        pytest.fail("was never ready")
    assert (refused.value.cause.kind, refused.value.cause.fault) == ("door-refused", Fault.ENVIRONMENT)
    assert "[emerg]" in refused.value.cause.line


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_several_start_ends_them_all(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    striker = threading.Timer(0.7, lambda: os.kill(os.getpid(), number))
    striker.start()
    try:
        with pytest.raises(KeyboardInterrupt), fake_serving(tmp_path, behind_nginx((), ("--fault", "hang"))):
            pytest.fail("was never ready")
    finally:
        striker.join()
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("gone", ["nobody", "nginx's master", "a server's leader"])
def test_the_next_tuner_ends_servers_and_nginx_of_a_killed_one(tmp_path: Path, gone: str) -> None:
    command = [sys.executable, "-m", "tests.server.tuner_to_kill", str(tmp_path), "--behind-nginx"]
    command += ["--fault", "deaf-child"]
    with ExitStack() as stack:
        tuner = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert tuner.stdout is not None
        stack.enter_context(tuner.stdout)
        leaders = list(map(int, tuner.stdout.readline().split()))
        tuner.kill()
        tuner.wait()
        assert len(leaders) == 3
        family = [p.pid for p in proctable.table().values() if p.session in leaders]
        if gone != "nobody":
            os.kill(leaders[-1 if "nginx" in gone else 0], signal.SIGKILL)
        assert len(end_leftovers(tmp_path)) == 3
        assert not any(map(runs, family))
        for orphan in children_of_ours():  # an earlier test made this process adopt orphans
            os.waitpid(orphan.pid, 0)
    assert end_leftovers(tmp_path) == []
