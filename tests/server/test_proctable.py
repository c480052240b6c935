"""The process table as values."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys

import pytest

from tests.server.support import eventually
from tuner.server import proctable

SYS_EXIT = {"x86_64": 60, "aarch64": 93}


def test_this_process_is_as_the_kernel_sees_it() -> None:
    me = proctable.entry(os.getpid())
    assert me is not None and me == proctable.table()[os.getpid()]
    assert (me.ppid, me.group, me.session) == (os.getppid(), os.getpgrp(), os.getsid(0))


def test_a_name_with_spaces_and_parentheses_is_read() -> None:
    rename = "import ctypes,sys; ctypes.CDLL(None).prctl(15, b') R 1 (', 0, 0, 0); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", rename], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        found = proctable.entry(child.pid)
        assert found is not None
        assert (found.name, found.ppid) == (") R 1 (", os.getpid())
        child.kill()


def test_a_missing_process_has_no_entry() -> None:
    assert proctable.entry(2**22 + 1) is None


@pytest.mark.skipif(platform.machine() not in SYS_EXIT, reason="the number of exit(2) is not known here")
def test_a_zombie_whose_threads_still_run_has_not_ended() -> None:
    """An engine killed in the middle of giving its memory back: it cannot be reaped and holds what it held."""
    script = (
        "import ctypes, sys, threading; threading.Thread(target=sys.stdin.read).start();"
        f"ctypes.CDLL(None).syscall({SYS_EXIT[platform.machine()]}, 0)"
    )

    def state() -> str:
        found = proctable.entry(child.pid)
        return "" if found is None else found.state

    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as child:
        assert eventually(lambda: state() == "Z")
        found = proctable.entry(child.pid)
        assert found is not None and found.threads == 2
        assert not found.is_zombie and proctable.is_alive(found)
        assert os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        proctable.send_signal(found, signal.SIGKILL)
        assert eventually(lambda: not proctable.is_alive(found))
        assert os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def test_a_signal_reaches_the_very_process_or_none() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as child:
        found = proctable.entry(child.pid)
        assert found is not None
        reused = proctable.ProcessEntry(
            found.pid, found.name, found.state, found.ppid, found.group, found.session, 1, found.start_ticks + 1
        )
        proctable.send_signal(reused, signal.SIGKILL)
        assert child.poll() is None
        proctable.send_signal(found, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    proctable.send_signal(found, signal.SIGKILL)
