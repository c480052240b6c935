"""Result of a study, as result.json holds it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tuner.candidate import Candidate
from tuner.launch import Door
from tuner.layout import Layout
from tuner.study.learnt import LearntRule


class Decision(StrEnum):
    WINNER = "winner"
    KEEP_DEFAULT = "keep-default"
    NOT_CONFIRMED = "not-confirmed"
    NOTHING_FEASIBLE = "nothing-feasible"


@dataclass(frozen=True, slots=True)
class Gain:
    """Gain over the default, as shares of its rate: the middle of `pairs` paired runs, and its 95 % interval."""

    low: float
    middle: float
    high: float
    pairs: int


@dataclass(frozen=True, slots=True)
class Disturbance:
    """Time in which the machine was not quiet, from `begin` to `end` in ISO 8601."""

    begin: str
    end: str


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
class DoorFigures:
    """What confirmation runs of all servers showed through a door.

    Attributes:
        trials: Runs that decided.
        rate: QPS, as in `Figures`. None if one of the runs failed.
        saturation: QPS of the full machine. None in a closed loop.
        cost: Share of the servers' throughput that is lost behind it. None if one of both is unknown.
        is_quoted: True for the door whose figures are those of the candidate.
    """

    door: Door
    trials: tuple[int, ...]
    rate: float | None
    saturation: float | None
    cost: float | None
    is_quoted: bool


class WhyDropped(StrEnum):
    """Reason why the search goes on without a layout."""

    BEHIND = "behind"
    BREAKS_LIMITS = "breaks-limits"
    DOES_NOT_START = "does-not-start"


@dataclass(frozen=True, slots=True)
class LayoutStanding:
    """Layout's standing in the search. All QPS are the whole machine's.

    Attributes:
        trials: Trials of the search with this layout, refused ones included.
        default_qps: QPS of vLLM's default. None if it has none that keeps the limits.
        best_qps: Highest QPS. A race's loser counts with its estimate. None if nothing kept the limits.
        best_trial: Trial of `best_qps`.
        kept: Share of a server's QPS that is left beside its busy neighbours. None if not measured. The figure of a
            default, measured alone, is multiplied by it.
        dropped_by: Trials that decided against it. None while it can still win.
        why: Reason for `dropped_by`. None while it can still win.
        leader: Layout that it lost against.
        leader_qps: QPS of `leader`. None if the leader only starts.
        saved: Candidates that were not started because the layout was dropped.
    """

    layout: Layout
    trials: tuple[int, ...] = ()
    default_qps: float | None = None
    best_qps: float | None = None
    best_trial: int | None = None
    kept: float | None = None
    dropped_by: tuple[int, ...] | None = None
    why: WhyDropped | None = None
    leader: Layout | None = None
    leader_qps: float | None = None
    saved: int = 0

    @property
    def starts(self) -> int:
        """Return the number of its starts in the search."""
        return len(self.trials)

    @property
    def is_dropped(self) -> bool:
        """Return True if the search goes on without it."""
        return self.why is not None


@dataclass(frozen=True, slots=True)
class StudyResult:
    """Result so far. `winner` and `default` are None if no start of theirs kept the limits. `winner` is what is to be
    launched: the default where that is kept. `gain` is the best candidate's, None without a pair of confirmation
    runs. `disturbed` is when the machine was not quiet, None unless that left the gain unconfirmed.

    `default_seen` then shows the default's best level. `complete` is False while trials are to come. `learnt` are
    the rules of the search, withdrawn ones included; nothing that they exclude was measured. `layouts` are empty in
    older results. `doors` are those of the winner, or of the default that is kept; empty if it is one server.
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
    layouts: tuple[LayoutStanding, ...] = ()
    doors: tuple[DoorFigures, ...] = ()
    gain: Gain | None = None
    disturbed: Disturbance | None = None
