"""One child in its own session, started through a gate. Linux only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from tuner.clock import Clock
from tuner.server import proctable
from tuner.server.family import Family
from tuner.server.proctable import FileId, ProcessEntry
from tuner.server.shutdown import ForcedEnd, end_family

# The child waits here until its start is on disk. If tuner dies before that, `read` meets the end of the pipe and the
# server never starts: every living server has a file that names it. After `exec`, ps shows the launch alone.
_GATE = 'read -r go || exit 125; exec "$@" </dev/null'
_PR_SET_CHILD_SUBREAPER = 36


class ServerProcess:
    """A started child and everything that descends from it. The leader is reaped last. While it is a zombie no other
    process can get its number, which also names its session."""

    def __init__(self, child: subprocess.Popen[bytes], leader: ProcessEntry, log: FileId, clock: Clock) -> None:
        self._child = child
        self._clock = clock
        self._exit_code: int | None = None
        self._shared_memory: set[Path] = set()
        self.leader = leader
        self.log = log
        self.family = Family(leader.pid, leader.start_ticks, log)

    @property
    def pid(self) -> int:
        """Process id of the leader, which is also its session."""
        return self.leader.pid

    @property
    def shared_memory(self) -> tuple[Path, ...]:
        """Return the files in /dev/shm that this server used."""
        return tuple(sorted(self._shared_memory))

    def exit_code(self) -> int | None:
        """Return the leader's exit code, negative for a signal; None if it runs. Does not reap."""
        if self._exit_code is None:
            ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is not None:
                self._exit_code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        return self._exit_code

    def observe(self) -> None:
        """Note processes and shared memory while the server lives. A dead server's can hardly be attributed."""
        for process in self.family.living():
            self._shared_memory |= proctable.shared_memory_files(process.pid)

    def stop(self, grace_s: float) -> ForcedEnd:
        """End leader and descendants and reap them all. On a dead server, end its orphans."""
        self.observe()
        ended = end_family(self.family, grace_s=grace_s, clock=self._clock, before_kill=self.observe)
        if self.exit_code() is not None:  # else it survives SIGKILL in the kernel, and is named in `left`
            self._child.wait()
        return ended


@contextlib.contextmanager
def held_at_gate(
    argv: tuple[str, ...], env: Mapping[str, str], log_path: Path, clock: Clock
) -> Iterator[ServerProcess]:
    """Fork a child that runs `argv` once the block is left. An exception in the block ends the child, unstarted. A
    command that does not exist raises nothing: the child says so in its log and exits with 127."""
    _adopt_orphans()
    with log_path.open("wb") as log:
        child = subprocess.Popen(
            ["/bin/sh", "-c", _GATE, "sh", *argv],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=dict(env),
            start_new_session=True,
        )
    gate = child.stdin
    assert gate is not None, "stdin is a pipe"
    try:
        leader = proctable.entry(child.pid)
        assert leader is not None, "an unreaped child has an entry"
        yield ServerProcess(child, leader, proctable.file_id(log_path), clock)
    except BaseException:
        # Ctrl-C included: closing the gate is all the cleaning up that is needed.
        _close(gate)
        child.wait()
        raise
    with contextlib.suppress(BrokenPipeError):  # the child was killed at its gate: exit_code() says so
        gate.write(b"\n")
        gate.flush()
    _close(gate)


def _close(gate: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):
        gate.close()


def _adopt_orphans() -> None:
    """Adopt orphans of our servers, to see and reap them."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl(PR_SET_CHILD_SUBREAPER): {os.strerror(number)}")
