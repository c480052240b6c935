from __future__ import annotations

import os
import shlex
import shutil
import stat
from pathlib import Path

import pytest

from tests.server.support import as_nobody
from tuner.errors import EnvironmentFaultError, UsageError
from tuner.vllm import flags
from tuner.vllm.flags import installed_vllm, parse_flags, split_command

HELP = """usage: vllm serve [model_tag] [options]

SchedulerConfig:
  --max-num-seqs MAX_NUM_SEQS
                        Maximum number of sequences. See --not-a-flag for more.
  --enable-chunked-prefill, --no-enable-chunked-prefill
                        If True, prefill requests can be chunked.
  -tp, --tensor-parallel-size TENSOR_PARALLEL_SIZE
  --max-num-partial-prefills N
"""


def script(path: Path, body: str) -> tuple[str, ...]:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return (str(path), "serve")


def test_only_options_count_not_prose_that_mentions_one() -> None:
    assert parse_flags(HELP) == (
        "enable-chunked-prefill",
        "max-num-partial-prefills",
        "max-num-seqs",
        "no-enable-chunked-prefill",
        "tensor-parallel-size",
    )


def test_a_version_that_refuses_partial_prefills_has_them_left_out(tmp_path: Path) -> None:
    say = f"case \"$*\" in *--version*) echo 0.20.2;; *) cat <<'E'\n{HELP}E\n;; esac"
    found = installed_vllm(script(tmp_path / "fake-vllm", say), tmp_path / "cache")
    assert found.version == "0.20.2"
    assert "max-num-partial-prefills" not in found.flags


def test_a_vllm_that_exits_at_help_is_an_environment_fault(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFaultError) as caught:
        installed_vllm(script(tmp_path / "broken", "echo 'ImportError: libcuda.so.1' >&2; exit 1"), tmp_path)
    assert "libcuda.so.1" in caught.value.message


def test_a_command_that_is_not_vllm_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFaultError) as caught:
        installed_vllm(script(tmp_path / "other", "echo hello"), tmp_path)
    assert "max-num-seqs" in caught.value.message


@pytest.mark.parametrize("text", ["", "no-such-program-anywhere serve", "vllm 'serve"])
def test_a_command_that_cannot_run_is_refused_at_once(text: str) -> None:
    with pytest.raises(EnvironmentFaultError):
        split_command(text)


@pytest.mark.real_vllm
def test_the_installed_vllm_tells_its_flags_and_the_second_time_from_the_cache(
    vllm_command: tuple[str, ...], tmp_path: Path
) -> None:
    first = installed_vllm(vllm_command, tmp_path)
    assert {"max-num-seqs", "max-num-batched-tokens", "gpu-memory-utilization"} <= set(first.flags)
    (cached,) = tmp_path.glob("*.json")
    before = cached.stat().st_mtime_ns
    assert installed_vllm(vllm_command, tmp_path) == first
    assert cached.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("HF_HOME=/data vllm serve", "HF_HOME=…", "env HF_HOME=… vllm serve"),
        ("A=1 B=2 vllm serve", "A=…", "env A=… vllm serve"),
        ("cd /opt && vllm serve", "'&&'", "script"),
        ("cd /opt", "'cd'", "script"),
        ("source venv/bin/activate; vllm serve", "';'", "script"),
        ("vllm serve >log 2>&1", "'>'", "script"),
        ("vllm serve | tee log", "'|'", "script"),
        ("$HOME/bin/vllm serve", "'$HOME/bin/vllm'", "script"),
    ],
)
def test_a_line_for_a_shell_is_refused_and_says_how_to_write_it(text: str, says: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        split_command(text)
    assert says in caught.value.message and "without a shell" in caught.value.message
    assert hint in caught.value.hint
    assert "/data" not in caught.value.message, "a value may be a secret"


@pytest.mark.parametrize(
    "text", ["sh -c 'cd / && exec vllm \"$@\"' vllm serve", "env A=1 vllm serve", "env A='x && y' vllm", "sh a;b"]
)
def test_what_a_program_gets_in_quotes_is_its_own(text: str) -> None:
    assert split_command(text) == tuple(shlex.split(text))


def test_a_program_that_is_not_there_is_explained_by_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").write_text("")
    for text, says, hint in (
        ("./venv/bin/python -m vllm", "there is no program ./venv/bin/python", str(tmp_path)),
        ("./plain serve", "not executable", "chmod +x ./plain"),
        (f"{tmp_path} serve", "is a folder", "/opt/vllm/bin/vllm"),
        ("vllm-of-nobody serve", "on PATH", "install vLLM"),
    ):
        with pytest.raises(EnvironmentFaultError) as caught:
            split_command(text)
        assert says in caught.value.message and hint in caught.value.hint


def test_a_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    program, *_ = script(tmp_path / "my-vllm", "")
    assert split_command("~/my-vllm serve") == (program, "serve")


def test_a_cache_that_cannot_be_written_or_read_is_done_without(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    python = script(folder / "python3", f"case \"$*\" in *importlib*) echo 0.32.0;; *) cat <<'E'\n{HELP}E\n;; esac")[0]
    command = (python, "-m", "vllm.entrypoints.openai.api_server")
    (tmp_path / "file").touch()
    assert installed_vllm(command, tmp_path / "file" / "flags").version == "0.32.0"
    assert installed_vllm(command, Path("/proc/no/cache")).version == "0.32.0"
    (made := tmp_path / "cache").mkdir()
    first = installed_vllm(command, made)
    (cached,) = made.iterdir()
    cached.unlink()
    cached.mkdir()
    assert installed_vllm(command, made) == first


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become two other users")
def test_a_command_that_runs_as_another_user_is_refused_before_any_server() -> None:
    """A setuid program stands for sudo. The probe's process is not ours to signal."""
    sudo = Path("/tmp", f"tuner-test-sudo-{os.getpid()}")
    shutil.copy(shutil.which("setpriv") or "", sudo)
    sudo.chmod(0o4755)
    words = (str(sudo), "--reuid", "65533", "--clear-groups", "sleep", "1.5")
    try:
        said = as_nobody(lambda: flags._run(words))
    finally:
        sudo.unlink()
    assert said.startswith("EnvironmentFaultError") and "another user" in said
