from __future__ import annotations

import io
import os
import signal
import threading
import time

import pytest

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


@pytest.mark.parametrize("number", ["QUIT", "USR1", "USR2", "ALRM", "XCPU", "HUP", "RTMIN"])
def test_every_signal_that_would_end_the_process_asks_the_loop_to_stop(number: str) -> None:
    stop, out = threading.Event(), io.StringIO()
    sent = signal.Signals[f"SIG{number}"]
    before = signal.signal(sent, signal.SIG_DFL)  # the tests' time limit has one of its own
    try:
        with _signals_set(stop, Console(out)):
            os.kill(os.getpid(), sent)
            assert stop.wait(5)
        assert signal.getsignal(sent) is signal.SIG_DFL
    finally:
        signal.signal(sent, before)


def test_signals_that_end_nothing_are_left_alone() -> None:
    numbers = {signal.SIGCHLD, signal.SIGWINCH, signal.SIGTSTP, signal.SIGCONT, signal.SIGPIPE, signal.SIGSEGV}
    before = {number: signal.getsignal(number) for number in numbers}
    with _signals_set(threading.Event(), Console(io.StringIO())):
        assert {number: signal.getsignal(number) for number in numbers} == before
