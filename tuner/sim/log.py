"""Log lines in vLLM's form, on stdout. Example: `(EngineCore pid=7) INFO 11-21 05:22:57 [core.py:134] text`."""

from __future__ import annotations

import os
import sys
import time


class Log:
    """Log of one process. `name` is vLLM's name for it (APIServer, EngineCore, Worker_TP0)."""

    def __init__(self, name: str) -> None:
        self.name = name

    def info(self, where: str, text: str) -> None:
        self._line("INFO", where, text)

    def warning(self, where: str, text: str) -> None:
        self._line("WARNING", where, text)

    def error(self, where: str, text: str) -> None:
        self._line("ERROR", where, text)

    def exception(self, where: str, headline: str, error: str, message: str) -> None:
        """Log an exception with its traceback, each line prefixed."""
        self.error(where, headline)
        for line in traceback_lines(where, error, message):
            self.error(where, line)

    def traceback(self, where: str, error: str, message: str) -> None:
        """Print the traceback of an uncaught exception. vLLM prefixes these lines too."""
        lines = traceback_lines(where, error, message)
        self._write("".join(f"{self._prefix()} {line}\n" for line in lines), sys.stderr)

    def raw(self, text: str) -> None:
        """Print a line in uvicorn's own form."""
        self._write(f"{self._prefix()} {text}\n", sys.stdout)

    def _prefix(self) -> str:
        return f"({self.name} pid={os.getpid()})"

    def _line(self, level: str, where: str, text: str) -> None:
        stamp = time.strftime("%m-%d %H:%M:%S")
        self._write(f"{self._prefix()} {level} {stamp} [{where}] {text}\n", sys.stdout)

    @staticmethod
    def _write(text: str, stream: object) -> None:
        descriptor = 2 if stream is sys.stderr else 1
        try:
            os.write(descriptor, text.encode())
        except OSError:
            return  # the reader of the log is gone, and a server survives that


def traceback_lines(where: str, error: str, message: str) -> list[str]:
    file, _, line = where.partition(":")
    frame = f'  File "/usr/lib/python3/site-packages/vllm/{file}", line {line or 1}, in run'
    return ["Traceback (most recent call last):", frame, *f"{error}: {message}".split("\n")]
