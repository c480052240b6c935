"""Door of this room: `with serving(request) as service:`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from tuner.errors import EnvironmentFaultError, InterruptedSearchError
from tuner.launch import Deployment, Door
from tuner.server.door import NginxDoor, required_nginx
from tuner.server.interrupts import interrupts_held, signals_interrupt
from tuner.server.readiness import POLL_S, NotReady, Ready
from tuner.server.request import ServiceRequest
from tuner.server.shutdown import StopReport, joined
from tuner.server.start import Start
from tuner.vllm.cause import Cause
from tuner.vllm.facts import StartFacts

__all__ = ["Deployment", "RunningServer", "ServerDidNotStart", "Service", "ServiceRequest", "serving"]

_START_FACTOR = 3.0
_START_SLACK_S = 60.0


class ServerDidNotStart(Exception):  # noqa: N818 - an answer; study/trial.py makes a record of it
    """Failed start of a service, which has been ended by now. `start_s`: seconds from the start to the refusal.
    `stopped` says what was left of it."""

    def __init__(self, cause: Cause, start_s: float, stopped: StopReport) -> None:
        super().__init__(cause.explanation)
        self.cause = cause
        self.start_s = start_s
        self.stopped = stopped


class RunningServer:
    """A server that is ready. `stopped` is None until it has been ended."""

    def __init__(self, start: Start, ready: Ready, start_s: float) -> None:
        self._start = start
        self.base_url = start.endpoint.base_url
        self.port = start.endpoint.port
        self.model_name = ready.model_name
        self.pid = start.process.pid
        self.log_path = start.log_path
        self.start_s = start_s
        self.facts: StartFacts = start.facts(ready)
        self.stopped: StopReport | None = None

    def alive(self) -> bool:
        """Tell whether the leader runs. Its engine may be dead all the same: see died()."""
        return self._start.process.exit_code() is None

    def died(self) -> Cause | None:
        """Explain why requests were lost; None if server and engine live."""
        return self._start.died()


class Service:
    """One or more ready servers and the address of their door.

    Attributes:
        base_url: The door's address.
        pids: Leaders of the servers, then nginx if it is the door.
        stopped: How all of them ended. None until the `with` block has been left.
    """

    def __init__(self, servers: tuple[RunningServer, ...], door: NginxDoor | None, start_s: float) -> None:
        self.servers = servers
        self._door = door
        self.base_url = door.endpoint.base_url if door else servers[0].base_url
        self.model_name = servers[0].model_name
        self.facts = tuple(server.facts for server in servers)
        self.pids = (*(server.pid for server in servers), *((door.process.pid,) if door else ()))
        self.start_s = start_s
        self.stopped: StopReport | None = None

    def alive(self) -> bool:
        """Tell whether every leader and the door run. Looks at processes alone, which takes no time."""
        return all(server.alive() for server in self.servers) and (self._door is None or self._door.alive())

    def died(self) -> Cause | None:
        """Explain the first death among the servers, then the door's; None if all of them live."""
        parts = (*self.servers, *((self._door,) if self._door else ()))
        return next((cause for part in parts if (cause := part.died()) is not None), None)


@contextmanager
def serving(request: ServiceRequest) -> Iterator[Service]:
    """Start a deployment, yield it ready, and end it always.

    All start at once, nginx included if it is the door. One that is refused or dies ends the others. Raises
    ServerDidNotStart if the start came to nothing, InterruptedSearchError if `should_stop` said so, and
    EnvironmentFaultError if nginx is missing or this machine cannot even fork or write the running file.
    """
    program = required_nginx() if request.deployment.door is Door.NGINX else None
    with signals_interrupt():
        starts: list[Start] = []
        doors: list[NginxDoor] = []
        outcome: Service | _Refused | None = None
        try:
            with interrupts_held(), _explained(request):  # no exception may come between a fork and our knowing of it
                for number in range(len(request.deployment.specs)):
                    starts.append(Start(request, number))
                if program is not None:
                    doors.append(NginxDoor(request, program, [start.endpoint for start in starts]))
            outcome = _until_ready(starts, doors[0] if doors else None, request)
            if isinstance(outcome, Service):
                yield outcome
        finally:
            with interrupts_held():
                reports = _end([*starts, *doors])
                if isinstance(outcome, Service):
                    outcome.stopped = joined(reports)
                    for server, report in zip(outcome.servers, reports, strict=False):
                        server.stopped = report
        if isinstance(outcome, _Refused):
            raise ServerDidNotStart(outcome.cause, outcome.start_s, joined(reports))


@dataclass(frozen=True, slots=True)
class _Refused:
    """Failed start, explained while the server still exists."""

    cause: Cause
    start_s: float


@contextmanager
def _explained(request: ServiceRequest) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EnvironmentFaultError(
            f"cannot start a server in {request.folder}: {error}",
            hint="check free space, permissions and the limits of processes and open files (ulimit -a)",
        ) from error


def _until_ready(starts: Sequence[Start], door: NginxDoor | None, request: ServiceRequest) -> Service | _Refused:
    """Look at servers and door until all are ready or one fails."""
    deadline_ns = request.clock.now_ns() + round(request.start_limit_s * 1e9)
    ready: dict[Start, RunningServer] = {}
    while True:
        if request.should_stop():
            raise InterruptedSearchError("interrupted while a server started", hint="start again to go on")
        for start in starts:
            outcome = start.look() if start not in ready else None if ready[start].alive() else NotReady.DIED
            if isinstance(outcome, Ready):
                ready[start] = RunningServer(start, outcome, start.seconds())
            elif outcome is not None:
                return _refused(start, outcome, request)
        waiting: list[Start | NginxDoor] = [start for start in starts if start not in ready]
        if door is not None:
            outcome = door.look(servers_are_ready=not waiting)
            if isinstance(outcome, NotReady):
                return _refused(door, outcome, request)
            if outcome is None:
                waiting.append(door)
        if not waiting:
            return Service(tuple(ready[start] for start in starts), door, max(start.seconds() for start in starts))
        if request.clock.now_ns() >= deadline_ns:
            return _refused(waiting[0], NotReady.OVER_LIMIT, request)
        request.clock.sleep(POLL_S)


def _refused(part: Start | NginxDoor, outcome: NotReady, request: ServiceRequest) -> _Refused:
    return _Refused(part.refusal(outcome, request.start_limit_s), part.seconds())


def _end(parts: Sequence[Start | NginxDoor]) -> list[StopReport]:
    """End all of them side by side, each with its grace time."""
    if len(parts) <= 1:
        return [part.end() for part in parts]
    with ThreadPoolExecutor(len(parts)) as threads:
        return [ended.result() for ended in [threads.submit(part.end) for part in parts]]


def start_limit(first_start_s: float | None, default_s: float, servers: int = 1) -> float:
    """Return the seconds after which a start is stuck, `default_s` until one has succeeded. Later starts may compile
    for another shape or capture more graphs: hence three times the first and a minute. Several servers at once share
    disk and cores: they get `default_s` at least."""
    if first_start_s is None:
        return default_s
    learnt_s = _START_FACTOR * first_start_s + _START_SLACK_S
    return max(learnt_s, default_s) if servers > 1 else learnt_s
