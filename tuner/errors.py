"""Errors that reach the person: one branch per exit code, every one with a `hint`.

TunerError                    1   a bug of ours when nothing more precise was raised
├── UsageError                2   a flag, a file or a name that a person gave
├── NothingFeasibleError      3   the search ended without one candidate that keeps the limits
├── EnvironmentFaultError     4   vLLM, GPU, port, disk: not the candidate's doing
└── InterruptedSearchError  130   Ctrl-C or SIGTERM; the study can go on

A failed trial is a value (`study.record.TrialRecord`), never one of these.
"""

from __future__ import annotations


class TunerError(Exception):
    """`message` is one line that says what is wrong, `hint` one line that says what to do."""

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
