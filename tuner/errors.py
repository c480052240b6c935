"""Errors that reach the user: one class per exit code, each with a `hint`.

TunerError                    1   a bug of ours when nothing more precise was raised
├── UsageError                2   a wrong flag, file or name on the command line
├── NothingFeasibleError      3   no candidate kept the limits
├── EnvironmentFaultError     4   vLLM, GPU, port, disk: not the candidate's doing
└── InterruptedSearchError  130   Ctrl-C or SIGTERM; the study can go on

A failed trial is a value (`study.record.TrialRecord`), never one of these.
"""

from __future__ import annotations


class TunerError(Exception):
    """Error with a `message` and a `hint`, one line each."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(TunerError):
    exit_code = 2


class NothingFeasibleError(TunerError):
    exit_code = 3


class EnvironmentFaultError(TunerError):
    exit_code = 4


class InterruptedSearchError(TunerError):
    exit_code = 130
