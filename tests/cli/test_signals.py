from __future__ import annotations

import io
import os
import signal
import threading
import time

from tuner.cli.console import Console
from tuner.cli.search import _signals_set


def test_sigterm_asks_the_loop_to_stop_and_says_so_even_in_the_middle_of_a_line() -> None:
    """The handler runs in the thread that it interrupts: it must not wait for a lock which that thread holds."""
    stop, out = threading.Event(), io.StringIO()
    console = Console(out)
    with _signals_set(stop, console), console._lock:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.wait(5)
    deadline = time.monotonic() + 5
    while "SIGTERM: ending" not in out.getvalue():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_search_under_nohup_outlives_its_terminal() -> None:
    stop = threading.Event()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _signals_set(stop, Console(io.StringIO())):
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.05)
            assert not stop.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
