"""One start of one server: what belongs to it, from the choice of its port to the last file that it leaves."""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from tuner.clock import Clock
from tuner.launch import LaunchSpec
from tuner.placement import GpuGroup
from tuner.server import leftovers, logtext, proctable, running_file
from tuner.server.containers import end_container, with_cid_file
from tuner.server.diagnosis import Phase, diagnose, foreign_listener, over_limit
from tuner.server.leftovers import GpuMemory
from tuner.server.ports import fresh_port
from tuner.server.process import ServerProcess, spawn
from tuner.server.proctable import FileId, ProcessEntry
from tuner.server.readiness import Endpoint, Health, NotReady, Ownership, Ready, health, wait_until_ready
from tuner.server.running_file import Marker
from tuner.server.shutdown import StopReport
from tuner.vllm.cause import Cause
from tuner.vllm.facts import StartFacts, parse_facts

STOP_MARGIN_S = 15.0
"""Beyond --shutdown-timeout: what vLLM takes to close its workers and its HTTP server."""

_USUAL_SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "VLLM_API_KEY", "OPENAI_API_KEY")
_WILDCARDS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


class Start:
    """A server from its fork to its end. Used by running() only, which guarantees that end() is called."""

    def __init__(
        self,
        spec: LaunchSpec,
        log_path: Path,
        model: str,
        clock: Clock,
        gpu_memory: GpuMemory,
        group: GpuGroup,
        host: str,
    ) -> None:
        """Measures the baseline, records the start on disk and forks. Raises OSError and leaves nothing behind then."""
        port = fresh_port(_WILDCARDS.get(host, host))
        self.log_path = log_path
        self.clock = clock
        self.endpoint = Endpoint(_base_url(host, port), port, model, _api_key(spec))
        self._spec = spec
        self._gpu_memory = gpu_memory
        self._baseline = (gpu_memory.used_bytes(group.gpus) if group.gpus else None) or {}
        self._scratch = leftovers.new_scratch()
        self._secrets = _secrets(spec)
        self._argv = spec.argv(host, port)
        if spec.in_container:
            self._argv = with_cid_file(self._argv, self._scratch)
        self._begun_ns = clock.now_ns()
        self._begun_unix_ns = round(clock.wall().timestamp() * 1e9)
        self._marker: Marker | None = None
        try:
            self.process: ServerProcess = spawn(
                self._argv, _environment(spec, self._scratch), log_path, clock, self._record
            )
        except BaseException:
            self._forget()
            raise

    def wait(
        self, limit_s: float, on_phase: Callable[[str], None], should_stop: Callable[[], bool]
    ) -> Ready | NotReady:
        outcome = wait_until_ready(
            self.process,
            self.endpoint,
            ownership=Ownership.UNSEEN if self._spec.in_container else Ownership.FAMILY,
            log_path=self.log_path,
            limit_s=limit_s,
            clock=self.clock,
            on_phase=on_phase,
            should_stop=should_stop,
        )
        self._remember_files()
        return outcome

    def seconds(self) -> float:
        """Since the fork."""
        return (self.clock.now_ns() - self._begun_ns) / 1e9

    def facts(self, ready: Ready) -> StartFacts:
        return parse_facts(logtext.read(self.log_path), max_model_len=ready.max_model_len)

    def diagnose(self, phase: Phase) -> Cause:
        """Why the server ended, or does not answer, from its log as it is now."""
        held_gib = max(self._baseline.values()) / 2**30 if self._baseline else None
        return diagnose(
            logtext.redact(logtext.read(self.log_path), self._secrets),
            exit_code=self.process.exit_code(),
            phase=phase,
            held_by_others_gib=held_gib,
        )

    def refusal(self, outcome: NotReady, limit_s: float) -> Cause:
        if outcome is NotReady.FOREIGN_LISTENER:
            return foreign_listener(self.endpoint.port)
        cause = self.diagnose(Phase.STARTING)
        return over_limit(limit_s, cause) if outcome is NotReady.OVER_LIMIT else cause

    def health(self) -> Health:
        return health(self.endpoint)

    def end(self) -> StopReport:
        """Ends the server and removes what it leaves. The record on disk goes last, and stays if something survives."""
        begun_ns = self.clock.now_ns()
        ended = self.process.stop(_shutdown_timeout_s(self._spec) + STOP_MARGIN_S)
        killed = ended.killed
        if self._spec.in_container:
            killed += end_container(self._argv[0], self._scratch)
        removed = leftovers.remove_shared_memory(self.process.shared_memory, since_unix_ns=self._begun_unix_ns)
        logtext.redact_file(self.log_path, self._secrets)
        memory_back = leftovers.wait_for_memory(self._gpu_memory, self._baseline, self.clock, leftovers.MEMORY_LIMIT_S)
        if not ended.left:
            removed += self._forget()
        return StopReport(
            seconds=(self.clock.now_ns() - begun_ns) / 1e9,
            killed=killed,
            left=ended.left,
            removed=removed,
            memory_back=memory_back,
            exit_code=self.process.exit_code(),
        )

    def _record(self, leader: ProcessEntry, log: FileId) -> None:
        tuner_pid, tuner_start_ticks = running_file.this_tuner()
        self._marker = Marker(
            boot_id=proctable.boot_id(),
            pid=leader.pid,
            start_ticks=leader.start_ticks,
            session=leader.session,
            port=self.endpoint.port,
            argv_digest=running_file.digest(self._argv),
            log_device=log.device,
            log_inode=log.inode,
            scratch=str(self._scratch),
            started_unix_ns=self._begun_unix_ns,
            tuner_pid=tuner_pid,
            tuner_start_ticks=tuner_start_ticks,
            gpu_baseline_bytes=tuple(sorted(self._baseline.items())),
            container_engine=self._argv[0] if self._spec.in_container else "",
        )
        running_file.write(self.log_path.parent, self._marker)
        self._scratch.mkdir(mode=0o700)

    def _remember_files(self) -> None:
        if self._marker is not None and self.process.shared_memory:
            names = tuple(map(str, self.process.shared_memory))
            running_file.write(self.log_path.parent, replace(self._marker, shared_memory=names))

    def _forget(self) -> tuple[str, ...]:
        removed = leftovers.remove_scratch(self._scratch)
        running_file.remove(self.log_path.parent)
        return removed


