"""A tuner that was killed: the next one ends exactly what it left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.server.support import FAKE, MODEL, as_nobody, bystander, entry, eventually, record_of, runs
from tuner.errors import EnvironmentFaultError
from tuner.server import leftovers, proctable, running_file, shutdown
from tuner.server.abandoned import abandoned
from tuner.server.leftovers import end_leftovers

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def short_graces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "SETTLE_S", 0.3)
    monkeypatch.setattr(shutdown, "ORPHAN_GRACE_S", 0.3)
    monkeypatch.setattr(leftovers, "LEFTOVER_GRACE_S", 1.0)


@contextmanager
def killed_tuner(folder: Path, *words: str) -> Iterator[int]:
    """A tuner that was killed with SIGKILL while its server served. Yields the server's pid."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "tests.server.tuner_to_kill", str(folder), *words]
    tuner = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert tuner.stdout is not None
    with tuner.stdout:
        pid = int(tuner.stdout.readline())
        tuner.kill()
        tuner.wait()
    try:
        yield pid
    finally:
        if runs(pid):
            os.kill(pid, signal.SIGKILL)


def folder_of(study: Path) -> Path:
    return study / "trials" / "0003"


def test_the_server_of_a_killed_tuner_and_its_files_are_ended(tmp_path: Path) -> None:
    folder, note = folder_of(tmp_path), tmp_path / "note"
    words = ["--fault", "deaf-child", "--fault", "own-session-child", "--fault", "shared-memory", "--note", str(note)]
    with bystander(str(FAKE), "serve", MODEL) as other, killed_tuner(folder, *words) as server:
        *children, segment, socket_file = note.read_text().split()
        family = [server, *map(int, children)]
        assert all(map(runs, family))
        (report,) = end_leftovers(tmp_path)
        assert not any(map(runs, family))
        assert runs(other)
    assert report.is_clean and len(report.killed) == 2
    assert report.removed == (f"/dev/shm/{segment}", socket_file)
    assert not Path(socket_file).parent.exists()
    assert not (folder / running_file.FILE_NAME).exists()
    assert end_leftovers(tmp_path) == []


def test_children_are_found_when_their_leader_is_gone(tmp_path: Path) -> None:
    note = tmp_path / "note"
    words = ["--fault", "deaf-child", "--fault", "own-group-child", "--fault", "own-session-child"]
    with killed_tuner(folder_of(tmp_path), *words, "--note", str(note)) as server:
        children = list(map(int, note.read_text().split()))
        os.kill(server, signal.SIGKILL)
        assert eventually(lambda: not runs(server))
        assert all(map(runs, children))
        (report,) = end_leftovers(tmp_path)
    assert not any(map(runs, children))
    assert len(report.killed) == 3 and report.is_clean


def test_a_tuner_killed_before_its_record_leaves_no_server(tmp_path: Path) -> None:
    note = tmp_path / "note"
    command = [sys.executable, "-m", "tests.server.tuner_to_kill", str(tmp_path), "--in-record", "--note", str(note)]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    log = proctable.file_id(tmp_path / "server.log")
    assert eventually(lambda: not any(proctable.writes_to(pid, log) for pid in proctable.table()))
    assert not note.exists(), "the server has run"


def test_a_reused_pid_is_not_trusted(tmp_path: Path) -> None:
    with bystander() as other:
        process = entry(other)
        running_file.write(tmp_path, record_of(process, start_ticks=process.start_ticks - 1))
        (report,) = end_leftovers(tmp_path)
        assert runs(other)
    assert report.killed == () and report.is_clean


def test_a_record_of_an_earlier_boot_ends_nothing(tmp_path: Path) -> None:
    with bystander() as other:
        running_file.write(tmp_path, record_of(entry(other), boot_id="another"))
        end_leftovers(tmp_path)
        assert runs(other)
    assert not (tmp_path / running_file.FILE_NAME).exists()


def test_a_session_whose_leader_is_gone_needs_the_log_as_proof(tmp_path: Path) -> None:
    """The number of a session can be reused once all of its processes have ended; the log speaks for ours alone."""
    script = "import os, time; os.fork() and os._exit(0); time.sleep(600)"
    leader = subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
    before = entry(leader.pid)
    leader.wait()
    members = [p.pid for p in proctable.table().values() if p.session == before.pid]
    try:
        running_file.write(tmp_path, record_of(before))
        end_leftovers(tmp_path)
        assert members and all(map(runs, members))
    finally:
        for pid in members:
            os.kill(pid, signal.SIGKILL)
            assert eventually(lambda pid=pid: not runs(pid))  # type: ignore[misc]
            if entry(pid).ppid == os.getpid():
                os.waitpid(pid, 0)


