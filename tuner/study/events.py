"""Events of a study as frozen values. Nothing below cli/ prints."""

from __future__ import annotations

from dataclasses import dataclass

from tuner.candidate import Candidate
from tuner.launch import Door
from tuner.layout import Layout
from tuner.measurement import Measurement
from tuner.study.learnt import LearntRule
from tuner.study.record import Role, TrialRecord
from tuner.study.result import LayoutStanding, StudyResult
from tuner.study.stopping import SearchEnd
from tuner.verdict import Reason, Verdict
from tuner.vllm.cause import Cause

MEASURING = "measuring"
"""Phase of a trial whose server is under load."""


@dataclass(frozen=True, slots=True)
class TrialStarted:
    """Trial that is start number `start` of `starts` planned ones. Its server stands for `replicas` of the machine, or
    all of them are behind `door`."""

    trial: int
    role: Role
    candidate: Candidate
    group: str
    start: int
    starts: int
    door: Door = Door.SERVER
    replicas: int = 1


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    trial: int
    group: str
    phase: str


@dataclass(frozen=True, slots=True)
class QuietAwaited:
    """Wait for a quiet machine before a level is repeated. `reasons` say what is wrong with it, none at its end."""

    trial: int
    group: str
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class MemoryAwaited:
    """Wait for GPU memory that other processes hold after a server has ended. `holders` names them."""

    trial: int
    group: str
    holders: str


@dataclass(frozen=True, slots=True)
class LevelMeasured:
    """Finished level. `verdict` is None for the closed loop before an open one, which has no limits to keep."""

    trial: int
    group: str
    measurement: Measurement
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class TrialFinished:
    record: TrialRecord
    is_best: bool


@dataclass(frozen=True, slots=True)
class RuleApplied:
    """Rule that excluded a candidate for the first time."""

    rule: LearntRule


@dataclass(frozen=True, slots=True)
class LayoutDropped:
    """Layout that cannot win any more."""

    standing: LayoutStanding


@dataclass(frozen=True, slots=True)
class GroupsCompared:
    """QPS of a layout's default alone and on the slowest of its places at once. None if not measured."""

    layout: Layout
    alone_qps: float | None
    slowest_qps: float | None
    groups: int


@dataclass(frozen=True, slots=True)
class GroupQuarantined:
    """Group that is used no more. `left` names what the server of `trial` left there."""

    group: str
    trial: int
    left: str


@dataclass(frozen=True, slots=True)
class Unexplained:
    """Failure that the log does not explain. `known` ran before and decides it, None: the next candidate does."""

    record: TrialRecord
    known: TrialRecord | None


@dataclass(frozen=True, slots=True)
class Explained:
    """Failure that was the candidate's: `by` has started since."""

    record: TrialRecord
    by: TrialRecord | None


@dataclass(frozen=True, slots=True)
class Paused:
    """Pause of `seconds` before the next start, after faults of the machine."""

    cause: Cause | None
    seconds: float


@dataclass(frozen=True, slots=True)
class SearchEnded:
    """The end of the search; confirmation runs follow. `patience` is the plan's."""

    reason: SearchEnd
    patience: int | None


@dataclass(frozen=True, slots=True)
class StudyFinished:
    result: StudyResult


Event = (
    TrialStarted
    | PhaseChanged
    | QuietAwaited
    | MemoryAwaited
    | LevelMeasured
    | TrialFinished
    | RuleApplied
    | LayoutDropped
    | GroupsCompared
    | GroupQuarantined
    | Unexplained
    | Explained
    | Paused
    | SearchEnded
    | StudyFinished
)
