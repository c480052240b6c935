"""Studies that are copied, moved or renamed: they go on, and never touch the original."""

from __future__ import annotations

import gc
import json
import shutil
import stat
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from tests.study.builders import plan
from tests.study.study_run import StudyRun
from tuner.environment import describe
from tuner.errors import EnvironmentFaultError, UsageError
from tuner.load.workload import workload
from tuner.study import kept_workload
from tuner.study.kept_workload import with_kept_workload
from tuner.study.optuna_storage import claim, open_study
from tuner.study.own_files import storage_in
from tuner.study.plan import StudyPlan
from tuner.study.store import Store


def interrupted(made: StudyPlan) -> None:
    """Leave a study after some trials. Its connection to the database is closed."""
    StudyRun(made).cut(3)
    gc.collect()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_no_saved_file_names_the_studys_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a study" / "s"
    interrupted(plan(folder))
    assert [name for name, data in contents(folder).items() if str(folder).encode() in data] == []


@pytest.mark.parametrize("moved", [False, True], ids=["copied", "moved"])
@pytest.mark.parametrize("target", ["elsewhere/s", "renamed", "deep/er/an?odd%20name"])
def test_a_study_elsewhere_goes_on_and_the_original_stays_as_it_was(tmp_path: Path, target: str, moved: bool) -> None:
    origin, folder = tmp_path / "s", tmp_path / target
    interrupted(plan(origin))
    before = contents(origin)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(origin, folder) if moved else shutil.copytree(origin, folder)
    made = Store(folder).plan()
    assert (made.study, made.storage) == (folder.name, storage_in(folder))
    result = StudyRun(made).loop.run()
    assert result.complete and result.starts > 4
    assert origin.exists() is not moved
    if not moved:
        assert contents(origin) == before


def as_saved_before(folder: Path) -> None:
    """Write the plan as earlier versions did, with absolute paths."""
    raw = json.loads((folder / "plan.json").read_text())
    raw["storage"] = storage_in(folder)
    raw["base"]["env"].append(["VLLM_CACHE_ROOT", str(folder / "vllm_cache")])
    (folder / "plan.json").write_text(json.dumps(raw))


def test_a_plan_of_an_earlier_version_is_located_too(tmp_path: Path) -> None:
    interrupted(plan(tmp_path / "s"))
    as_saved_before(tmp_path / "s")
    shutil.move(tmp_path / "s", tmp_path / "t")
    made = Store(tmp_path / "t").plan()
    assert made.storage == storage_in(tmp_path / "t")
    assert "VLLM_CACHE_ROOT" not in dict(made.base.env)


def test_a_copy_may_not_share_a_storage_elsewhere_until_it_has_a_name_of_its_own(tmp_path: Path) -> None:
    shared = f"sqlite:///{tmp_path / 'shared.db'}"
    origin = Store(tmp_path / "s")
    origin.create()
    origin.save_plan(replace(plan(origin.folder), storage=shared), describe("0.32.0", "m", (), None))
    claim(origin.plan(), origin.folder)
    shutil.copytree(origin.folder, tmp_path / "b" / "s")
    shutil.copytree(origin.folder, tmp_path / "b" / "t")
    copy, named = Store(tmp_path / "b" / "s"), Store(tmp_path / "b" / "t")
    with pytest.raises(UsageError, match="is a copy"):
        claim(copy.plan(), copy.folder)
    claim(named.plan(), named.folder)
    assert open_study(named.plan()).study_name == "t"
    assert set(optuna.get_all_study_names(shared)) == {"s", "t"}
    shutil.rmtree(origin.folder)
    claim(copy.plan(), copy.folder)


# ── the traffic file

LINE = '{"prompt": "How are you?", "max_tokens": 9}\n'


def with_traffic(folder: Path, file: Path) -> StudyPlan:
    folder.mkdir(exist_ok=True)
    file.write_text(20 * LINE)
    return replace(plan(folder), workload=workload(str(file)))


@pytest.mark.parametrize("name", ["chat.jsonl", "mine and yours.jsonl", "\u4f1a\u8bdd.json"])
def test_the_traffic_of_a_study_is_its_own(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name.endswith(".json"):
        file.write_text(f"[{LINE}]")
        (tmp_path / "s").mkdir()
        planned = replace(plan(tmp_path / "s"), workload=workload(str(file)))
    else:
        planned = with_traffic(tmp_path / "s", file)
    made = with_kept_workload(planned, tmp_path / "s")
    before = file.read_bytes()
    with file.open("a") as more:
        more.write(LINE)
    store = Store(tmp_path / "s")
    store.create()
    store.save_plan(made, describe("0.32.0", "m", (), None))
    assert str(tmp_path) not in (store.folder / "plan.json").read_text()
    file.unlink()
    shutil.move(store.folder, tmp_path / "t")
    again = Store(tmp_path / "t").plan().workload
    assert again.file is not None
    kept = Path(again.file)
    assert kept.is_relative_to(tmp_path / "t") and kept.read_bytes() == before
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700
    assert again.file_sha256 == planned.workload.file_sha256


def test_traffic_that_is_kept_is_not_copied_again(tmp_path: Path) -> None:
    made = with_kept_workload(with_traffic(tmp_path / "s", tmp_path / "a.jsonl"), tmp_path / "s")
    (tmp_path / "a.jsonl").unlink()
    assert with_kept_workload(made, tmp_path / "s") == made
    assert with_kept_workload(plan(tmp_path / "s"), tmp_path / "s") == plan(tmp_path / "s")


def test_traffic_that_changed_while_the_study_was_planned_is_refused(tmp_path: Path) -> None:
    planned = with_traffic(tmp_path / "s", tmp_path / "a.jsonl")
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(LINE)
    with pytest.raises(UsageError, match="changed while the study was planned"):
        with_kept_workload(planned, tmp_path / "s")
    assert list((tmp_path / "s" / "workload").iterdir()) == []


def test_traffic_that_has_no_room_or_vanished_is_the_machines_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = with_traffic(tmp_path / "s", tmp_path / "a.jsonl")
    with monkeypatch.context() as full:
        full.setattr(kept_workload, "_SPARE_BYTES", 2**62)
        full.setattr(kept_workload, "_FICLONE", 0)
        with pytest.raises(EnvironmentFaultError, match="no room for a copy"):
            with_kept_workload(planned, tmp_path / "s")
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(EnvironmentFaultError, match="cannot be copied"):
        with_kept_workload(planned, tmp_path / "s")
