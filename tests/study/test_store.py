from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tests.study.builders import level, plan, record
from tuner.candidate import Candidate
from tuner.environment import describe
from tuner.errors import EnvironmentFaultError, UsageError
from tuner.jsonfile import DiskWarning
from tuner.secrecy import mask_password
from tuner.server import proctable
from tuner.study import lock
from tuner.study.store import Store


def stored(folder: Path) -> Store:
    store = Store(folder)
    store.create()
    store.save_plan(plan(folder), describe("0.32.0", "/models/tiny", (), None))
    return store


def test_a_finished_record_is_never_changed(tmp_path: Path) -> None:
    store = stored(tmp_path / "s")
    store.save_record(record(0, Candidate(), (level(10.0),)))
    with pytest.raises(FileExistsError):
        store.save_record(record(0, Candidate(), (level(20.0),)))


def test_a_torn_record_counts_as_unfinished_and_its_number_is_not_used_again(tmp_path: Path) -> None:
    store = stored(tmp_path / "s")
    store.save_record(record(0, Candidate()))
    torn = store.trial_folder(1) / "record.json"
    torn.write_text('{"trial": 1, "role"')
    assert [r.trial for r in store.records()] == [0]
    assert store.new_trial() == 2


def test_threads_never_get_the_same_trial(tmp_path: Path) -> None:
    store = stored(tmp_path / "s")
    with ThreadPoolExecutor(8) as pool:
        trials = list(pool.map(lambda _: store.new_trial(), range(64)))
    assert sorted(trials) == list(range(64))


def test_the_command_that_resumes_names_the_folder_of_studies_that_is_not_the_usual_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Store(tmp_path / "studies" / "s").resume_command == "tuner resume s"
    assert Store(tmp_path / "my own" / "s").resume_command == f"tuner resume s --studies '{tmp_path / 'my own'}'"


def test_two_tuners_cannot_work_on_one_study(tmp_path: Path) -> None:
    store = stored(tmp_path / "s")
    with store.locked(), pytest.raises(UsageError, match="another tuner"), Store(store.folder).locked():
        pass


def test_a_folder_that_cannot_be_written_is_an_environment_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentFaultError) as caught:
        Store(tmp_path / "file" / "studies" / "s").create()
    assert caught.value.exit_code == 4


def test_a_torn_plan_is_one_clear_error(tmp_path: Path) -> None:
    store = stored(tmp_path / "s")
    path = store.folder / "plan.json"
    path.write_text(path.read_text()[:200])
    with pytest.raises(UsageError, match=r"plan\.json"):
        store.plan()


@pytest.mark.parametrize("name", ["plan.json", "trials/0000/record.json"])
def test_a_file_of_a_newer_tuner_is_refused_by_that_name(name: str, tmp_path: Path) -> None:
    store = stored(tmp_path / "s")
    store.save_record(record(0, Candidate()))
    path = store.folder / name
    path.write_text(re.sub(r'"schema": \d+', '"schema": 99', path.read_text()))
    with pytest.raises(UsageError, match="made by a newer tuner"):
        (store.plan(), store.records())


def test_a_folder_that_was_deleted_is_not_made_again(tmp_path: Path) -> None:
    store = stored(tmp_path / "s")
    shutil.rmtree(store.folder)
    for use in (store.new_trial, lambda: store.trial_folder(0), lambda: store.save_record(record(0, Candidate()))):
        with pytest.raises(FileNotFoundError):
            use()
    assert not store.folder.exists()


def test_the_password_of_a_storage_is_kept_apart_and_for_its_user_alone(tmp_path: Path) -> None:
    store, url = stored(tmp_path / "s"), "postgresql://tuner:S3cret@db/optuna"
    made = replace(plan(store.folder), storage=mask_password(url))
    with pytest.raises(UsageError, match="password"):
        store.with_storage(made)
    store.save_storage(url)
    assert store.with_storage(made).storage == url
    (kept,) = (path for path in store.folder.iterdir() if path.is_file() and "S3cret" in path.read_text())
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_storage_without_a_password_needs_no_file_of_its_own(tmp_path: Path) -> None:
    store = stored(tmp_path / "s")
    before = set(store.folder.iterdir())
    store.save_storage("sqlite:////data/study.db")
    assert set(store.folder.iterdir()) == before
    assert store.with_storage(plan(store.folder)) == plan(store.folder)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_costs_a_caution_and_a_note_stands_for_the_lock(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(file: object, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    store = stored(tmp_path / "s")
    with pytest.warns(DiskWarning, match="no locks"), store.locked():
        assert lock.is_locked(store.folder)
        with pytest.raises(UsageError, match="another tuner"), store.locked():
            pass
    assert not lock.is_locked(store.folder)
    (store.folder / ".lock").write_text(f"{proctable.boot_id()} 4194303 12")
    assert not lock.is_locked(store.folder), "the note of a tuner that was killed"


def test_a_lock_that_fails_for_another_reason_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(file: object, operation: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError), stored(tmp_path / "s").locked():
        pass
