"""Additions of a start to the launch: port, environment, container id file; and what it reads from it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.server.support import fake_running, fake_spec
from tuner.errors import EnvironmentFaultError
from tuner.launch import LaunchSpec
from tuner.server import process, running_file
from tuner.server.containers import with_cid_file
from tuner.server.ports import fresh_port
from tuner.server.start import _environment


def test_ports_are_fresh_free_and_outside_the_range_of_outgoing_connections() -> None:
    first_ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports = [fresh_port() for _ in range(50)]
    assert len(set(ports)) == 50
    assert all(port < first_ephemeral for port in ports)
    with socket.create_server(("127.0.0.1", ports[0])):
        pass


def test_temporary_files_get_a_folder_of_their_own_and_compile_caches_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/somewhere")
    scratch = Path("/tmp/tuner-01234567")
    env = _environment(fake_spec(env=(("A", "1"),)), scratch)
    assert env["TMPDIR"] == env["VLLM_RPC_BASE_PATH"] == str(scratch)
    assert env["TORCHINDUCTOR_CACHE_DIR"] != str(scratch)
    assert "PROMETHEUS_MULTIPROC_DIR" not in env
    assert env["A"] == "1"


def test_the_launchs_own_environment_has_the_last_word() -> None:
    assert _environment(fake_spec(env=(("TMPDIR", "/mine"),)), Path("/tmp/tuner-01234567"))["TMPDIR"] == "/mine"


@pytest.mark.parametrize(
    ("given", "level"), [("ERROR", "INFO"), ("critical", "INFO"), ("", "INFO"), (None, "INFO"), ("debug", "DEBUG")]
)
def test_a_server_says_what_it_is_whatever_the_users_own_log_level(
    given: str | None, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CONFIGURE_LOGGING", "0")
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", "/mine.json")
    if given is not None:
        monkeypatch.setenv("VLLM_LOGGING_LEVEL", given)
    env = _environment(fake_spec(), Path("/tmp/tuner-01234567"))
    assert {name: env[name] for name in env if "LOGGING" in name} == {"VLLM_LOGGING_LEVEL": level}


def test_a_container_gets_an_id_file_unless_the_launch_names_one() -> None:
    folder = Path("/tmp/tuner-01234567")
    assert with_cid_file(("docker", "run", "--rm", "image"), folder) == (
        *("docker", "run", "--cidfile", "/tmp/tuner-01234567/cid"),
        *("--rm", "image"),
    )
    named = ("docker", "run", "--cidfile=/mine", "image")
    assert with_cid_file(named, folder) == named


def test_the_record_is_on_disk_before_the_server_runs(tmp_path: Path) -> None:
    """The server itself looks: its first act is to copy the record."""
    script = f"cp {tmp_path}/{running_file.FILE_NAME} {tmp_path}/seen; exit 3"
    spec = LaunchSpec((), ("/bin/sh", "-c", script), ())
    with pytest.raises(Exception, match="exit code 3"), fake_running(tmp_path, spec=spec):
        pytest.fail("was never ready")
    assert running_file.read(tmp_path / "seen").session == running_file.read(tmp_path / "seen").pid


def test_a_record_that_cannot_be_written_stops_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(_folder: Path, _marker: running_file.Marker) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(running_file, "write", full_disk)
    started = tmp_path / "started"
    spec = LaunchSpec((), ("/bin/sh", "-c", f"touch {started}; sleep 600"), ())
    with pytest.raises(EnvironmentFaultError, match="No space left"), fake_running(tmp_path, spec=spec):
        pytest.fail("was started")
    assert not started.exists()


def test_the_gate_leaves_nothing_of_itself_in_the_process(tmp_path: Path) -> None:
    with fake_running(tmp_path) as server:
        assert Path(f"/proc/{server.pid}/fd/0").readlink() == Path("/dev/null")
        assert "read -r go" not in Path(f"/proc/{server.pid}/cmdline").read_text()
    assert process._GATE.startswith("read -r go")
