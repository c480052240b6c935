"""Child processes of the server: engine cores, and with data parallelism coordinator and API servers."""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from setproctitle import setproctitle

from tuner.sim.engine_process import EngineTask
from tuner.sim.startup import Started


class FailedStartError(Exception):
    """End of an engine core before it was ready. `code` is its exit code."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(
            f"Engine core initialization failed. See root cause above. Failed core proc(s): {{'{name}': {code}}}"
        )


@dataclass(frozen=True, slots=True)
class EngineChild:
    """Process of one engine core. It takes orders on its stdin and reports its start on `ready`."""

    name: str
    process: subprocess.Popen[bytes]
    ready: int

    @classmethod
    def spawn(cls, task: EngineTask) -> EngineChild:
        """Start a process with its task."""
        ready, ready_of_child = os.pipe()
        command = [sys.executable, "-m", "tuner.sim.engine_process"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[ready_of_child])
        os.close(ready_of_child)
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(pickle.dumps(replace(task, ready_fd=ready_of_child)))
            process.stdin.flush()
        return cls(task.name, process, ready)

    def started(self) -> Started:
        """Read its report. Raises FailedStartError if it ended instead."""
        with os.fdopen(self.ready, "rb") as pipe:
            answer = pipe.read()
        found = pickle.loads(answer) if answer else None
        if isinstance(found, Started):
            return found
        raise FailedStartError(self.name, self.process.wait())

    def order(self, word: bytes) -> None:
        """Order it to fail (a fault)."""
        if self.process.stdin is not None:
            with suppress(BrokenPipeError):
                self.process.stdin.write(word + b"\n")
                self.process.stdin.flush()

    def end(self, patience_s: float) -> None:
        """End it, and kill it if it takes longer."""
        self.process.terminate()
        try:
            self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def wait_until_started(children: Sequence[EngineChild]) -> list[Started]:
    """Wait for all engine cores. Raises FailedStartError as soon as one ended instead."""
    found: dict[int, Started] = {}
    while len(found) < len(children):
        waiting = [rank for rank in range(len(children)) if rank not in found]
        readable = select.select([children[rank].ready for rank in waiting], [], [])[0]
        found |= {rank: children[rank].started() for rank in waiting if children[rank].ready in readable}
    return [found[rank] for rank in range(len(children))]


@dataclass(frozen=True, slots=True)
class Helper:
    """Process without work: the coordinator or an API server of a server with data parallelism.

    The stand-in's parent does their work. They are there to be seen, to be killed, and to be left behind: like
    vLLM's they outlive a killed parent, and keep its socket.
    """

    name: str
    pid: int

    @classmethod
    def fork(cls, name: str) -> Helper:
        """Start one."""
        pid = os.fork()
        if pid:
            return cls(name, pid)
        setproctitle(f"VLLM::{name}")
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        while True:
            signal.pause()

    def exit_code(self) -> int | None:
        """Return its exit code, None while it lives."""
        try:
            done, status = os.waitpid(self.pid, os.WNOHANG)
        except ChildProcessError:
            return 0
        return os.waitstatus_to_exitcode(status) if done else None

    def end(self) -> None:
        """End it."""
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(self.pid, signal.SIGTERM)
            os.waitpid(self.pid, 0)
