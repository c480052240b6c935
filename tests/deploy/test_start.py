"""start.sh and stop.sh against processes that misbehave."""

from __future__ import annotations

import dataclasses
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.deploy.conftest import assert_clean_bash, with_launch
from tests.deploy.ports import free_port
from tests.report.studies import Study
from tests.server.support import runs
from tuner.deploy.recorded import Recorded
from tuner.deploy.start import argument_lines, start_script, stop_script, write_pair, write_scripts
from tuner.errors import UsageError
from tuner.study.result import StudyResult

Run = Callable[..., subprocess.CompletedProcess[str]]


def scripts(recorded: Recorded) -> tuple[str, str]:
    return start_script(recorded), stop_script(recorded)


@pytest.fixture
def folder(local: Recorded, tmp_path: Path) -> Path:
    """A path with all that an unquoted word would break at."""
    folder = tmp_path / "my study's ü 模型 $x"
    folder.mkdir()
    write_pair(folder, local)
    return folder


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def run(folder: Path, port: int, vllm_on_path: Path) -> Iterator[Run]:
    def run_script(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(folder / name), *arguments],
            env={**os.environ, "PORT": str(port), **environment},
            capture_output=True,
            text=True,
            timeout=90,
        )

    yield run_script
    run_script("stop.sh", STOP_TIMEOUT="1")


def server_of(folder: Path, port: int) -> psutil.Process:
    return psutil.Process(int((folder / f"server-{port}.pid").read_text().split()[0]))


def test_start_waits_until_ready_is_not_repeated_and_stop_leaves_nothing(
    run: Run, folder: Path, port: int, local: Recorded
) -> None:
    started = run("start.sh")
    assert started.returncode == 0, started.stderr
    assert f"http://127.0.0.1:{port}/v1" in started.stdout
    server = server_of(folder, port)
    family = [server, *server.children(recursive=True)]
    assert len(family) == 2
    assert os.getsid(server.pid) == server.pid
    at = server.cmdline().index("serve")
    assert tuple(server.cmdline()[at + 1 :]) == (*local.launch.arguments, "--host", "127.0.0.1", "--port", str(port))
    assert "VLLM_ENABLE_STARTUP_PLAN=0" in (folder / f"server-{port}.log").read_text()
    again = run("start.sh")
    assert again.returncode == 1 and "already running: pid" in again.stderr

    stopped = run("stop.sh")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "processes: none left" in stopped.stdout
    assert f"port {port}: free" in stopped.stdout
    assert not any(runs(p.pid) for p in family)
    assert not (folder / f"server-{port}.pid").exists()
    stopped = run("stop.sh")
    assert stopped.returncode == 0 and "not running" in stopped.stdout


def test_a_taken_port_is_refused_before_anything_starts(run: Run, folder: Path, port: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        refused = run("start.sh")
    assert refused.returncode == 1
    assert f"port {port} is taken" in refused.stderr
    assert not (folder / f"server-{port}.pid").exists()


def test_a_server_that_dies_is_reported_at_once_with_the_last_lines_of_its_log(
    run: Run, folder: Path, port: int
) -> None:
    began = time.monotonic()
    died = run("start.sh", STAND_IN="dies")
    assert died.returncode == 1
    assert time.monotonic() - began < 15
    assert "max seq len (16384)" in died.stderr
    assert "before /health answered" in died.stderr
    assert not (folder / f"server-{port}.pid").exists()


def test_a_server_that_never_answers_is_ended_after_the_limit(run: Run, folder: Path, port: int) -> None:
    slow = run("start.sh", STAND_IN="slow", START_TIMEOUT="1")
    assert slow.returncode == 1
    assert "no answer from /health after 1 s" in slow.stderr
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(port) in (p.info["cmdline"] or [])]


@pytest.mark.parametrize("manner", ["stubborn", "orphan", "odd"])
def test_stop_kills_what_ignores_term(run: Run, folder: Path, port: int, manner: str) -> None:
    assert run("start.sh", STAND_IN=manner).returncode == 0
    server = server_of(folder, port)
    family = [server, *server.children(recursive=True)]
    stopped = run("stop.sh", STOP_TIMEOUT="1")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "killing" in stopped.stderr
    assert not any(runs(p.pid) for p in family)


def test_stop_finds_the_workers_of_a_server_that_was_killed(run: Run, folder: Path, port: int) -> None:
    assert run("start.sh", STAND_IN="orphan").returncode == 0
    server = server_of(folder, port)
    workers = server.children(recursive=True)
    server.kill()
    stopped = run("stop.sh", STOP_TIMEOUT="1")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert not any(runs(w.pid) for w in workers)


