"""`serving` against servers that misbehave: what it says, and what it leaves (nothing)."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.support import (
    FAKE,
    MODEL,
    bystander,
    children_of_ours,
    eventually,
    fake_running,
    fake_serving,
    fake_spec,
    listens,
    runs,
)
from tuner.errors import EnvironmentFaultError, InterruptedSearchError
from tuner.launch import LaunchSpec
from tuner.placement import GpuGroup
from tuner.server import readiness, running_file, shutdown, start
from tuner.server.diagnosis import Fault
from tuner.server.gpu_memory import MemoryEnd, NoGpuMemory
from tuner.server.service import Deployment, ServerDidNotStart, start_limit

LOGS = Path(__file__).with_name("logs")


@pytest.fixture(autouse=True)
def _ctrl_c_raises() -> Iterator[None]:
    """A shell without job control starts its background processes with SIGINT ignored, and Python keeps that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def short_graces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deaf children of these tests never use the time that a real engine gets to leave."""
    monkeypatch.setattr(shutdown, "SETTLE_S", 0.3)
    monkeypatch.setattr(shutdown, "ORPHAN_GRACE_S", 0.3)


def test_a_ready_server_is_the_one_that_was_launched(tmp_path: Path) -> None:
    with fake_running(tmp_path) as server:
        assert server.base_url == f"http://127.0.0.1:{server.port}"
        assert server.model_name == "served"
        assert server.facts.max_model_len == 512
        assert server.alive() and server.died() is None
        words = Path(f"/proc/{server.pid}/cmdline").read_text().split("\0")[:-1]
        assert words == list(fake_spec().argv("127.0.0.1", server.port))
        assert os.getsid(server.pid) == server.pid != os.getsid(0)
        assert (tmp_path / running_file.FILE_NAME).exists()
    assert server.stopped is not None and server.stopped.is_clean
    assert not server.stopped.killed
    assert not runs(server.pid)
    assert not children_of_ours()
    assert [path.name for path in tmp_path.iterdir()] == ["server.log"]


@pytest.mark.parametrize(
    "fault", ["child", "deaf-child", "own-group-child", "own-session-child", "deep-grandchild", "ignore-term"]
)
def test_no_descendant_survives(tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "STOP_MARGIN_S", 1.0)
    note = tmp_path / "note"
    with fake_running(tmp_path, "--fault", fault, "--note", str(note)) as server:
        pids = [server.pid, *map(int, note.read_text().split())]
        assert all(map(runs, pids))
    assert not any(map(runs, pids))
    assert not children_of_ours()
    assert server.stopped is not None
    assert bool(server.stopped.killed) == (fault != "child")


def test_orphans_of_a_killed_leader_are_ended_and_reaped(tmp_path: Path) -> None:
    note = tmp_path / "note"
    words = ["--fault", "deaf-child", "--fault", "own-session-child", "--fault", "kill-self-late", "--note", str(note)]
    with fake_running(tmp_path, *words) as server:
        orphans = list(map(int, note.read_text().split()))
        assert eventually(lambda: not server.alive())
        cause = server.died()
        assert cause is not None and (cause.kind, cause.fault) == ("killed", Fault.ENVIRONMENT)
        assert all(map(runs, orphans))
    assert not any(map(runs, orphans))
    assert not children_of_ours()


def test_a_bystander_with_the_same_words_in_another_session_stays(tmp_path: Path) -> None:
    with bystander(str(FAKE), "serve", MODEL) as other:
        with fake_running(tmp_path, "--fault", "deaf-child"):
            pass
        assert runs(other)


def test_files_of_a_server_go_and_files_of_others_stay(tmp_path: Path) -> None:
    note = tmp_path / "note"
    others = Path("/dev/shm/psm_neighbour")
    with fake_running(tmp_path, "--fault", "shared-memory", "--note", str(note)) as server:
        name, in_scratch = note.read_text().split()
        others.touch()
        assert Path("/dev/shm", name).exists() and Path(in_scratch).exists()
    try:
        assert not Path("/dev/shm", name).exists() and not Path(in_scratch).parent.exists()
        assert server.stopped is not None and f"/dev/shm/{name}" in server.stopped.removed
        assert others.exists()
    finally:
        others.unlink()


def test_a_refusal_has_the_logs_cause_and_is_fast(tmp_path: Path) -> None:
    words = ["--log", str(LOGS / "0.32-kv-too-small.log"), "--exit", "1"]
    begun = time.monotonic()
    with pytest.raises(ServerDidNotStart) as refused, fake_running(tmp_path, *words):
        pytest.fail("was never ready")
    assert refused.value.cause.kind == "kv-too-small"
    assert refused.value.cause.bounds[0].limit == 10112
    assert refused.value.stopped.is_clean and refused.value.stopped.exit_code == 1
    assert refused.value.start_s <= time.monotonic() - begun < 5
    assert not (tmp_path / running_file.FILE_NAME).exists()


def test_a_command_that_does_not_exist_is_the_environments_fault(tmp_path: Path) -> None:
    spec = LaunchSpec((), ("/nowhere/vllm", "serve"), (MODEL,))
    with pytest.raises(ServerDidNotStart) as refused, fake_running(tmp_path, spec=spec):
        pytest.fail("was never ready")
    assert (refused.value.cause.kind, refused.value.cause.fault) == ("command-not-found", Fault.ENVIRONMENT)


def test_a_hanging_start_is_ended_at_its_limit(tmp_path: Path) -> None:
    with pytest.raises(ServerDidNotStart) as refused, fake_running(tmp_path, "--fault", "hang", start_limit_s=1.0):
        pytest.fail("was never ready")
    assert refused.value.cause.kind == "start-limit"
    assert not children_of_ours()


def test_another_listener_on_the_port_is_never_taken_for_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It even answers /health with 200, as an earlier server would."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    earlier = subprocess.Popen([*fake_spec().argv("127.0.0.1", port)])
    try:
        assert eventually(lambda: listens(port))
        monkeypatch.setattr(start, "fresh_port", lambda: port)
        with pytest.raises(ServerDidNotStart) as refused, fake_running(tmp_path, "--fault", "hang"):
            pytest.fail("was taken for ours")
        assert (refused.value.cause.kind, refused.value.cause.fault) == ("foreign-listener", Fault.ENVIRONMENT)
        assert earlier.poll() is None
    finally:
        earlier.kill()
        earlier.wait()


def test_an_interrupt_ends_the_wait_and_the_server(tmp_path: Path) -> None:
    with pytest.raises(InterruptedSearchError), fake_running(tmp_path, "--fault", "hang", should_stop=lambda: True):
        pytest.fail("was never ready")
    assert not children_of_ours()


def test_a_lost_engine_is_a_death_although_the_api_still_answers(tmp_path: Path) -> None:
    with fake_running(tmp_path, "--fault", "lose-engine-late") as server:
        assert eventually(lambda: "output_handler" in server.log_path.read_text())
        assert server.alive()
        cause = server.died()
        assert cause is not None and cause.kind == "engine-died"
        assert not server.alive()


@pytest.mark.parametrize(
    ("fault", "said", "kind"),
    [
        ("lose-child-silently-late", "died unexpectedly", "engine-died"),
        ("lose-child-late", "is gone", None),  # a helper that had done its work
        ("go-silent-late", "Busy", None),
    ],
)
def test_a_server_that_lost_a_child_and_falls_silent_has_died(
    tmp_path: Path, fault: str, said: str, kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "DEATH_LIMIT_S", 1.0)
    with fake_running(tmp_path, "--fault", fault) as server:
        assert eventually(lambda: said in server.log_path.read_text())
        assert server.alive()
        cause = server.died()
    assert (cause.kind if cause else None) == kind


def test_an_error_inside_the_block_ends_the_server_and_goes_on(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), fake_running(tmp_path) as server:
        _ = 1 // 0
    assert server.stopped is not None and not runs(server.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_tuner_ends_the_server(tmp_path: Path, number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt), fake_running(tmp_path) as server:
        signal.raise_signal(number)
        time.sleep(5)
    assert server.stopped is not None and not runs(server.pid)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_ctrl_c_does_not_cut_the_ending_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "STOP_MARGIN_S", 2.0)
    impatient = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), fake_running(tmp_path, "--fault", "ignore-term") as server:
        impatient.start()
    impatient.join()
    assert server.stopped is not None and not runs(server.pid)
    assert not (tmp_path / running_file.FILE_NAME).exists()


def test_two_servers_at_once_end_only_themselves(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with fake_running(tmp_path / "a") as first:
        with fake_running(tmp_path / "b", "--fault", "deaf-child") as second:
            assert first.port != second.port
        assert not runs(second.pid) and runs(first.pid)
        assert first.died() is None


def test_memory_that_does_not_come_back_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Leaking(NoGpuMemory):
        readings = iter([1 << 30])

        def used_bytes(self, gpus: tuple[int, ...]) -> dict[int, int] | None:
            return dict.fromkeys(gpus, next(self.readings, 9 << 30))

    monkeypatch.setattr("tuner.server.gpu_memory.LIMIT_S", 1.0)
    with fake_running(tmp_path, gpu_memory=Leaking(), group=GpuGroup(gpus=(0, 1))) as server:
        pass
    assert server.stopped is not None
    assert server.stopped.memory is MemoryEnd.LEFT and not server.stopped.is_clean


def test_a_driver_that_fails_while_a_server_runs_leaves_no_running_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(NoGpuMemory):
        readings = iter([1 << 30])

        def used_bytes(self, gpus: tuple[int, ...]) -> dict[int, int] | None:
            if (used := next(self.readings, None)) is None:
                raise EnvironmentFaultError("the NVIDIA driver fails: GPU is lost", hint="reset it")
            return dict.fromkeys(gpus, used)

    monkeypatch.setattr("tuner.server.gpu_memory.LIMIT_S", 1.0)
    with fake_running(tmp_path, gpu_memory=Failing(), group=GpuGroup(gpus=(0,))) as server:
        assert running_file.found_below(tmp_path)
    assert server.stopped is not None
    assert server.stopped.memory is MemoryEnd.UNREADABLE and not server.stopped.is_clean
    assert not running_file.found_below(tmp_path)


def test_secrets_of_the_environment_do_not_stay_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SECRET", "correct-horse-battery")
    printed = tmp_path / "printed"
    printed.write_text("token is correct-horse-battery")
    base = fake_spec("--log", str(printed))
    spec = LaunchSpec(base.prefix, base.command, base.arguments, secret_env=("MY_SECRET",))
    with fake_running(tmp_path, spec=spec) as server:
        pass
    assert server.log_path.read_text() == "token is [redacted]\n"


def test_a_container_is_ended_by_its_id_when_its_client_is_not_enough(tmp_path: Path) -> None:
    """A stand-in for docker: `run` leaves a container behind as a process outside the client's session and output."""
    engine = tmp_path / "docker"
    engine.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = kill ]; then kill -9 "$2"; exit; fi\n'
        "cid=$3; shift 3\n"
        'setsid "$@" >/dev/null 2>&1 &\n'
        'echo $! > "$cid"\n'
        'trap "exit 0" TERM\n'
        "while :; do sleep 0.1; done\n"
    )
    engine.chmod(0o755)
    spec = LaunchSpec((), (str(engine), "run", sys.executable, str(FAKE), "serve"), (MODEL,))
    with fake_running(tmp_path, spec=spec) as server:
        assert server.model_name == "served"
    assert server.stopped is not None
    assert eventually(lambda: not listens(server.port))