def _base_url(host: str, port: int) -> str:
    reachable = _WILDCARDS.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def _environment(spec: LaunchSpec, scratch: Path) -> dict[str, str]:
    """The inherited environment, what belongs to this start, and the launch's own words, which have the last one."""
    inherited: Mapping[str, str] = os.environ
    own = {
        # One folder for all that vLLM puts into the temporary folder: sockets, rendezvous files, metrics.
        "TMPDIR": str(scratch),
        "VLLM_RPC_BASE_PATH": str(scratch),
        # torch would move its compile cache along with TMPDIR and compile everything anew at every start.
        "TORCHINDUCTOR_CACHE_DIR": inherited.get("TORCHINDUCTOR_CACHE_DIR")
        or f"{tempfile.gettempdir()}/torchinductor_{getpass.getuser()}",
    }
    kept = {name: value for name, value in inherited.items() if name != "PROMETHEUS_MULTIPROC_DIR"}  # vllm.md section 2
    return {**kept, **own, **dict(spec.env)}


def _shutdown_timeout_s(spec: LaunchSpec) -> float:
    """The last --shutdown-timeout of the launch; 0, vLLM's default, where there is none or it is not a number."""
    value = _flag_value(spec.arguments, "--shutdown-timeout")
    return float(value) if value is not None and value.isdecimal() else 0.0


def _api_key(spec: LaunchSpec) -> str | None:
    return _flag_value(spec.arguments, "--api-key") or os.environ.get("VLLM_API_KEY") or None


def _secrets(spec: LaunchSpec) -> tuple[str, ...]:
    """Values that must stand in no record and no excerpt."""
    named = (os.environ.get(name) for name in {*spec.secret_env, *_USUAL_SECRETS})
    return tuple(value for value in (*named, _flag_value(spec.arguments, "--api-key")) if value)


def _flag_value(words: tuple[str, ...], flag: str) -> str | None:
    value = None
    for word, following in pairwise((*words, "")):
        name, equals, rest = word.partition("=")
        if name.replace("_", "-") == flag:
            value = rest if equals else following
    return value
