"""Signals that end a process, while a server lives. The first ends the `with` block, the second not the ending."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

_NOT_ENDING = frozenset({
    signal.SIGKILL, signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT,
    signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGPIPE, signal.SIGXFSZ,
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGSYS, signal.SIGTRAP,
})  # fmt: skip
"""Signals that cannot be caught, stop or go on, end nothing (signal(7); Python ignores two), or report a crash."""
ENDING = tuple(sorted(int(number) for number in signal.valid_signals() if number not in _NOT_ENDING))
"""Signals whose default action ends the process: batch systems and users send USR1, XCPU, QUIT and others."""


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Turn signals into KeyboardInterrupt if nothing else handles them. By default they would skip every `finally`.
    Python delivers signals to the main thread only. In any other this does nothing, and its owner must handle them."""
    if not _in_main_thread():
        yield
        return
    with handled(_interrupt, (number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL)):
        yield


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None], numbers: Iterable[int]) -> Iterator[None]:
    """Handle these signals inside."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            # None: a handler that was not set from Python and that Python cannot set again.
            signal.signal(number, signal.SIG_DFL if old is None else old)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Deliver interrupts that arrive inside at the end. For work that must be complete and is bounded in time."""
    if not _in_main_thread():
        yield
        return
    held: list[int] = []
    try:
        with handled(lambda received, _frame: held.append(received), ENDING):
            yield
    finally:
        for received in dict.fromkeys(held):
            signal.raise_signal(received)


def _interrupt(number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt(f"ended by signal {number}")


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