def test_a_server_that_answers_slowly_gets_ready(tmp_path: Path) -> None:
    with fake_running(tmp_path, "--fault", "slow") as server:
        assert server.model_name == "served"


@pytest.mark.parametrize(
    ("words", "kind", "hint"),
    [
        (("--fault", "key"), "obstructed-key", "VLLM_API_KEY"),
        (("--certificate", "CERTIFICATE"), "obstructed-encrypted", "certificate"),
        (("--fault", "no-health", "--log", "READY"), "obstructed-other-pages", "--vllm"),
        (("--fault", "hang", "--log", "READY"), "obstructed-no-listener", "socket file"),
    ],
)
def test_a_server_that_can_never_be_ready_is_named_long_before_the_limit(
    words: tuple[str, ...], kind: str, hint: str, tmp_path: Path, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "GRACE_S", 1.0)
    ready = tmp_path / "ready"
    ready.write_text("INFO:     Application startup complete.")
    files = {"READY": str(ready), "CERTIFICATE": str(certificate)}
    with (
        pytest.raises(ServerDidNotStart) as refused,
        fake_running(tmp_path, *(files.get(word, word) for word in words), start_limit_s=120),
    ):
        pytest.fail("was ready")
    cause = refused.value.cause
    assert (cause.kind, cause.fault) == (kind, Fault.STUDY)
    assert hint in cause.hint
    assert refused.value.start_s < 60


