"""Commands after a search, on sample studies."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.report.studies import build_study
from tests.report.surface import PLAN
from tests.server.support import entry, record_of
from tuner.bench.task import RunLadder
from tuner.candidate import Candidate
from tuner.cli.app import app
from tuner.cli.best import show_best
from tuner.cli.compare import compare_studies
from tuner.cli.folders import State, study_folder
from tuner.cli.report import Then, make_report
from tuner.cli.search import opened
from tuner.cli.status import picture_of, show_status
from tuner.cli.studies import show_studies
from tuner.cli.tables import Form
from tuner.deploy.formats import FORMATS
from tuner.errors import UsageError
from tuner.report.translations import Language
from tuner.server import running_file
from tuner.server.running_file import Marker
from tuner.study.assignment import Assignment
from tuner.study.record import Role
from tuner.study.store import ASSIGNMENT, Store

NAME = PLAN.study


def test_studies_lists_each_with_its_gain_and_says_which_cannot_be_read(
    studies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_studies(studies, Form.TEXT)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["study", "state", "starts", "best", "QPS", "gain", "model"]
    by_name = {line.split()[0]: line for line in lines}
    assert set(by_name) == {NAME, "small", "hostile", "torn"}
    assert "complete" in by_name[NAME]
    assert "61 of 64" in by_name[NAME]
    assert "+92 %" in by_name[NAME]
    assert "unreadable" in by_name["torn"]


def test_searches_without_a_name_get_one_each_however_many_begin_in_a_minute(tmp_path: Path) -> None:
    asked, folder = dataclasses.replace(PLAN, study="m-chat-1129-0900"), tmp_path / "studies"
    made = [opened(asked, folder, is_named=False) for _ in range(3)]
    assert [plan.study for _, plan in made] == ["m-chat-1129-0900", "m-chat-1129-0900-2", "m-chat-1129-0900-3"]
    assert [store.folder.name for store, _ in made] == [plan.study for _, plan in made]
    assert opened(made[0][1], folder, is_named=True)[0] == made[0][0]


def test_a_wrong_name_gets_the_nearest_one(studies: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as near:
        study_folder(studies, "qwen3-32b-h10")
    assert near.value.hint == f"did you mean {NAME}?"
    with pytest.raises(UsageError) as none:
        study_folder(tmp_path, "x")
    assert "no study in" in none.value.hint


def test_status_of_a_finished_study_is_its_sentence_winner_default_and_last_outcomes(
    studies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_status(studies, NAME, Form.TEXT)
    out = capsys.readouterr().out
    assert "complete  61 of 64 starts" in out
    assert "+92 % ± 5 % QPS over the default" in out
    assert "winner       10.9 req/s" in out
    assert "max-num-batched-tokens=3200" in out
    assert "default      5.67 req/s" in out
    assert sum("  confirm  feasible  " in line for line in out.splitlines()) == 5


@pytest.mark.parametrize("form", Form)
def test_nothing_that_a_study_recorded_can_steer_the_terminal(
    form: Form, studies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_status(studies, "hostile", form)
    show_studies(studies, form)
    out = capsys.readouterr().out
    assert not [c for c in out if ord(c) < 32 and c != "\n"]
    assert "\u202e" not in out or form is Form.JSON
    assert "next[bold]line[/bold]" in out


def test_status_without_a_tuner_at_work_is_interrupted(tmp_path: Path) -> None:
    picture = picture_of(build_study(tmp_path, trials=12, telemetry=False).folder)
    assert (picture.state, picture.left_s, picture.groups) == (State.INTERRUPTED, None, ())


def test_status_of_a_study_before_its_first_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_study(tmp_path, trials=0)
    show_status(tmp_path, NAME, Form.TEXT)
    out = capsys.readouterr().out
    assert "0 of 64 starts" in out
    assert "not measured yet" in out


def test_status_shows_what_runs_now_from_the_assignment_of_its_trial(tmp_path: Path) -> None:
    study, store = build_study(tmp_path, trials=12, telemetry=False), Store(tmp_path / NAME)
    candidate = Candidate.of({"max-num-seqs": 77, "enable-chunked-prefill": False})
    group = study.plan.groups[1]
    store.save_assignment(
        Assignment(store.new_trial(), Role.CONFIRM, candidate, (group,), RunLadder((8,), 60.0), 5.0, None)
    )
    running_file.write(store.trial_folder(12), _marker())
    with store.locked():
        running = picture_of(study.folder)
    assert running.state is State.RUNNING and running.left_s is not None
    idle, busy = running.groups
    assert (idle.group, idle.trial, idle.phase) == ("gpu0", None, "idle")
    assert (busy.group, busy.trial, busy.phase) == ("gpu1", 12, "starting")
    assert (busy.candidate, busy.role) == (candidate, Role.CONFIRM)


def test_a_trial_of_an_older_tuner_is_shown_without_role_and_candidate(tmp_path: Path) -> None:
    store = Store(build_study(tmp_path, trials=12, telemetry=False).folder)
    running_file.write(store.trial_folder(12), _marker())
    with store.locked():
        idle, busy = picture_of(store.folder).groups
    assert (idle.group, idle.trial) == ("gpu0", None)
    assert (busy.group, busy.trial, busy.phase) == ("gpu1", 12, "starting")
    assert (busy.role, busy.candidate) == (None, None)
    (store.trial_folder(12) / ASSIGNMENT).write_text('{"trial": 12')
    with store.locked():
        assert [group.trial for group in picture_of(store.folder).groups] == [None, None], "a torn one is not shown"


def _marker() -> Marker:
    pid, ticks = running_file.this_tuner()
    return record_of(entry(pid), tuner_pid=pid, tuner_start_ticks=ticks, gpu_baseline_bytes=((1, 0),))


def test_best_prints_every_format_that_its_help_names(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    option = next(p for p in _command("best").params if p.name == "format")  # type: ignore[attr-defined]
    for format in FORMATS:
        assert format in option.help
        show_best(studies, NAME, format, None, trial=None, replicas=None, gpu_price=None)
        assert "Qwen/Qwen3-32B" in capsys.readouterr().out or format == "nginx"


def _command(name: str) -> object:
    import typer

    return typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]


def test_best_with_a_price_has_the_cost(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_best(studies, NAME, "json", None, trial=None, replicas=None, gpu_price=2.5)
    best = json.loads(capsys.readouterr().out)
    assert best["gpu_price_per_hour"] == 2.5
    assert best["chosen"]["cost_per_million_output_tokens"] > 0


def test_best_into_a_folder_writes_scripts_that_can_be_run(
    studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "folder"
    show_best(studies, NAME, "sh", out, trial=None, replicas=None, gpu_price=None)
    show_best(studies, NAME, "compose", out, trial=0, replicas=None, gpu_price=None)
    assert capsys.readouterr().out.splitlines() == [f"{out}/start.sh", f"{out}/stop.sh", f"{out}/compose.yaml"]
    assert os.access(out / "start.sh", os.X_OK)
    assert os.access(out / "stop.sh", os.X_OK)


@pytest.mark.parametrize("wrong", [{"format": "docker"}, {"trial": 999}, {"replicas": 0}, {"gpu_price": -1.0}])
def test_best_refuses_what_there_is_not(wrong: dict[str, object], studies: Path) -> None:
    words: dict[str, object] = {"format": "sh", "trial": None, "replicas": None, "gpu_price": None, **wrong}
    with pytest.raises(UsageError):
        show_best(studies, NAME, out=None, **words)  # type: ignore[arg-type]


def test_report_is_written_anew_in_the_language_that_was_asked_for(
    studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(studies / "small", tmp_path / "small")
    make_report(tmp_path, "small", Language.CHINESE, 2.5, Then.SAY)
    path = Path(capsys.readouterr().out.strip())
    assert path == tmp_path / "small" / "report.html"
    assert "调优报告" in path.read_text()


def test_report_opens_in_the_browser_of_the_user(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(studies / "small", tmp_path / "small")
    opened: list[str] = []

    def no_browser(url: str) -> bool:
        opened.append(url)
        return False

    monkeypatch.setattr("webbrowser.open", no_browser)
    make_report(tmp_path, "small", Language.ENGLISH, None, Then.OPEN)
    said = capsys.readouterr()
    assert opened == [(tmp_path / "small" / "report.html").as_uri()]
    assert "no browser here" in said.err


def test_compare_writes_one_page_of_both(studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "both.html"
    compare_studies(studies, (NAME, "small"), out, Language.ENGLISH, None, Then.SAY)
    assert capsys.readouterr().out.strip() == str(out)
    page = out.read_text()
    assert NAME in page
    assert "small" in page
    compare_studies(studies, (NAME, "small"), Path("-"), Language.ENGLISH, None, Then.SAY)
    assert capsys.readouterr().out == page
