"""The one place that decides what is a secret, and the one that masks it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

REDACTED = "[redacted]"

_NAME = re.compile(
    r"(?:(?:^|[_.-])(?:token|pwd|auth|secret|key)|api_?key|access[_-]?key[_-]?id|passw(?:or)?d|passphrase)s?$", re.I
)
"""End of the name of a flag or variable that holds a secret. Paths, sockets and counts of tokens end otherwise."""
_NO_SECRETS = re.compile(r"(?:num|max|min|batched|pad|eos|bos)[_-](?:[a-z]+[_-])*tokens?$|^(?:OLD)?PWD$", re.I)
_LEAST_CHARS = 4
"""Shortest value that is masked wherever it stands. To mask a shorter one would tear texts apart and hide nothing."""
_SURE_CHARS = 8
"""Shortest plain word that is masked everywhere. Users write `vllm`, `EMPTY` or `true` where a key is required."""

_TOKEN = (
    r"\b(?-i:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|nvapi-[\w-]{16,}|xox[abps]-[\w-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]+\.[\w-]+)"
)
_NAMED = (
    r"(?P<name>\b(?:authorization\W{1,3}(?:bearer|basic)|bearer)\s+"
    r"|--[a-z_-]*(?:api[_-]key|token|password)[ =:]+['\"]?"
    r"|(?-i:\b[A-Z0-9_]*(?:TOKEN|[A-Z]_KEY|APIKEY|SECRET|PASSWORD|PASSWD|PASSPHRASE|_KEY_ID|_AUTH|_PWD))\s?[=:]\s?['\"]?"
    r"|['\"]?\b(?:\w*api_?key|hf_token|\w*password|\w*_secret|secret_\w+|(?:access|auth)_token)\b['\"]?\s*[:=]\s*['\"]"
    r"|[?&](?:\w*token|sig|\w*signature|\w*key|\w*password|x-amz-[\w-]+)=)"
    r"(?P<value>(?!None\b|\[redacted)[^\s'\"&,\])}]+)"
)
_LISTED = r"(?P<list>\b(?:api_?key|token)s?['\"]?\s*[:=]\s*\[)(?P<values>[^\]\n]*[^\]\s][^\]\n]*)\]"
_URL = r"(?P<user>[a-z][a-z0-9+.-]*://[^\s/:@'\"]*:)(?P<password>[^\s/@'\"]+)@"
_ANY = re.compile("|".join((f"(?P<token>{_TOKEN})", _URL, _LISTED, _NAMED)), re.I)
_SIGNS = (
    "hf_", "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "nvapi-", "xox", "akia", "asia",
    "aiza", "eyj", "bearer", "basic ", "passw", "passphrase", "secret", "_key", "i-key", "apikey", "token=", "token:",
    "token'", 'token"', "token =", "token :", "-token", "_token", "tokens=", "tokens:", "_auth", "_pwd", "sig=",
    "signature=", "x-amz-", "key=", "@",
)  # fmt: skip
"""What a line has, in lower case, that holds something like a secret. Most lines of a long log have nothing of it."""
_CHUNK_BYTES = 2**20


def is_secret(name: str) -> bool:
    """Return True if a flag, a variable or a key of this name holds a secret."""
    return _NAME.search(name) is not None and _NO_SECRETS.search(name) is None


def secret_values(env: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """List the values of secret variables, of this process's environment by default. The longest come first."""
    values = {value for name, value in (os.environ if env is None else env).items() if is_secret(name)}
    return tuple(sorted(filter(_is_telling, values), key=len, reverse=True))


def mask(text: str, values: Iterable[str] | None = None) -> str:
    """Replace secrets: the `values`, those of the environment by default, and anything that looks like one."""
    for value in secret_values() if values is None else values:
        text = text.replace(value, REDACTED)
    if not _may_hold_secret(text):
        return text
    return "\n".join(_ANY.sub(_masked, line) if _may_hold_secret(line) else line for line in text.split("\n"))


def holds_secret(text: str) -> bool:
    """Return True if a text shows something that looks like a secret."""
    return mask(text, ()) != text


def mask_file(path: Path) -> None:
    """Mask a finished log. A file without secrets is not touched."""
    values = tuple(value.encode().decode("latin-1") for value in secret_values())
    if not path.exists() or all(masked == chunk for chunk, masked in _chunks(path, values)):
        return
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as target:
            target.writelines(masked for _, masked in _chunks(path, values))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def mask_password(url: str) -> str:
    """Mask the password of a database's URL, of which any character but @ may be a part."""
    return mask(re.sub(r"(://[^:/@]*:)[^@]+@", rf"\1{REDACTED}@", url), ())


def _is_telling(value: str) -> bool:
    return len(value) >= _SURE_CHARS or (len(value) >= _LEAST_CHARS and not value.isalpha())


def _masked(found: re.Match[str]) -> str:
    if found["user"]:
        return f"{found['user']}{REDACTED}@"
    if found["list"]:
        values = found["values"].strip()
        return found[0] if values.strip("[]") in ("None", REDACTED.strip("[]")) else f"{found['list']}{REDACTED}]"
    return f"{found['name'] or ''}{REDACTED}"


def _may_hold_secret(text: str) -> bool:
    lower = text.lower()
    return any(sign in lower for sign in _SIGNS)


def _chunks(path: Path, values: Iterable[str]) -> Iterator[tuple[bytes, bytes]]:
    """Read whole lines, as they are and masked. Latin-1 gives every byte back."""
    with path.open("rb") as file:
        while lines := file.readlines(_CHUNK_BYTES):
            chunk = b"".join(lines)
            yield chunk, mask(chunk.decode("latin-1"), values).encode("latin-1")