def test_the_start_limit_learns_from_the_first_start() -> None:
    assert start_limit(None, 600) == 600
    assert start_limit(25.0, 600) == 135
    assert start_limit(580.0, 600) == 1800
    assert start_limit(25.0, 600, servers=2) == 600


def two(*words: str) -> Deployment:
    """A good server, and one with these words."""
    return Deployment((fake_spec(), fake_spec(*words)))


def test_several_servers_start_at_once_and_leave_nothing(tmp_path: Path) -> None:
    with fake_serving(tmp_path, two("--fault", "deaf-child")) as service:
        first, second = service.servers
        assert service.base_url == first.base_url != second.base_url
        assert service.pids == (first.pid, second.pid)
        assert [facts.max_model_len for facts in service.facts] == [512, 512]
        assert service.start_s >= max(first.start_s, second.start_s) - 0.01
        markers = [running_file.read(path) for path in running_file.found_below(tmp_path)]
        assert {(m.replica, m.pid, m.port) for m in markers} == {
            (0, first.pid, first.port),
            (1, second.pid, second.port),
        }
        assert service.died() is None
    assert service.stopped is not None and service.stopped.is_clean and len(service.stopped.killed) == 1
    assert not any(map(runs, service.pids)) and not children_of_ours()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["server-1.log", "server.log"]


