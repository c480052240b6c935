"""Relative paths among the user's own words mean the same from every folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.own_words import absolute_command, absolute_flags, absolute_space, absolute_storage
from tuner.space.space import Space

FILES = ("vllm.yaml", "mine/config.yaml", "template.jinja", "plain", "loras/a/adapter.json", "bin/vllm", "draft/x.json")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("--config", "vllm.yaml"), ("--config", "@/vllm.yaml")),
        (("--config=./vllm.yaml",), ("--config=@/vllm.yaml",)),
        (("--config", "mine/config.yaml"), ("--config", "@/mine/config.yaml")),
        (("--config", "plain"), ("--config", "@/plain")),
        (("--chat-template", "template.jinja"), ("--chat-template", "@/template.jinja")),
        (("--chat_template", "./plain"), ("--chat_template", "@/plain")),
        (("--tokenizer", "draft"), ("--tokenizer", "draft")),
        (("--tokenizer", "./draft"), ("--tokenizer", "@/draft")),
        (("--tokenizer", "org/name"), ("--tokenizer", "org/name")),
        (("--lora-modules", "a=loras/a", "b=./loras/a"), ("--lora-modules", "a=@/loras/a", "b=@/loras/a")),
        (("--quantization", "plain", "--max-num-seqs", "8"), ("--quantization", "plain", "--max-num-seqs", "8")),
        (("--config", "/etc/vllm.yaml"), ("--config", "/etc/vllm.yaml")),
        (("--chat-template", "{% for m in messages %}"), ("--chat-template", "{% for m in messages %}")),
        (("-tp", "2", "--no-enable-prefix-caching"), ("-tp", "2", "--no-enable-prefix-caching")),
    ],
)
def test_paths_of_flags_are_absolute_and_other_values_stay(
    given: tuple[str, ...], expected: tuple[str, ...], here: Path
) -> None:
    assert absolute_flags(given) == tuple(word.replace("@", str(here)) for word in expected)


def test_paths_in_json_are_absolute(here: Path) -> None:
    words = ("--speculative-config", '{"model": "./draft", "method": "eagle", "num_speculative_tokens": 3}')
    config = json.loads(absolute_flags(words)[1])
    assert config == {"model": str(here / "draft"), "method": "eagle", "num_speculative_tokens": 3}
    modules = ('{"name": "a", "path": "loras/a"}', "[not json")
    assert json.loads(absolute_flags(("--lora-modules", *modules))[1])["path"] == str(here / "loras" / "a")
    same = ("--hf-overrides", '{"a":1}')
    assert absolute_flags(same) == same


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("./bin/vllm serve", "@/bin/vllm serve"),
        ("bin/vllm serve", "@/bin/vllm serve"),
        ("env X=1 P=./mine ./bin/vllm serve", "env X=1 P=@/mine @/bin/vllm serve"),
        ("taskset -c 0-3 bin/vllm serve", "taskset -c 0-3 @/bin/vllm serve"),
        ("python -m vllm.entrypoints.openai.api_server", "python -m vllm.entrypoints.openai.api_server"),
        ("vllm serve", "vllm serve"),
        (
            "docker run -v ./mine:/mine --volume=mine:/m --env-file plain -v vol:/v me/draft:1",
            "docker run -v @/mine:/mine --volume=mine:/m --env-file @/plain -v vol:/v me/draft:1",
        ),
    ],
)
def test_paths_of_a_command_are_absolute(given: str, expected: str, here: Path) -> None:
    assert absolute_command(given.split()) == tuple(expected.replace("@", str(here)).split())


def test_paths_of_a_space_are_absolute(here: Path) -> None:
    space = Space("mine", (), always=(("chat-template", "template.jinja"), ("dtype", "auto"), ("max-num-seqs", 8)))
    expected = (("chat-template", str(here / "template.jinja")), ("dtype", "auto"), ("max-num-seqs", 8))
    assert absolute_space(space).always == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///mine.db", "sqlite:///@/mine.db"),
        ("sqlite:///study.db?timeout=9", "sqlite:///@/study.db?timeout=9"),
        ("sqlite+pysqlite:///a/b.db", "sqlite+pysqlite:///@/a/b.db"),
        ("sqlite:////data/b.db", "sqlite:////data/b.db"),
        ("sqlite://", "sqlite://"),
        ("sqlite:///:memory:", "sqlite:///:memory:"),
        ("postgresql://u:p@host/db", "postgresql://u:p@host/db"),
    ],
)
def test_a_storage_in_a_file_is_absolute(url: str, expected: str, here: Path) -> None:
    assert absolute_storage(url) == expected.replace("///@", f"///{here}")


@given(words=st.lists(st.text(max_size=12), max_size=5))
def test_any_words_are_taken_and_twice_is_once(words: list[str]) -> None:
    once = absolute_flags(words)
    assert absolute_flags(once) == once
    command = absolute_command(words)
    assert len(command) == len(words) and absolute_command(command) == command