def test_stop_never_touches_a_process_that_got_the_pid_later(run: Run, folder: Path, port: int) -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as innocent:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        (folder / f"server-{port}.pid").write_text(f"{innocent.pid}\n1\n{boot}\n127.0.0.1\n{port}\n")
        stopped = run("stop.sh", STOP_TIMEOUT="1")
        assert innocent.poll() is None
        innocent.send_signal(signal.SIGKILL)
    assert stopped.returncode == 0
    assert "had ended before" in stopped.stderr


def test_stop_says_so_when_the_port_still_answers(run: Run, folder: Path, port: int) -> None:
    (folder / f"server-{port}.pid").write_text(f"99999999\n1\nelsewhere\n127.0.0.1\n{port}\n")
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        stopped = run("stop.sh")
    assert stopped.returncode == 1
    assert f"port {port}: something still answers" in stopped.stdout


def program(vllm_on_path: Path, name: str, text: str) -> None:
    path = vllm_on_path.with_name(name)
    path.write_text(text)
    path.chmod(0o755)


def test_stop_waits_for_the_gpus_memory_and_says_what_is_in_use(
    run: Run, folder: Path, port: int, vllm_on_path: Path
) -> None:
    calls = folder / "calls"
    program(
        vllm_on_path,
        "nvidia-smi",
        f"""#!/bin/bash
cd {shlex.quote(str(folder))}
echo x >>calls
case "$*" in
  *compute-apps*) [ $(wc -l <calls) -gt 2 ] || head -n 1 server-{port}.pid ;;
  *) echo '0, 3 MiB, 81559 MiB' ;;
esac
""",
    )
    assert run("start.sh").returncode == 0
    stopped = run("stop.sh")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert "GPU memory used now: 0, 3 MiB, 81559 MiB" in stopped.stdout
    assert calls.read_text().count("x") >= 3


def test_a_container_is_stopped_by_its_id(local: Recorded, tmp_path: Path, port: int, vllm_on_path: Path) -> None:
    program(
        vllm_on_path,
        "docker",
        f"""#!/bin/bash
echo "$@" >>{tmp_path}/docker.log
case "$1" in
  run) echo container-7 >"$3"; shift 3; exec {vllm_on_path} "$@" ;;
  stop) kill -TERM "$(head -n 1 {tmp_path}/server-{port}.pid)" ;;
esac
""",
    )
    launch = dataclasses.replace(local.launch, command=("docker", "run", "--rm", "vllm/vllm-openai:v0.32.0"))
    start, stop = write_pair(tmp_path, with_launch(local, launch=launch))
    environment = {**os.environ, "PORT": str(port)}
    try:
        subprocess.run([str(start)], env=environment, check=True, capture_output=True, timeout=60)
    finally:
        stopped = subprocess.run([str(stop)], env=environment, capture_output=True, text=True, timeout=90)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    ran, ended = (tmp_path / "docker.log").read_text().splitlines()
    assert ran.startswith("run --cidfile ") and "--rm vllm/vllm-openai:v0.32.0 Qwen/Qwen3-32B" in ran
    assert ended == "stop --time 25 container-7"


