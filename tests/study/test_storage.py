"""Optuna's storage: locked, lost, somebody else's, and at any path."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import StorageInternalError

from tests.study.builders import plan
from tests.study.study_run import StudyRun
from tuner.errors import EnvironmentFaultError, UsageError
from tuner.study.optuna_storage import Patience, open_storage, open_study, refuse_taken, storage_errors
from tuner.study.record import Role


def locked(path: Path, mode: str, seconds: float) -> threading.Thread:
    """Lock a database in another thread, as another process would."""
    holds = threading.Event()

    def hold() -> None:
        connection = sqlite3.connect(path)
        connection.execute(f"BEGIN {mode}")
        connection.execute("SELECT count(*) FROM trials").fetchall()
        holds.set()
        time.sleep(seconds)
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert holds.wait(5)
    return thread


@pytest.mark.parametrize("mode", ["EXCLUSIVE", "IMMEDIATE", "DEFERRED"])
def test_a_database_that_others_lock_or_read_is_waited_for(tmp_path: Path, mode: str) -> None:
    said: list[str] = []
    study = open_study(plan(tmp_path / "s"), Patience(tell=said.append))
    holder = locked(tmp_path / "s" / "study.db", mode, 0 if mode == "DEFERRED" else 4.0)
    study.set_user_attr("x", 1.0)
    holder.join()
    assert study.user_attrs["x"] == 1.0
    assert (len(said) == 1) == (mode != "DEFERRED")


def test_patience_has_an_end_and_an_interrupt_is_not_kept_waiting(tmp_path: Path) -> None:
    for patience in (Patience(0.1), Patience(should_stop=lambda: True)):
        study = open_study(plan(tmp_path / "s"), patience)
        holder = locked(tmp_path / "s" / "study.db", "EXCLUSIVE", 2.5)
        with pytest.raises(EnvironmentFaultError, match="locked"), storage_errors():
            study.set_user_attr("x", 1.0)
        holder.join()


def test_what_will_not_pass_is_not_waited_for(tmp_path: Path) -> None:
    made = plan(tmp_path / "s")
    (tmp_path / "s" / "study.db").write_bytes(b"no database " * 1000)
    began = time.monotonic()
    with pytest.raises(EnvironmentFaultError, match="cannot be opened"):
        open_study(made)
    assert time.monotonic() - began < 100


def test_a_server_that_drops_its_connection_is_asked_again(tmp_path: Path) -> None:
    """PostgreSQL ends idle connections, and restarts; SQLAlchemy then raises its OperationalError."""

    class OperationalError(Exception):
        pass

    answers = iter([OperationalError("server closed the connection unexpectedly"), None])

    def ask() -> str:
        if (fault := next(answers)) is not None:
            raise StorageInternalError from fault
        return "answer"

    assert Patience().call(ask) == "answer"


def test_connections_that_idled_are_tested_before_use(tmp_path: Path) -> None:
    assert open_storage(f"sqlite:///{tmp_path / 'other.db'}").engine.pool._pre_ping


@pytest.mark.parametrize("name", ["a?b", "100%20x", "c#d", "{e}", "f g", "größe", "a%3fb&c=1"])
def test_a_path_may_hold_what_an_address_may_not(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "s"
    folder.mkdir(parents=True)
    made = replace(plan(tmp_path / "s"), storage=f"sqlite:///{folder / 'study.db'}")
    open_study(made).enqueue_trial({"x": 1.0})
    assert len(open_study(made).trials) == 1
    assert {p.name.removesuffix("-wal").removesuffix("-shm") for p in folder.iterdir()} == {"study.db"}


def gone(path: Path) -> None:
    for file in path.parent.glob("study.db*"):
        file.unlink()


def empty(path: Path) -> None:
    gone(path)
    path.touch()


def with_a_new_queue(path: Path) -> None:
    """As an older tuner left it, which made a new study before it noticed."""
    gone(path)
    study = optuna.create_study(study_name="s", storage=f"sqlite:///{path}", direction="maximize")
    study.enqueue_trial({"max-num-seqs": 256.0}, user_attrs={"role": "default"})


@pytest.mark.parametrize(("damage", "trials"), [(gone, 1), (gone, 8), (empty, 3), (with_a_new_queue, 8)])
def test_a_lost_database_is_made_anew_from_the_records(
    tmp_path: Path, damage: Callable[[Path], None], trials: int
) -> None:
    made = plan(tmp_path / "s", starts=12, confirm_starts=0)
    before = StudyRun(made).cut(trials).store.records()
    damage(tmp_path / "s" / "study.db")
    second = StudyRun(made)
    result = second.loop.run()
    records = second.store.records()
    assert result.complete and records[: len(before)] == before
    counted = [r for r in records if r.counts]
    assert len(counted) == 12
    assert len({r.candidate.id for r in counted}) == 12, "nothing is started twice"
    assert [r.role for r in counted][:4] == [Role.DEFAULT, *[Role.SEED] * 3]
    assert before[-1].candidate in [r.candidate for r in records[len(before) :]], "the interrupted one is due again"
    assert records[len(before)].candidate.id in {r.candidate.id for r in counted}


def test_a_remade_study_holds_the_same_answers(tmp_path: Path) -> None:
    made = plan(tmp_path / "s", starts=10, confirm_starts=0)
    StudyRun(made).loop.run()

    def answers() -> dict[int, tuple[float | None, tuple[float, ...]]]:
        trials = optuna.load_study(study_name="s", storage=made.storage).trials
        return {t.number: (t.value, (*t.constraints.values(),)) for t in trials if "trial" in t.user_attrs}

    first = answers()
    gone(tmp_path / "s" / "study.db")
    StudyRun(made).loop.run()
    assert len(first) == 10 and answers() == first


def test_an_older_copy_of_the_database_is_brought_up_to_date(tmp_path: Path) -> None:
    made = plan(tmp_path / "s", starts=12, confirm_starts=0)
    StudyRun(made).cut(2)
    shutil.copytree(tmp_path / "s", tmp_path / "old")
    StudyRun(made).cut(6)
    gone(tmp_path / "s" / "study.db")
    for file in (tmp_path / "old").glob("study.db*"):
        shutil.copy(file, tmp_path / "s")
    second = StudyRun(made)
    assert second.loop.run().complete
    counted = [r.candidate.id for r in second.store.records() if r.counts]
    assert len(counted) == len(set(counted)) == 12


@pytest.mark.parametrize("torn", [0, 2])
def test_a_torn_record_is_run_again_although_the_search_was_told(tmp_path: Path, torn: int) -> None:
    made = plan(tmp_path / "s", starts=8)
    first = StudyRun(made).cut(4)
    lost = first.store.records()[torn]
    path = tmp_path / "s" / "trials" / f"{torn:04d}" / "record.json"
    path.write_text(path.read_text()[:300])
    second = StudyRun(made)
    result = second.loop.run()
    again = [r for r in second.store.records() if r.candidate == lost.candidate and r.role is lost.role]
    assert len(again) == 1 and again[0].trial > torn
    assert result.complete and result.default_seen is not None
    third = StudyRun(made)
    third.loop.run()
    assert third.store.records() == second.store.records(), "it is run again once"


def test_a_foreign_study_of_that_name_is_refused_by_name(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    mine = replace(plan(tmp_path / "a" / "s"), storage=storage)
    refuse_taken(mine)
    open_study(mine)
    assert open_study(mine).study_name == "s", "the study itself goes on"
    other = replace(mine, created_at="2026-11-22T00:00:00+00:00")
    with pytest.raises(UsageError, match="'s'"):
        open_study(other)
    with pytest.raises(UsageError, match="'s'"):
        refuse_taken(other)


def test_a_study_that_is_not_tuners_is_refused(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    optuna.create_study(study_name="s", storage=storage).add_trial(optuna.trial.create_trial(value=1.0))
    with pytest.raises(UsageError, match="'s'"):
        open_study(replace(plan(tmp_path / "s"), storage=storage))


def test_a_study_of_an_earlier_tuner_without_a_mark_goes_on(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    old = optuna.create_study(study_name="s", storage=storage, direction="maximize")
    old.enqueue_trial({"x": 1.0}, user_attrs={"role": "default"})
    assert len(open_study(replace(plan(tmp_path / "s"), storage=storage)).trials) == 1
