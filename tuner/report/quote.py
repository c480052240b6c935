"""Recorded launch as text for production, the same on the page and in the files of deploy/."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from tuner.launch import Deployment, Door, LaunchSpec, deployment
from tuner.server.ports import HOST
from tuner.study.plan import StudyPlan
from tuner.study.record import TrialRecord
from tuner.vllm import variables

PORT = 8000
"""Port of the deployment: of its only server, or of its door."""

CACHES = (variables.CACHE_ROOT, "TORCHINDUCTOR_CACHE_DIR")
"""Variables that point into the study's folder. They make a start quicker and are never needed."""
TRIAL_ONLY = (variables.RPC_BASE_PATH,)
"""Variables that point into one trial's folder and mean nothing afterwards."""


def production(record: TrialRecord, plan: StudyPlan) -> Deployment:
    """Return the servers of the whole machine and their door. A trial of one server stands for all of its layout."""
    if record.replicas == 1:
        return Deployment(record.start.launches, record.start.door)
    groups = plan.placed(plan.layout_of(record.candidate)).machine
    return deployment(plan.base, record.candidate, groups, plan.doors[0] if plan.doors else Door.NGINX)


def server_ports(servers: int) -> tuple[int, ...]:
    """Return the servers' ports. A single server has the door's own, several have those after it."""
    return (PORT,) if servers == 1 else tuple(range(PORT + 1, PORT + 1 + servers))


def production_env(launch: LaunchSpec) -> tuple[tuple[str, str], ...]:
    """Return the recorded environment without variables that point into the study's folder."""
    return tuple((n, v) for n, v in launch.env if n not in (*CACHES, *TRIAL_ONLY))


def shell_word(text: str) -> str:
    """Quote a word for bash. Control characters are spelt out, so that no page and no terminal acts on them."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return "$'" + "".join(c if c.isprintable() else _escape(c) for c in escaped) + "'"


def _escape(character: str) -> str:
    # Bytes rather than a code point: that would depend on the user's locale.
    names = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}
    return names.get(character) or "".join(f"\\x{byte:02x}" for byte in character.encode(errors="surrogateescape"))


def shell_line(launch: LaunchSpec, port: int = PORT) -> str:
    """Return the launch as one line for a shell."""
    words = [f"{name}={shell_word(value)}" for name, value in production_env(launch)]
    return " ".join([*words, *map(shell_word, launch.argv(HOST, port))])


def shell_lines(launches: Sequence[LaunchSpec]) -> tuple[str, ...]:
    """Return each server's launch as one line for a shell, with the port that the deployment's door expects."""
    ports = server_ports(len(launches))
    return tuple(shell_line(launch, port=port) for launch, port in zip(launches, ports, strict=True))
