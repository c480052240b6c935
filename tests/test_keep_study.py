"""Files that scripts/keep_study.py keeps of a study for git."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from tests.report.studies import ENVIRONMENT, Study, build_study, replace_record
from tests.report.surface import PLAN
from tuner import jsonfile
from tuner.bench.measured import Remark
from tuner.report.page import write_report

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "keep_study.py"


ELSEWHERE = Path("/srv/secret/models/tiny")


def make(tmp_path: Path, model_folder: Path = ELSEWHERE) -> Study:
    """A study that was made in `tmp_path`, with the files that the report does without."""
    model, cache = str(model_folder), str(tmp_path / "runs" / "example" / "vllm_cache")
    base = dataclasses.replace(PLAN.base, model=model, env=(("VLLM_CACHE_ROOT", cache),))
    plan = dataclasses.replace(PLAN, study="example", model=model, base=base)
    study = build_study(
        tmp_path / "runs", trials=30, plan=plan, environment=dataclasses.replace(ENVIRONMENT, model=model)
    )
    (study.folder / "study.db").write_bytes(b"rows")
    for trial in study.folder.glob("trials/*"):
        (trial / "server.log").write_text("INFO\n")
        (trial / "requests.parquet").write_bytes(b"requests")
    return study


def keep(folder: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(SCRIPT), "runs/example", "studies/example"]
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("below", [True, False], ids=["model below the working directory", "model elsewhere"])
def test_a_kept_study_has_everything_but_logs_single_requests_and_the_machine(below: bool, tmp_path: Path) -> None:
    made = make(tmp_path, tmp_path / "models" / "tiny" if below else ELSEWHERE)
    (tmp_path / "studies" / "example").mkdir(parents=True)
    (tmp_path / "studies" / "example" / "stale").touch()
    ended = keep(tmp_path)
    assert ended.returncode == 0, ended.stderr
    kept = tmp_path / "studies" / "example"
    files = {path.relative_to(kept) for path in kept.rglob("*") if path.is_file()}
    assert {path.name for path in files} == {
        "plan.json", "environment.json", "result.json", "study.db", "record.json", "telemetry.parquet",
        "start.sh", "stop.sh",
    }  # fmt: skip
    assert sum(path.name == "record.json" for path in files) == len(made.records)
    for path in files:
        content = (kept / path).read_bytes()
        assert str(tmp_path).encode() not in content, path
        assert b"/srv/secret" not in content, path
        assert ENVIRONMENT.host.encode() not in content, path
    assert "serve models/tiny" in " ".join((kept / "start.sh").read_text().split())
    assert "models/tiny" in write_report(kept).read_text()


def test_an_unfinished_study_is_not_kept(tmp_path: Path) -> None:
    made = make(tmp_path)
    assert made.result is not None
    jsonfile.dump(made.folder / "result.json", dataclasses.replace(made.result, complete=False))
    ended = keep(tmp_path)
    assert ended.returncode == 1
    assert "has no winner yet" in ended.stderr
    assert not (tmp_path / "studies").exists()


def test_a_machine_that_is_still_named_is_reported(tmp_path: Path) -> None:
    made = make(tmp_path)
    replace_record(made, dataclasses.replace(made.records[0], notes=(Remark(f"see {Path.home()}/notes"),)))
    ended = keep(tmp_path)
    assert ended.returncode == 1
    assert f"{Path.home()} is still named in studies/example/" in ended.stderr
