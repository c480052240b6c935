"""Secrets leave the words of a command line and enter the environment, or are refused."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from tuner.candidate import Candidate
from tuner.errors import UsageError
from tuner.launch import LaunchBase, launch
from tuner.placement import GpuGroup
from tuner.secret_words import part_command, part_flags, part_space
from tuner.space.space import Space


@pytest.mark.parametrize(
    "words",
    [
        ("--api-key", "sk-1", "--max-num-seqs", "8", "--hf_token=hf_2"),
        ("--max-num-seqs", "8", "--api_key=sk-1", "--hf-token", "hf_2"),
        ("--hf-token", "hf_2", "--api-key", "sk-0", "--max-num-seqs", "8", "--api-key", "sk-1", "sk-3"),
    ],
)
def test_secret_flags_leave_the_words(words: tuple[str, ...]) -> None:
    parted = part_flags(words)
    assert parted.words == ("--max-num-seqs", "8")
    assert parted.secrets == {"VLLM_API_KEY": "sk-1", "HF_TOKEN": "hf_2"}


def test_several_keys_are_counted_because_a_variable_takes_one() -> None:
    assert part_flags(("--api-key", "K1", "K2")).keys == 2
    assert part_flags(("--api-key", "K1")).keys == 1


@pytest.mark.parametrize(
    "words",
    [
        ("--api-key",),
        ("--api-key=",),
        ("--ssl-keyfile-password", "S3cret"),
        ("--otlp-traces-endpoint", "https://u:S3cret@h/x"),
        ("--model-loader-extra-config", '{"password": "S3cret"}'),
        ("--a-config.hf_token", "S3cret"),
        ("--middleware", "hf_S3cretS3cretS3cretS3cret"),
    ],
)
def test_a_secret_that_no_variable_carries_is_refused_without_showing_it(words: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        part_flags(words)
    assert "S3cret" not in caught.value.message + caught.value.hint


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program := tmp_path / "docker").write_text("#!/bin/sh\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")


@pytest.mark.usefixtures("docker")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("docker run -e HF_TOKEN=S3cret img", ("docker", "run", "-e", "HF_TOKEN", "img")),
        ("docker run --env HF_TOKEN=S3cret img", ("docker", "run", "--env", "HF_TOKEN", "img")),
        ("docker run --env=HF_TOKEN=S3cret img", ("docker", "run", "--env=HF_TOKEN", "img")),
        ("docker run -eHF_TOKEN=S3cret img", ("docker", "run", "-e", "HF_TOKEN", "img")),
        ("docker run -e A=1 -e 'HF_TOKEN=S3cret' img", ("docker", "run", "-e", "A=1", "-e", "HF_TOKEN", "img")),
        ("env HF_TOKEN=S3cret sh serve", ("env", "sh", "serve")),
        ("env A=1 HF_TOKEN=S3cret sh serve", ("env", "A=1", "sh", "serve")),
        ("/usr/bin/env -u B HF_TOKEN=S3cret sh serve", None),
        ("nice env HF_TOKEN=S3cret sh serve", ("nice", "env", "sh", "serve")),
    ],
)
def test_values_of_variables_leave_the_command(text: str, words: tuple[str, ...] | None) -> None:
    if words is None:
        with pytest.raises(UsageError):
            part_command(text)
        return
    parted = part_command(text)
    assert parted.words == words
    assert parted.secrets == {"HF_TOKEN": "S3cret"}


@pytest.mark.usefixtures("docker")
@pytest.mark.parametrize(
    "text",
    [
        "env -i HF_TOKEN=S3cret sh serve",
        "HF_TOKEN=S3cret sh serve",
        "sh -c 'HF_TOKEN=S3cret exec vllm serve'",
        "nice HF_TOKEN=S3cret sh serve",
        "docker login --password S3cret",
        "docker run --label token=S3cret img",
    ],
)
def test_a_command_whose_secret_cannot_be_taken_out_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        part_command(text)
    assert "S3cret" not in caught.value.message + caught.value.hint


@pytest.mark.usefixtures("docker")
def test_keys_of_the_command_itself_are_taken_out_too() -> None:
    parted = part_command("docker run img --model m --api-key S3cret")
    assert parted.words == ("docker", "run", "img", "--model", "m")
    assert parted.secrets == {"VLLM_API_KEY": "S3cret"}


def test_a_container_gets_its_secrets_by_name() -> None:
    base = LaunchBase(
        ("docker", "run", "-e", "HF_TOKEN", "img"), "m", (), (), (), (("A", "1"),), ("HF_TOKEN", "VLLM_API_KEY")
    )
    words = launch(base, Candidate(), GpuGroup((0,))).command
    options = [words[i + 1] for i, word in enumerate(words) if word == "-e"]
    assert options.count("HF_TOKEN") == options.count("VLLM_API_KEY") == 1
    assert "A=1" in options


def test_secrets_of_a_space_go_by_variable_and_are_refused_as_flags() -> None:
    space, secrets = part_space(Space("mine", (), env=(("A", "1"), ("HF_TOKEN", "S3cret"))))
    assert space.env == (("A", "1"),) and secrets == {"HF_TOKEN": "S3cret"}
    with pytest.raises(UsageError, match="api-key"):
        part_space(Space("mine", (), always=(("api-key", "S3cret"),)))


def test_a_python_module_has_no_secrets_by_itself() -> None:
    assert part_command(f"{sys.executable} -m tuner.sim serve").secrets == {}