def test_foreground_becomes_the_server(folder: Path, port: int, vllm_on_path: Path) -> None:
    command = [str(folder / "start.sh"), "--foreground"]
    with subprocess.Popen(command, env={**os.environ, "PORT": str(port)}, stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        lines = [shell.stdout.readline(), shell.stdout.readline()]
        assert "Starting vLLM server\n" in lines
        assert "serve" in psutil.Process(shell.pid).cmdline()
        shell.terminate()
        assert shell.wait(timeout=20) == 0


def test_a_secret_is_asked_for_and_never_written(local: Recorded, tmp_path: Path, vllm_on_path: Path) -> None:
    launch = dataclasses.replace(local.launch, secret_env=("HF_TOKEN", "VLLM_API_KEY"))
    asked = with_launch(local, launch=launch)
    start, _ = write_pair(tmp_path, asked)
    environment = {n: v for n, v in os.environ.items() if n not in launch.secret_env} | {"HF_TOKEN": "hf_secret"}
    refused = subprocess.run([str(start)], env=environment, capture_output=True, text=True)
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: VLLM_API_KEY is not set\nhint: ")
    assert "hf_secret" not in start.read_text()


def test_every_word_of_the_launch_survives_the_shell(
    local: Recorded, tmp_path: Path, vllm_on_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nasty = (
        "a b",
        "$(touch /tmp/pwned)",
        "`id`",
        "it's",
        '"q"',
        "new\nline",
        "*",
        "",
        "-1",
        "\\",
        "!x",
        '{"a": "ü"}',
        "\x1b[31m'\\\u202e",
    )
    launch = dataclasses.replace(local.launch, arguments=nasty, flags=(), env=(("ODD", "a'b\n$HOME"),))
    plan = dataclasses.replace(local.plan, model="m\nrm -rf /tmp/x")
    start, _ = write_pair(tmp_path, dataclasses.replace(with_launch(local, launch=launch), plan=plan))
    vllm_on_path.write_text('#!/bin/bash\nprintf \'%s\\0\' "$ODD" "$@"\n')
    shown = subprocess.run([str(start), "--foreground"], capture_output=True, text=True, check=True)
    assert shown.stdout.split("\0")[:-1] == ["a'b\n$HOME", "serve", *nasty, "--host", "127.0.0.1", "--port", "8000"]
    assert "\nrm -rf" not in start.read_text()
    assert "\x1b" not in start.read_text()


def test_the_header_says_what_was_measured_and_how_far_to_trust_it(recorded: Recorded) -> None:
    start, _ = scripts(recorded)
    figures = recorded.figures
    assert figures is not None
    comments = "\n".join(line for line in start.splitlines()[:16] if line.startswith("#"))
    assert "the study's winner" in comments
    assert f"P99 TTFT {figures.p99_ttft_ms:.0f} ms" in comments
    for said in ("p99 ttft <= 500ms", "chat: prompt", "vLLM 0.32.0", "1 × NVIDIA H100 80GB HBM3", "qwen3-32b-h100"):
        assert said in comments
    assert "none of the starts behind these figures took part" in comments
    stale = dataclasses.replace(recorded.result, winner=dataclasses.replace(figures, fresh=False))
    assert "so they flatter it" in scripts(dataclasses.replace(recorded, result=stale))[0]


def test_a_result_without_figures_still_has_a_script(recorded: Recorded) -> None:
    result: StudyResult = dataclasses.replace(recorded.result, winner=None, default=None, default_seen=None)
    record = dataclasses.replace(recorded.record, levels=(), best=None)
    start, _ = scripts(dataclasses.replace(recorded, result=result, record=record))
    assert "no load level of this start kept the limits" in start


def test_the_studys_cache_is_used_only_while_it_exists(recorded: Recorded) -> None:
    start, _ = scripts(recorded)
    assert '[ -d "$here/vllm_cache" ]' in start
    assert "\nexport VLLM_CACHE_ROOT" not in start


def test_a_variable_with_an_odd_name_is_refused(local: Recorded) -> None:
    launch = dataclasses.replace(local.launch, env=(("A;rm -rf /", "1"),))
    with pytest.raises(UsageError):
        scripts(with_launch(local, launch=launch))


def test_arguments_are_grouped_by_flag_and_negative_numbers_are_values() -> None:
    words = ("model", "--max-model-len", "-1", "--flag", "-O3", "--sizes", "1", "2")
    assert list(argument_lines(words)) == [
        ("model",),
        ("--max-model-len", "-1"),
        ("--flag",),
        ("-O3",),
        ("--sizes", "1", "2"),
    ]


def test_scripts_are_written_from_the_studys_files_alone(study: Study) -> None:
    assert study.result is not None and study.result.winner is not None
    assert write_scripts(study.folder) == study.folder / "start.sh"
    assert f"trial {study.result.winner.trials[0]}," in (study.folder / "start.sh").read_text()
    write_scripts(study.folder, trial=0)
    assert "vLLM's default configuration" in (study.folder / "start.sh").read_text()
    with pytest.raises(UsageError, match="no trial 999"):
        write_scripts(study.folder, trial=999)


CONTAINER = ("docker", "run", "--gpus", "all", "--network", "host", "vllm/vllm-openai:v0.32.0")


@pytest.mark.parametrize("kind", ["gpus", "plain", "container"])
def test_scripts_are_clean_bash(recorded: Recorded, local: Recorded, tmp_path: Path, kind: str) -> None:
    container = with_launch(local, launch=dataclasses.replace(local.launch, command=CONTAINER))
    chosen = {"gpus": recorded, "plain": local, "container": container}[kind]
    assert_clean_bash(*write_pair(tmp_path, chosen))


def test_what_the_user_reads_comes_first_and_whole(recorded: Recorded) -> None:
    start, _ = scripts(recorded)
    theirs, _, ours = start.partition("\n# ── Below")
    launch = recorded.launch
    assert all(" ".join(words) in theirs for words in argument_lines(launch.arguments))
    assert all(name in theirs for name, _ in recorded.env)
    assert " ".join(launch.prefix) in theirs and theirs.endswith('--host "$HOST" --port "$PORT"\n)\n')
    assert "() {" not in theirs and len(theirs.splitlines()) <= 60
    assert launch.arguments[0] not in ours
