"""Frozen event values: what happened, for whoever shows it. Nothing below cli/ prints."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.candidate import Candidate
from tuner.measurement import Measurement
from tuner.study.record import Role, TrialRecord
from tuner.study.result import StudyResult
from tuner.verdict import Verdict


@dataclass(frozen=True, slots=True)
class TrialStarted:
    trial: int
    role: Role
    candidate: Candidate
    group: str
    start: int
    starts: int
    """This is start number `start` of `starts` planned ones."""


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    trial: int
    group: str
    phase: str


@dataclass(frozen=True, slots=True)
class LevelMeasured:
    """`verdict` is None for the closed loop before an open one: it fills the server and has no limits to keep."""

    trial: int
    group: str
    measurement: Measurement
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class TrialFinished:
    record: TrialRecord
    is_best: bool


@dataclass(frozen=True, slots=True)
class Notice:
    """Something the person should know that is not a trial's result."""

    text: str


@dataclass(frozen=True, slots=True)
class StudyFinished:
    result: StudyResult


Event = TrialStarted | PhaseChanged | LevelMeasured | TrialFinished | Notice | StudyFinished
