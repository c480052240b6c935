"""`with running(launch, …) as server:` the only door of this room."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tuner.clock import Clock
from tuner.errors import EnvironmentFaultError, InterruptedSearchError
from tuner.launch import LaunchSpec
from tuner.placement import GpuGroup
from tuner.server.diagnosis import Phase
from tuner.server.interrupts import interrupts_held, sigterm_interrupts
from tuner.server.leftovers import GpuMemory
from tuner.server.readiness import Health, NotReady, Ready
from tuner.server.shutdown import StopReport
from tuner.server.start import Start
from tuner.vllm.cause import Cause
from tuner.vllm.facts import StartFacts

DEATH_LIMIT_S = 12.0
"""vLLM looks every 5 s whether its engine has died, and then needs a moment to leave."""

_START_FACTOR = 3.0
_START_SLACK_S = 60.0


class ServerDidNotStart(Exception):  # noqa: N818 - an answer; study/trial.py makes a record of it
    """The server ended, hung or answered wrongly before it was ready; it has been ended by now.

    `start_s`: seconds from the start to the refusal. `stopped` says what was left of it.
    """

    def __init__(self, cause: Cause, start_s: float, stopped: StopReport) -> None:
        super().__init__(cause.explanation)
        self.cause = cause
        self.start_s = start_s
        self.stopped = stopped


class RunningServer:
    """A server that is ready. `stopped` is None until the `with` block has been left."""

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
        """Whether the leader runs. It may still have lost its engine: see died()."""
        return self._start.process.exit_code() is None

    def died(self) -> Cause | None:
        """To be called when load was lost. None when server and engine live.

        A server whose engine died answers 503, closes its port and leaves some seconds later with exit code 0: waits
        for that, up to DEATH_LIMIT_S. One that lives and merely does not answer in time counts as alive.
        """
        start = self._start
        start.process.observe()
        deadline_ns = start.clock.now_ns() + round(DEATH_LIMIT_S * 1e9)
        while self.alive() and start.clock.now_ns() < deadline_ns:
            if start.health() in (Health.GOOD, Health.SILENT):
                return None
            start.clock.sleep(0.1)
        return start.diagnose(Phase.SERVING)


@contextmanager
def running(
    spec: LaunchSpec,
    *,
    log_path: Path,
    model: str,
    start_limit_s: float,
    clock: Clock,
    gpu_memory: GpuMemory,
    group: GpuGroup,
    on_phase: Callable[[str], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    host: str = "127.0.0.1",
) -> Iterator[RunningServer]:
    """Starts `spec`, waits until it is ready, and ends it whatever happens inside.

    `log_path` gets the server's output; its folder also gets running.json while the server lives. Raises
    ServerDidNotStart for a start that came to nothing, InterruptedSearchError when `should_stop` said so, and
    EnvironmentFaultError when this machine cannot even fork or write the record of the start.
    """
    with sigterm_interrupts():
        start: Start | None = None
        server: RunningServer | None = None
        refusal: Cause | None = None
        start_s = 0.0
        try:
            with interrupts_held():  # between the fork and our knowing of it there is no place for an exception
                start = _start(spec, log_path, model, clock, gpu_memory, group, host)
            outcome = start.wait(start_limit_s, on_phase or _ignore, should_stop or _never)
            start_s = start.seconds()
            if isinstance(outcome, Ready):
                server = RunningServer(start, outcome, start_s)
                yield server
            elif outcome is NotReady.STOP_ASKED:
                raise InterruptedSearchError("interrupted while a server started", hint="start again to go on")
            else:
                refusal = start.refusal(outcome, start_limit_s)
        finally:
            if start is not None:
                with interrupts_held():
                    stopped = start.end()
                    if server is not None:
                        server.stopped = stopped
        if refusal is not None:
            raise ServerDidNotStart(refusal, start_s, stopped)


def _start(
    spec: LaunchSpec, log_path: Path, model: str, clock: Clock, gpu_memory: GpuMemory, group: GpuGroup, host: str
) -> Start:
    try:
        return Start(spec, log_path, model, clock, gpu_memory, group, host)
    except OSError as error:
        raise EnvironmentFaultError(
            f"cannot start a server in {log_path.parent}: {error}",
            hint="check free space, permissions and the limits of processes and open files (ulimit -a)",
        ) from error


def start_limit(first_start_s: float | None, default_s: float) -> float:
    """Seconds after which a start counts as stuck: `default_s` until a first start has shown what this model takes.

    Later starts may have to compile for another shape or capture more graphs, hence three times the first and a minute.
    """
    return default_s if first_start_s is None else _START_FACTOR * first_start_s + _START_SLACK_S


def _ignore(_phase: str) -> None:
    pass


def _never() -> bool:
    return False
