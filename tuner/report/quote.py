"""Parts of a recorded launch that are quoted for production, on the page and in the files of deploy/."""

from __future__ import annotations

import shlex

from tuner.launch import LaunchSpec
from tuner.vllm import variables

CACHES = (variables.CACHE_ROOT, "TORCHINDUCTOR_CACHE_DIR")
"""Variables that point into the study's folder. They make a start quicker there, and are never needed."""
TRIAL_ONLY = (variables.RPC_BASE_PATH,)
"""Variables that point into one trial's folder and mean nothing afterwards."""


def production_env(launch: LaunchSpec) -> tuple[tuple[str, str], ...]:
    """The recorded environment without what belongs to the study's own folders."""
    return tuple((n, v) for n, v in launch.env if n not in (*CACHES, *TRIAL_ONLY))


def cache_env(launch: LaunchSpec) -> tuple[tuple[str, str], ...]:
    return tuple((n, v) for n, v in launch.env if n in CACHES)


def shell_word(text: str) -> str:
    """One word for bash. Control characters are spelt out, so that neither a page nor a terminal acts on them."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(c if c.isprintable() else _escape(c) for c in escaped) + "'"


def _escape(character: str) -> str:
    # Bytes rather than a code point: that would depend on the locale of whoever runs it.
    names = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return names.get(character) or "".join(f"\\x{byte:02x}" for byte in character.encode())


def shell_line(launch: LaunchSpec, host: str = "127.0.0.1", port: int = 8000) -> str:
    """One line to paste into a shell."""
    words = [f"{name}={shell_word(value)}" for name, value in production_env(launch)]
    return " ".join([*words, *map(shell_word, launch.argv(host, port))])
