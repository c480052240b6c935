"""One server from its start to its end, in that order."""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tuner.launch import LaunchSpec
from tuner.secrecy import mask, mask_file
from tuner.server import gpu_memory, leftovers, logtext, proctable, running_file
from tuner.server.child import Child, ChildSpec
from tuner.server.containers import end_container, with_cid_file
from tuner.server.diagnosis import ServerPhase, diagnose, foreign_listener, obstructed, over_limit
from tuner.server.kernel_oom import oom_kills, oom_kills_since
from tuner.server.ports import HOST, fresh_port
from tuner.server.proctable import ProcessEntry
from tuner.server.readiness import Endpoint, Health, NotReady, Ready, Watch, health
from tuner.server.request import ServiceRequest
from tuner.server.shutdown import StopReport
from tuner.vllm import variables
from tuner.vllm.cause import Cause
from tuner.vllm.facts import StartFacts, parse_facts

STOP_MARGIN_S = 15.0
"""Seconds beyond its shutdown timeout that vLLM takes to close."""
DEATH_LIMIT_S = 25.0
"""Seconds until a server with a dead engine has left. vLLM looks every 5 s, and lets open requests end for 10 s."""


class Start:
    """One server. `serving` makes it and guarantees that `end` is called."""

    def __init__(self, request: ServiceRequest, number: int) -> None:
        """Measure the memory in use, then start the child. Raises OSError if the machine cannot do so, and leaves
        nothing behind then."""
        spec, port = request.deployment.specs[number], fresh_port()
        key = os.environ.get(variables.API_KEY) or None
        self.endpoint = Endpoint(f"http://{HOST}:{port}", port, request.model, key)
        self._spec = spec
        self._clock = request.clock
        self._request = request
        self._baseline = gpu_memory.baseline(request.gpu_memory, spec.gpus, request.clock)
        self._oom_kills = oom_kills()
        self._scratch = leftovers.new_scratch()
        argv = spec.argv(HOST, port)
        self._engine = argv[0] if spec.in_container else ""
        child = ChildSpec(
            argv=with_cid_file(argv, self._scratch) if spec.in_container else argv,
            env=_environment(spec, self._scratch, request.env),
            log_name=running_file.log_name(number),
            port=port,
            scratch=self._scratch,
            gpu_baseline_bytes=tuple(sorted(self._baseline.items())),
            container_engine=self._engine,
        )
        self._child = Child(request, number, child)
        self.process, self.log_path = self._child.process, self._child.log_path
        self._engines: tuple[ProcessEntry, ...] = ()
        self._watch = Watch(
            self.process, self.endpoint, self.log_path, request.on_phase, in_container=spec.in_container
        )

    # ── wait

    def look(self) -> Ready | NotReady | None:
        """Look once at the starting server; None if it is still on its way."""
        outcome = self._watch.look()
        if outcome is not None:
            self._child.note_shared_memory()
            # Engines and further API servers. Processes below these, such as torch's compilers, come and go.
            self._engines = tuple(p for p in self.process.family.living() if p.ppid == self.process.pid)
        return outcome

    def seconds(self) -> float:
        """Return the seconds since the fork."""
        return self._child.seconds()

    def refusal(self, outcome: NotReady, limit_s: float) -> Cause:
        """Explain a start that came to nothing."""
        if outcome is NotReady.FOREIGN_LISTENER:
            return foreign_listener(self.endpoint.port)
        obstacle = self._watch.obstacle
        if obstacle is not None and outcome is NotReady.OBSTRUCTED:
            return obstructed(obstacle, self.endpoint)
        cause = self._diagnose(ServerPhase.STARTING)
        return over_limit(limit_s, cause) if outcome is NotReady.OVER_LIMIT else cause

    # ── serve

    def facts(self, ready: Ready) -> StartFacts:
        """Read from the log what the server says of itself."""
        return parse_facts(logtext.read(self.log_path), max_model_len=ready.max_model_len)

    def died(self) -> Cause | None:
        """Explain why requests were lost; None if server and engine live.

        A server whose engine died answers 503, closes its port and leaves some seconds later with exit code 0. This
        waits for that. Of several engines the others are ended first, and meanwhile it answers 200; with several API
        servers it may then stay, silent. A server that merely does not answer in time counts as alive.
        """
        self.process.observe()
        lost_one = not all(map(proctable.is_alive, self._engines))
        deadline_ns = self._clock.now_ns() + round(DEATH_LIMIT_S * 1e9)
        while self.process.exit_code() is None:
            seen = health(self.endpoint)
            is_up = seen is Health.GOOD or (seen is Health.SILENT and not lost_one)
            too_late = self._clock.now_ns() >= deadline_ns
            if is_up and (too_late or not lost_one):
                return None
            if too_late:
                break
            self._clock.sleep(0.1)
        return self._diagnose(ServerPhase.SERVING)

    def _diagnose(self, phase: ServerPhase) -> Cause:
        held_gib = max(self._baseline.values()) / 2**30 if self._baseline else None
        return diagnose(
            mask(logtext.read(self.log_path)),
            exit_code=self.process.exit_code(),
            phase=phase,
            held_by_others_gib=held_gib,
            oom_kills=oom_kills_since(self._oom_kills),
        )

    # ── end

    def end(self) -> StopReport:
        """End the server and remove what it leaves. Its running file stays if something survives."""
        begun_ns = self._clock.now_ns()
        ended = self.process.stop(self._spec.shutdown_timeout_s + STOP_MARGIN_S)
        killed = ended.killed
        if self._engine:
            killed += end_container(self._engine, self._scratch)
        removed = leftovers.remove_shared_memory(self.process.shared_memory, before=self._child.shared_memory_before)
        mask_file(self.log_path)
        memory = gpu_memory.wait_for_memory(
            self._request.gpu_memory,
            self._baseline,
            self._clock,
            on_wait=self._request.on_memory_wait,
            should_stop=lambda: bool(ended.left) or self._request.should_stop(),
        )
        if not ended.left:
            removed += self._child.remove_files()
        return StopReport(
            seconds=(self._clock.now_ns() - begun_ns) / 1e9,
            killed=killed,
            left=ended.left,
            removed=removed,
            memory=memory,
            exit_code=self.process.exit_code(),
        )


def _environment(spec: LaunchSpec, scratch: Path, given: tuple[tuple[str, str], ...] = ()) -> dict[str, str]:
    """Join the environments. The launch's own variables win."""
    inherited: Mapping[str, str] = os.environ
    own = {
        # One folder for all that vLLM puts into the temporary folder: sockets, rendezvous files, metrics.
        "TMPDIR": str(scratch),
        variables.RPC_BASE_PATH: str(scratch),
        # torch would move its compile cache along with TMPDIR and compile everything anew at every start.
        "TORCHINDUCTOR_CACHE_DIR": inherited.get("TORCHINDUCTOR_CACHE_DIR")
        or f"{tempfile.gettempdir()}/torchinductor_{_user()}",
    }
    # Servers that share PROMETHEUS_MULTIPROC_DIR add their counters up in each other's /metrics.
    kept = {name: value for name, value in inherited.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    return variables.with_start_facts({**kept, **own, **dict(given), **dict(spec.env)})


def _user() -> str:
    """Return the user's name as torch has it. A container may run as a number that has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
