"""A starting server as seen from outside."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import httpx

from tuner.http import control_client
from tuner.server import proctable
from tuner.server.process import ServerProcess
from tuner.vllm.log_lines import READY, START_PHASES

POLL_S = 0.2
"""Seconds between two looks at a starting server."""
_OBSERVE_EVERY = 5
_HTTP_TIMEOUT_S = 0.7
"""Seconds for an answer of a server that was ready. A silent one cannot hide its death for longer."""

_START_TIMEOUT_S = 5.0
"""Seconds for an answer of a starting server, which may be busy with its first steps."""

GRACE_S = 60.0
"""Seconds that a server which calls itself ready gets to be reachable."""


class NotReady(Enum):
    """Reasons why a start came to nothing."""

    DIED = "the server ended"
    OVER_LIMIT = "the start limit passed"
    FOREIGN_LISTENER = "another process listens on the port"
    OBSTRUCTED = "it will never answer as it must"


class Health(Enum):
    """One look at /health. `SILENT`: connected, no answer in time, as under heavy load."""

    GOOD = "good"
    ENGINE_DEAD = "engine dead"
    REFUSED = "refused"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class Ready:
    """Answer of /v1/models. `max_model_len` is None if it is not given."""

    model_name: str
    max_model_len: int | None


class Obstacle(Enum):
    """Signs that a server will not get ready by waiting."""

    KEY = "key"
    ENCRYPTED = "encrypted"
    NO_LISTENER = "no-listener"
    NOT_REACHED = "not-reached"
    OTHER_MODEL = "other-model"
    OTHER_PAGES = "other-pages"

    @property
    def is_certain(self) -> bool:
        return self in (Obstacle.KEY, Obstacle.ENCRYPTED)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a server. `api_key` is None if it asks for none."""

    base_url: str
    port: int
    model: str
    api_key: str | None = None

    def client(self, timeout_s: float = _HTTP_TIMEOUT_S) -> httpx.Client:
        """Open a client for the server's control pages."""
        return control_client(self.base_url, timeout_s=timeout_s, api_key=self.api_key)


def health(endpoint: Endpoint) -> Health:
    """Ask /health once."""
    try:
        with endpoint.client() as client:
            code = client.get("/health").status_code
    except httpx.TimeoutException:
        return Health.SILENT
    except httpx.HTTPError:
        return Health.REFUSED
    return Health.GOOD if code == httpx.codes.OK else Health.ENGINE_DEAD


class Watch:
    """Successive looks at one starting server. A server is ready when /health answers 200, the model is listed, and
    every listener of the port is its own."""

    def __init__(
        self,
        process: ServerProcess,
        endpoint: Endpoint,
        log_path: Path,
        on_phase: Callable[[str], None],
        *,
        in_container: bool,
    ) -> None:
        self._process = process
        self._endpoint = endpoint
        self._in_container = in_container
        self._log = _LogFollower(log_path, on_phase)
        self._foreign_before = False
        self._looks = 0
        self.obstacle: Obstacle | None = None
        """What the last look met. None if it may go by itself."""

    def look(self) -> Ready | NotReady | None:
        """Look once; None if the server is still on its way."""
        if self._process.exit_code() is not None:
            return NotReady.DIED
        self._log.look()
        listener = _listener(self._process, self._endpoint.port, in_container=self._in_container)
        # Twice in a row: the server may have opened its port between our two looks.
        if listener is _Listener.FOREIGN and self._foreign_before:
            return NotReady.FOREIGN_LISTENER
        self._foreign_before = listener is _Listener.FOREIGN
        ready = self._ask() if listener is _Listener.OURS else None
        if listener is not _Listener.OURS:
            self.obstacle = Obstacle.NO_LISTENER if listener is _Listener.NONE else None
        if ready is not None or self._looks % _OBSERVE_EVERY == 0:
            self._process.observe()  # a server that dies under its first load leaves files that were seen here
        self._looks += 1
        if ready is None and self.obstacle is not None and (self.obstacle.is_certain or self._log.ready_s > GRACE_S):
            return NotReady.OBSTRUCTED
        return ready

    def _ask(self) -> Ready | None:
        self.obstacle = None
        try:
            with self._endpoint.client(_START_TIMEOUT_S) as client:
                for page in ("/health", "/v1/models"):
                    answer = client.get(page)
                    if answer.status_code != httpx.codes.OK:
                        self.obstacle = _refusal(answer.status_code)
                        return None
            ready = _listed(answer.json(), self._endpoint.model, proven_ours=not self._in_container)
            self.obstacle = None if ready else Obstacle.OTHER_MODEL
            return ready
        except httpx.TimeoutException:
            return None  # busy: the next look decides
        except httpx.ConnectError:
            self.obstacle = Obstacle.NOT_REACHED
        except (httpx.HTTPError, ValueError):
            self.obstacle = Obstacle.ENCRYPTED if _speaks_tls(self._endpoint) else Obstacle.OTHER_PAGES
        return None


