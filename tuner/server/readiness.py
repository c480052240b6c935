"""Ready, or why not; notices death before the timeout; proves that the listener is the server's own."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import httpx

from tuner.clock import Clock
from tuner.server import proctable
from tuner.server.process import ServerProcess

_POLL_S = 0.2
_OBSERVE_EVERY = 5
_HTTP_TIMEOUT_S = 0.7
"""Short, so that a server that accepts and does not answer cannot hide its death for more than a second."""

_PHASES = (
    ("loading the model", re.compile(r"Starting to load model|Loading weights|Loading safetensors")),
    ("compiling", re.compile(r"Using cache directory: .* for vLLM's torch\.compile|Dynamo bytecode transform")),
    ("measuring memory", re.compile(r"Available KV cache memory|KV cache size")),
    ("capturing CUDA graphs", re.compile(r"Capturing (?:CUDA|cudagraph)|Graph capturing finished")),
    ("warming up", re.compile(r"Warming up model|init engine \(profile")),
    ("opening the port", re.compile(r"Starting vLLM (?:API )?server")),
)


class NotReady(Enum):
    DIED = "the server ended"
    OVER_LIMIT = "the start limit passed"
    FOREIGN_LISTENER = "another process listens on the port"
    STOP_ASKED = "the start was interrupted"


class Health(Enum):
    """What one look at /health shows. `SILENT`: connected, no answer in time, as under heavy load."""

    GOOD = "good"
    ENGINE_DEAD = "engine dead"
    REFUSED = "refused"
    SILENT = "silent"


class Ownership(Enum):
    """Whose a listener must be. `UNSEEN`: in a container it belongs to a process that is no descendant of ours."""

    FAMILY = "family"
    UNSEEN = "unseen"


@dataclass(frozen=True, slots=True)
class Ready:
    """`max_model_len` is what /v1/models says, None where it does not."""

    model_name: str
    max_model_len: int | None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the server will answer. `api_key` is None where it asks for none."""

    base_url: str
    port: int
    model: str
    api_key: str | None = None

    def client(self) -> httpx.Client:
        headers = {} if self.api_key is None else {"Authorization": f"Bearer {self.api_key}"}
        # trust_env: a proxy from the environment must not be asked for 127.0.0.1.
        return httpx.Client(base_url=self.base_url, headers=headers, timeout=_HTTP_TIMEOUT_S, trust_env=False)


def health(endpoint: Endpoint) -> Health:
    try:
        with endpoint.client() as client:
            code = client.get("/health").status_code
    except httpx.TimeoutException:
        return Health.SILENT
    except httpx.HTTPError:
        return Health.REFUSED
    return Health.GOOD if code == httpx.codes.OK else Health.ENGINE_DEAD


def wait_until_ready(
    process: ServerProcess,
    endpoint: Endpoint,
    *,
    ownership: Ownership,
    log_path: Path,
    limit_s: float,
    clock: Clock,
    on_phase: Callable[[str], None],
    should_stop: Callable[[], bool],
) -> Ready | NotReady:
    """Ready: /health answers 200, the model is listed, and every listener of the port belongs to the server."""
    deadline_ns = clock.now_ns() + round(limit_s * 1e9)
    follower = _LogFollower(log_path, on_phase)
    foreign_before = False
    looks = 0
    with endpoint.client() as client:
        while True:
            if process.exit_code() is not None:
                return NotReady.DIED
            if should_stop():
                return NotReady.STOP_ASKED
            follower.look()
            listener = _listener(process, endpoint.port, ownership)
            # Twice in a row, since between our two looks the server may have opened its port.
            if listener is _Listener.FOREIGN and foreign_before:
                return NotReady.FOREIGN_LISTENER
            foreign_before = listener is _Listener.FOREIGN
            if listener is _Listener.OURS and (ready := _ask(client, endpoint.model, ownership)) is not None:
                process.observe()  # it may die under its first load: then nobody can tell whose files these were
                return ready
            if clock.now_ns() >= deadline_ns:
                return NotReady.OVER_LIMIT
            if looks % _OBSERVE_EVERY == 0:
                process.observe()
            looks += 1
            clock.sleep(_POLL_S)


class _Listener(Enum):
    NONE = "none"
    OURS = "ours"
    FOREIGN = "foreign"


def _listener(process: ServerProcess, port: int, ownership: Ownership) -> _Listener:
    """Versions up to 0.24 set SO_REUSEPORT: an orphan may listen beside our server and take a part of its traffic."""
    inodes = proctable.listening_inodes(port)
    if ownership is Ownership.UNSEEN:
        # Without host networking the container's listener is not even in this namespace: just ask.
        return _Listener.OURS
    if not inodes:
        return _Listener.NONE
    for member in process.family.living():
        inodes -= proctable.socket_inodes(member.pid)
    return _Listener.FOREIGN if inodes else _Listener.OURS


def _ask(client: httpx.Client, model: str, ownership: Ownership) -> Ready | None:
    try:
        if client.get("/health").status_code != httpx.codes.OK:
            return None
        answer = client.get("/v1/models")
        return _listed(answer.json(), model, ownership) if answer.status_code == httpx.codes.OK else None
    except (httpx.HTTPError, ValueError):
        return None  # not listening yet, or half an answer: the next look tells


def _listed(answer: object, model: str, ownership: Ownership) -> Ready | None:
    """The entry whose id or root is `model`; --served-model-name changes the id, so a proven server may differ."""
    data = answer.get("data") if isinstance(answer, dict) else None
    entries = (
        [e for e in data if isinstance(e, dict) and isinstance(e.get("id"), str)] if isinstance(data, list) else []
    )
    matching = [e for e in entries if model in (e["id"], e.get("root"))]
    if not matching and ownership is Ownership.FAMILY:
        matching = entries
    if not matching:
        return None
    length = matching[0].get("max_model_len")
    return Ready(matching[0]["id"], length if isinstance(length, int) else None)


class _LogFollower:
    """Reads what the log has gained and reports each new phase once."""

    _MOST_BYTES = 256 * 1024

    def __init__(self, path: Path, on_phase: Callable[[str], None]) -> None:
        self._path = path
        self._on_phase = on_phase
        self._offset = 0
        self._reported: set[str] = set()

    def look(self) -> None:
        with self._path.open("rb") as log:
            end = log.seek(0, 2)
            # A flood is skipped, not read: phases are a courtesy.
            log.seek(max(self._offset, end - self._MOST_BYTES))
            text = log.read(self._MOST_BYTES).decode(errors="replace")
            self._offset = log.tell()
        for phase, pattern in _PHASES:
            if phase not in self._reported and pattern.search(text):
                self._reported.add(phase)
                self._on_phase(phase)
