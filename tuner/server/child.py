"""One child process of a service, and the files that prove what is its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tuner.server import leftovers, proctable, running_file
from tuner.server.process import ServerProcess, held_at_gate
from tuner.server.request import ServiceRequest
from tuner.server.running_file import Marker


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """Command of a child. `files` are texts that stand in its scratch folder before it runs."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    log_name: str
    port: int
    scratch: Path
    files: tuple[tuple[str, str], ...] = ()
    gpu_baseline_bytes: tuple[tuple[int, int], ...] = ()
    container_engine: str = ""


class Child:
    """A child with its log, its running file and its scratch folder. `number` names it in its service."""

    def __init__(self, request: ServiceRequest, number: int, spec: ChildSpec) -> None:
        """Fork, write the running file, let go. Raises OSError if the machine cannot do so, and leaves nothing behind
        then."""
        self.log_path = request.folder / spec.log_name
        self._spec = spec
        self._clock = request.clock
        self._begun_ns = request.clock.now_ns()
        self._begun_unix_ns = round(request.clock.wall().timestamp() * 1e9)
        self.shared_memory_before = leftovers.shared_memory_inodes()
        self._running_file = running_file.path_of(request.folder, number)
        try:
            with held_at_gate(spec.argv, spec.env, self.log_path, request.clock) as self.process:
                self._marker = self._marked(self.process, number)
                running_file.write(request.folder, self._marker)
                spec.scratch.mkdir(mode=0o700)
                for name, text in spec.files:
                    (spec.scratch / name).write_text(text)
        except BaseException:  # Ctrl-C included: only this code knows of these files yet
            self.remove_files()
            raise

    def _marked(self, process: ServerProcess, number: int) -> Marker:
        tuner_pid, tuner_start_ticks = running_file.this_tuner()
        return Marker(
            boot_id=proctable.boot_id(),
            pid=process.leader.pid,
            start_ticks=process.leader.start_ticks,
            session=process.leader.session,
            port=self._spec.port,
            log_device=process.log.device,
            log_inode=process.log.inode,
            scratch=str(self._spec.scratch),
            started_unix_ns=self._begun_unix_ns,
            tuner_pid=tuner_pid,
            tuner_start_ticks=tuner_start_ticks,
            gpu_baseline_bytes=self._spec.gpu_baseline_bytes,
            shared_memory_before=self.shared_memory_before,
            container_engine=self._spec.container_engine,
            replica=number,
        )

    def seconds(self) -> float:
        """Return the seconds since the fork."""
        return (self._clock.now_ns() - self._begun_ns) / 1e9

    def note_shared_memory(self) -> None:
        """Write the shared memory seen so far into the running file."""
        if self.process.shared_memory:
            names = tuple(map(str, self.process.shared_memory))
            running_file.write(self._running_file.parent, replace(self._marker, shared_memory=names))

    def remove_files(self) -> tuple[str, ...]:
        """Remove scratch folder and running file. Returns what was in the folder."""
        removed = leftovers.remove_scratch(self._spec.scratch)
        self._running_file.unlink(missing_ok=True)
        return removed
