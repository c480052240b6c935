from __future__ import annotations

import errno
import json
import re
import resource
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from tests.cli.support import TUNER, tuner
from tuner.cli import app as command_line
from tuner.cli.app import app


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("search",), 2),
        (("search", "--model", "/nowhere"), 2),
        (("search", "--model", "/nowhere", "stray"), 2),
        (("search", "--no-such-option"), 2),
        (("search", "--trials", "many", "--model", "x/y"), 2),
        (("plan", "--model", "/nowhere"), 2),
        (("resume", "no-such-study"), 2),
        (("status", "no-such-study"), 2),
        (("status", "../studies"), 2),
        (("report", "no-such-study"), 2),
        (("compare", "no-such-study", "nor-this"), 2),
        (("best", "no-such-study"), 2),
        (("studies", "--studies", "/nowhere"), 2),
        (("check", "--gpus", "3-1"), 2),
        (("nonsense",), 2),
    ],
)
def test_bad_input_is_one_line_a_hint_and_no_traceback(words: tuple[str, ...], code: int, tmp_path: Path) -> None:
    ended = tuner(*words, cwd=tmp_path)
    assert ended.returncode == code
    lines = ended.stderr.strip().splitlines()
    assert lines[-2].startswith("error: ")
    assert lines[-1].startswith("hint: ")
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_help_names_every_command_and_costs_little() -> None:
    """0.11 s of CPU on a 2-core machine; the bound is generous, so that only a heavy import breaks it."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run([*TUNER, "--help"], capture_output=True, text=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert ended.returncode == 0
    for command in ("search", "resume", "plan", "check", "status", "studies", "report", "compare", "best", "bench"):
        assert f"\n  {command} " in ended.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_tuner_without_a_command_prints_its_help() -> None:
    bare = tuner()
    assert (bare.returncode, bare.stderr) == (0, "")
    assert bare.stdout == tuner("--help").stdout


def test_every_command_has_an_example_in_its_help() -> None:
    command = typer.main.get_command(app)
    for name, sub in command.commands.items():  # type: ignore[attr-defined]
        assert f"Example: tuner {name} " in sub.epilog, name


def test_plan_takes_every_option_of_search_but_how_it_is_shown() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    options = {name: {p.name for p in commands[name].params} for name in ("search", "plan")}
    assert options["search"] - options["plan"] == {"plain"}
    assert options["plan"] - options["search"] == {"as_json"}


def test_version_is_one_line() -> None:
    ended = tuner("--version")
    assert ended.returncode == 0
    assert ended.stdout.startswith("tuner ")
    assert len(ended.stdout.splitlines()) == 1


def test_a_shell_completes_commands_and_names_of_studies(studies: Path) -> None:
    def completed(words: str) -> list[str]:
        # The last word is the one that is being typed.
        number = str(len(words.split()) - 1)
        return tuner(_TUNER_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=number).stdout.split()

    assert completed("tuner st") == ["status", "studies"]
    assert completed(f"tuner status --studies {studies} sm") == ["small"]


def test_a_reader_that_has_enough_is_no_error(studies: Path) -> None:
    command = subprocess.Popen(
        [*TUNER, "best", "small", "--studies", str(studies), "--format", "json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None
    command.stdout.close()
    assert command.stderr is not None
    assert command.stderr.read() == ""
    command.stderr.close()
    assert command.wait() == 0


@pytest.mark.parametrize("words", [("studies",), ("status", "qwen3-32b-h100"), ("status", "small")])
def test_json_parses_and_names_its_schema(words: tuple[str, ...], studies: Path) -> None:
    ended = tuner(*words, "--studies", str(studies), "--json")
    assert ended.returncode == 0
    assert json.loads(ended.stdout)["schema"] == 1


def test_every_option_has_a_help_with_its_default() -> None:
    command = typer.main.get_command(app)
    for name, sub in command.commands.items():  # type: ignore[attr-defined]
        for option in sub.params:
            told = option.help or ""
            assert told[:1].isupper() and told.endswith("."), (name, option.name)
            is_plain = option.required or getattr(option, "is_flag", False) or option.default is not None
            assert is_plain or re.search(r"[Dd]efault|\(\d+\)", told), (name, option.name)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("words", "code"), [("studies", 0), ("status no-such-study", 2), ("--help", 0)])
def test_a_closed_stream_changes_no_exit_code(words: str, code: int, closed: str, studies: Path) -> None:
    where = f" --studies {studies}" if words != "--help" else ""
    line = f"{shlex.join(TUNER)} {words}{where} {closed}"
    ended = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60)
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr


def test_a_full_disk_behind_stdout_is_the_machines_fault(studies: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [*TUNER, "best", "small", "--studies", str(studies)], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 4
    assert ended.stderr.startswith("error: No space left")


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    line = f"mkdir gone; cd gone; rmdir ../gone; exec {shlex.join(TUNER)} status any"
    ended = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert ended.returncode == 4
    assert ended.stderr.startswith("error: the current folder is gone")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (OSError(errno.ENOSPC, "full"), 4),
        (OSError(errno.EAGAIN, "fork"), 4),
        (OSError(errno.ESTALE, "stale"), 4),
        (OSError(errno.ENOMEM, "memory"), 4),
        (OSError(errno.ENAMETOOLONG, "long", "x" * 300), 2),
        (RuntimeError("can't start new thread"), 4),
        (MemoryError(), 4),
        (OSError(errno.EBADF, "closed"), 1),
        (RuntimeError("another"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_the_boundary_tells_the_machines_faults_from_bugs(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(**given: object) -> None:
        raise error

    monkeypatch.setattr(command_line, "app", fails)
    assert command_line._run() == code
    said = capsys.readouterr().err
    assert ("Traceback" in said) == (code == 1)
    assert "\nhint: " in said