def _refusal(status: int) -> Obstacle | None:
    """Read the status of a page. A server that still loads may answer 503."""
    if status in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return Obstacle.KEY
    return Obstacle.OTHER_PAGES if status < httpx.codes.INTERNAL_SERVER_ERROR else None


def _speaks_tls(endpoint: Endpoint) -> bool:
    """Tell if the port answers in TLS what it did not answer in plain HTTP."""
    url = endpoint.base_url.replace("http:", "https:", 1)
    try:
        with control_client(url, timeout_s=_START_TIMEOUT_S, insecure=True) as client:
            client.get("/health")
    except httpx.HTTPError:
        return False
    return True


class _Listener(Enum):
    NONE = "none"
    OURS = "ours"
    FOREIGN = "foreign"


def _listener(process: ServerProcess, port: int, *, in_container: bool) -> _Listener:
    """Decide whose sockets listen on the port. vLLM up to 0.24 sets SO_REUSEPORT: an orphan may listen beside our
    server and take a part of its traffic."""
    if in_container:
        # Without host networking the container's listener is not even in this namespace.
        return _Listener.OURS
    inodes = proctable.listening_inodes(port)
    if not inodes:
        return _Listener.NONE
    for member in process.family.living():
        inodes -= proctable.socket_inodes(member.pid)
    return _Listener.FOREIGN if inodes else _Listener.OURS


def _listed(answer: object, model: str, *, proven_ours: bool) -> Ready | None:
    """Find the entry whose id or root is `model`. --served-model-name changes the id, so a proven server may differ."""
    data = answer.get("data") if isinstance(answer, dict) else None
    entries = (
        [e for e in data if isinstance(e, dict) and isinstance(e.get("id"), str)] if isinstance(data, list) else []
    )
    matching = [e for e in entries if model in (e["id"], e.get("root"))]
    if not matching and proven_ours:
        matching = entries
    if not matching:
        return None
    length = matching[0].get("max_model_len")
    return Ready(matching[0]["id"], length if isinstance(length, int) else None)


class _LogFollower:
    """Reader of new log text that reports each phase once, and notes when the server calls itself ready."""

    _MOST_BYTES = 256 * 1024

    def __init__(self, path: Path, on_phase: Callable[[str], None]) -> None:
        self._path = path
        self._on_phase = on_phase
        self._offset = 0
        self._reported: set[str] = set()
        self._ready_at_s: float | None = None

    @property
    def ready_s(self) -> float:
        """Return the seconds since the server called itself ready, 0 before."""
        return 0.0 if self._ready_at_s is None else time.monotonic() - self._ready_at_s

    def look(self) -> None:
        with self._path.open("rb") as log:
            end = log.seek(0, 2)
            # A flood is skipped, not read: phases are a courtesy.
            log.seek(max(self._offset, end - self._MOST_BYTES))
            text = log.read(self._MOST_BYTES).decode(errors="replace")
            self._offset = log.tell()
        if self._ready_at_s is None and READY.search(text):
            self._ready_at_s = time.monotonic()
        for phase, pattern in START_PHASES:
            if phase not in self._reported and pattern.search(text):
                self._reported.add(phase)
                self._on_phase(phase)
