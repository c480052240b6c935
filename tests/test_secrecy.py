"""What is a secret, and that no text and no log keeps one."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tuner.secrecy import holds_secret, is_secret, mask, mask_file, mask_password, secret_values


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "VLLM_API_KEY", "OPENAI_KEY", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD",
        "AWS_ACCESS_KEY_ID", "MYSQL_PWD", "MY_SECRET", "api-key", "hf-token", "ssl-keyfile-password", "x.token",
    ],
)  # fmt: skip
def test_names_of_secrets_are_known_by_their_end(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    [
        "PWD", "OLDPWD", "SSH_AUTH_SOCK", "TOKENIZERS_PARALLELISM", "HF_TOKEN_PATH", "max-num-batched-tokens",
        "max-num-scheduled-tokens", "long-prefill-token-threshold", "ssl-keyfile", "MONKEY", "eos-token",
    ],
)  # fmt: skip
def test_counts_paths_and_sockets_are_no_secrets(name: str) -> None:
    assert not is_secret(name)


SHOWN = [
    "--api-key S3cretValue",
    "--api-key=S3cretValue",
    "HF_TOKEN=S3cretValue",
    "VLLM_API_KEY='S3cretValue'",
    "WANDB_API_KEY: S3cretValue",
    "AWS_SECRET_ACCESS_KEY=S3cretValue",
    "AWS_ACCESS_KEY_ID = S3cretValue",
    "PGPASSWORD=S3cretValue psql",
    "'api_key': ['S3cretValue'], 'port': 1",
    "'api_key': ['first', 'S3cretValue', 'S3cretOther'], 'port': 1",
    '{"password": "S3cretValue", "a": 1}',
    'Authorization: Bearer S3cretValue"',
    "token hf_S3cretValueS3cretValue here",
    "key sk-S3cretValueS3cretValue",
    "ghp_S3cretValueS3cretValue",
    "postgresql://tuner:S3cretValue@db.local:5432/optuna",
    "https://user:S3cretValue@hub.local/model",
    "redis://:S3cretValue@cache",
    "GET https://bucket/x?X-Amz-Signature=S3cretValue&a=1",
    "https://hub.local/x?token=S3cretValue",
    "aws AKIAS3CRETS3CRETS3CR of the bucket",
    "ASIAS3CRETS3CRETS3CR",
]


@pytest.mark.parametrize("text", SHOWN)
def test_what_looks_like_a_secret_is_masked(text: str, tmp_path: Path) -> None:
    masked = mask(text, ())
    assert "s3cret" not in masked.lower()
    assert mask(masked, ()) == masked, "masked twice is masked once"
    assert holds_secret(text) and not holds_secret(masked)
    (path := tmp_path / "server.log").write_bytes(b"\xff before\n" + text.encode() + b"\nafter")
    mask_file(path)
    assert path.read_bytes() == b"\xff before\n" + masked.encode() + b"\nafter"


@pytest.mark.parametrize(
    "text",
    [
        "non-default args: {'api_key': None, 'ssl_keyfile': '/etc/k'} 'token_ids': [1, 2] --max-num-seqs 4",
        "Avg prompt throughput: 10.0 tokens/s, Avg generation throughput: 3.1 tokens/s",
        "max_num_batched_tokens=2048 num_tokens: 12 'eos_token': '</s>' cache_key: abc stop_token_ids=[1]",
        "http://127.0.0.1:8000/v1/models of me@host, tcp://10.0.0.1:29500",
    ],
)
def test_ordinary_words_stay(text: str) -> None:
    assert mask(text, ()) == text


def test_values_of_secret_variables_are_masked_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_OWN_TOKEN", "correct-horse")
    monkeypatch.setenv("MY_OTHER_TOKEN", "correct-horse-battery")
    assert mask("x=correct-horse-battery; correct-horse.") == "x=[redacted]; [redacted]."


def test_a_word_that_stands_for_no_key_does_not_tear_a_log_apart() -> None:
    env = {"VLLM_API_KEY": "vllm", "A_TOKEN": "true", "B_TOKEN": "abc", "C_TOKEN": "s3crt", "D_TOKEN": "longenough"}
    assert secret_values(env) == ("longenough", "s3crt")


def test_a_log_without_secrets_is_not_touched(tmp_path: Path) -> None:
    (path := tmp_path / "server.log").write_bytes(b"one\n\xff two\n")
    before = path.stat()
    mask_file(path)
    mask_file(tmp_path / "none.log")
    assert path.stat() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_long_log_is_masked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_OWN_TOKEN", "correct-horse")
    path = tmp_path / "server.log"
    line = b"INFO Avg prompt throughput: 1234.5 tokens/s, Running: 64 reqs, GPU KV cache usage: 45.6%\n"
    path.write_bytes(line * 200_000 + b"correct-horse\n")
    begun = time.monotonic()
    mask_file(path)
    assert time.monotonic() - begun < 20
    assert path.read_bytes().endswith(b"%\n[redacted]\n")


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("postgresql://u:p/w:x@h/db", "postgresql://u:[redacted]@h/db"),
        ("mysql+pymysql://u:p%40@h/db?ssl_key=/a", "mysql+pymysql://u:[redacted]@h/db?ssl_key=[redacted]"),
        ("postgresql://h/db?user=u&password=S3cret", "postgresql://h/db?user=u&password=[redacted]"),
        ("sqlite:////data/study.db", "sqlite:////data/study.db"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
    ],
)
def test_a_storage_shows_everything_but_its_password(url: str, masked: str) -> None:
    assert mask_password(url) == masked