def test_a_living_tuner_keeps_its_server(tmp_path: Path) -> None:
    pid, start_ticks = running_file.this_tuner()
    with bystander() as other:
        running_file.write(tmp_path, record_of(entry(other), tuner_pid=pid, tuner_start_ticks=start_ticks))
        with pytest.raises(EnvironmentFaultError, match="in use by another tuner") as refused:
            end_leftovers(tmp_path)
        assert runs(other)
    assert refused.value.exit_code == 4


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    with bystander() as other:
        before = record_of(entry(other))
        running_file.write(tmp_path, before)
        path = tmp_path / running_file.FILE_NAME
        path.write_text(
            path.read_text().replace('"port"', '"argv_digest": "0123", "port"').replace(',\n "replica": 0', "")
        )
        assert running_file.read(path) == before


def test_every_server_of_a_service_is_ended(tmp_path: Path) -> None:
    with bystander() as first, bystander() as second:
        for replica, pid in enumerate((first, second)):
            running_file.write(tmp_path, record_of(entry(pid), replica=replica))
        assert len(end_leftovers(tmp_path)) == 2
        assert not runs(first) and not runs(second)
    assert not running_file.found_below(tmp_path)


def test_a_torn_record_is_reported_and_nothing_touched(tmp_path: Path) -> None:
    (tmp_path / running_file.FILE_NAME).write_text('{"pid": 1')
    (report,) = end_leftovers(tmp_path)
    assert not report.is_clean and "cannot be read" in report.left[0]
    assert (tmp_path / running_file.FILE_NAME).exists()


@pytest.mark.parametrize("name", ["tuner-0000", "tuner-0000000g", "precious"])
def test_only_a_scratch_folder_is_removed_as_one(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    assert leftovers.remove_scratch(folder) == ()
    assert folder.exists()


def test_a_link_with_a_scratch_folders_name_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    link = tmp_path / "tuner-01234567"
    link.symlink_to(tmp_path / "precious")
    assert leftovers.remove_scratch(link) == ()
    assert (tmp_path / "precious").exists()


def test_shared_memory_that_another_process_maps_or_that_was_there_before_stays(tmp_path: Path) -> None:
    mapped, old = Path("/dev/shm/psm_tuner_test_mapped"), Path("/dev/shm/psm_tuner_test_old")
    old.touch()
    before = leftovers.shared_memory_inodes()
    script = (
        "import mmap,sys,time; f=open(sys.argv[1],'w+b'); f.truncate(4096); m=mmap.mmap(f.fileno(),4096);"
        "print(flush=True); time.sleep(600)"
    )
    user = subprocess.Popen([sys.executable, "-c", script, str(mapped)], stdout=subprocess.PIPE)
    try:
        assert user.stdout is not None
        with user.stdout:
            user.stdout.readline()
        assert leftovers.remove_shared_memory([mapped, old, Path("/dev/shm/none")], before=before) == ()
        user.kill()
        user.wait()
        assert leftovers.remove_shared_memory([mapped, old], before=before) == (str(mapped),)
    finally:
        user.kill()
        user.wait()
        for file in (mapped, old):
            file.unlink(missing_ok=True)


@pytest.mark.parametrize("replica", [0, 1])
def test_the_log_of_a_killed_tuners_server_loses_its_secrets(
    replica: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "correct-horse")
    log = tmp_path / running_file.log_name(replica)
    log.write_text("token correct-horse of https://u:battery-staple@hub\n")
    with bystander() as other:
        running_file.write(tmp_path, record_of(entry(other), boot_id="another", replica=replica))
        end_leftovers(tmp_path)
    assert log.read_text() == "token [redacted] of https://u:[redacted]@hub\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_server_of_another_user_is_refused_at_once_and_nothing_touched() -> None:
    with bystander() as other, tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        folder.chmod(0o777)
        running_file.write(folder, record_of(entry(other)))
        said = as_nobody(lambda: end_leftovers(folder))
        assert said.startswith("EnvironmentFaultError") and f"pid {other}" in said
        assert runs(other)
        assert (folder / running_file.FILE_NAME).exists()


def test_servers_that_any_tuner_abandoned_are_named_by_their_study_and_living_ones_are_not(tmp_path: Path) -> None:
    with killed_tuner(folder_of(tmp_path / "first")) as server:
        moved = (tmp_path / "first").rename(tmp_path / "renamed")
        (found,) = (servers for servers in abandoned() if servers.study.is_relative_to(tmp_path))
        assert found.study == moved
        assert server in {process.pid for process in found.processes}
        assert "study renamed left a server running: " in str(found) and str(server) in found.todo
        path = running_file.path_of(folder_of(moved))
        pid, start_ticks = running_file.this_tuner()
        running_file.write(path.parent, replace(running_file.read(path), tuner_pid=pid, tuner_start_ticks=start_ticks))
        assert not [servers for servers in abandoned() if servers.study.is_relative_to(tmp_path)]
