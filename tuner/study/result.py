"""Result of a study, as result.json holds it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tuner.candidate import Candidate
from tuner.study.learnt import LearntRule


class Decision(StrEnum):
    WINNER = "winner"
    KEEP_DEFAULT = "keep-default"
    NOTHING_FEASIBLE = "nothing-feasible"


class Lack(StrEnum):
    """Reason why a candidate has no figures that count."""

    BREAKS_LIMITS = "breaks-limits"
    DOES_NOT_START = "does-not-start"
    DIES_UNDER_LOAD = "dies-under-load"
    NOT_MEASURED = "not-measured"


@dataclass(frozen=True, slots=True)
class Figures:
    """Candidate's figures over the starts in `trials`. QPS is mean and range, P99 TTFT the worst start's. `fresh` is
    True when none of the starts took part in choosing the candidate: only then is the figure unbiased."""

    candidate: Candidate
    trials: tuple[int, ...]
    level: str
    qps: float
    qps_low: float
    qps_high: float
    p99_ttft_ms: float | None
    preemptions: int | None
    fresh: bool


@dataclass(frozen=True, slots=True)
class StudyResult:
    """Result so far. `winner` and `default` are None if no start of theirs kept the limits.

    `default_seen` then shows the default's best level. `complete` is False while trials are to come. `learnt` are
    the rules of the search, withdrawn ones included; nothing that they exclude was measured.
    """

    study: str
    decision: Decision
    winner: Figures | None
    default: Figures | None
    default_seen: Figures | None
    starts: int
    refused: int
    elapsed_s: float
    complete: bool
    sentence: str
    updated_at: str
    learnt: tuple[LearntRule, ...] = ()