@pytest.mark.parametrize(("words", "kind"), [(("--exit", "3"), "ended"), (("--fault", "kill-self-late"), "killed")])
def test_one_refused_server_ends_the_others(tmp_path: Path, words: tuple[str, ...], kind: str) -> None:
    """One of the three never gets ready, so that a late death still falls into the start."""
    deployment = Deployment((*two(*words).specs, fake_spec("--fault", "hang")))
    with pytest.raises(ServerDidNotStart) as refused, fake_serving(tmp_path, deployment):
        pytest.fail("was never ready")
    assert refused.value.cause.kind == kind
    assert refused.value.stopped.is_clean and not children_of_ours()
    assert not running_file.found_below(tmp_path)


def test_a_server_that_cannot_be_forked_ends_those_before_it(tmp_path: Path) -> None:
    (tmp_path / "server-1.log").mkdir()
    with pytest.raises(EnvironmentFaultError), fake_serving(tmp_path, two()):
        pytest.fail("was started")
    assert not children_of_ours() and not running_file.found_below(tmp_path)


def test_the_death_of_any_server_is_a_death_of_the_service(tmp_path: Path) -> None:
    with fake_serving(tmp_path, two("--fault", "exit-0-late")) as service:
        assert eventually(lambda: not service.servers[1].alive())
        cause = service.died()
        assert service.servers[0].alive()
    assert cause is not None and (cause.kind, cause.fault) == ("ended", Fault.UNKNOWN)
    assert not children_of_ours()
