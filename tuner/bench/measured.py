"""Result of a task, and the one way from a task to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from tuner.bench.capacity_search import (
    Capacity,
    Claim,
    Ended,
    Incumbent,
    ProbeResult,
    Saturation,
    Stop,
    claim,
    search_capacity,
    search_near,
)
from tuner.bench.level import Level, best_of
from tuner.bench.task import ClaimRate, HoldRate, MeasureBlock, RunLadder, Saturate, SearchCapacity, Task
from tuner.load.prompts import SEARCH_TRACE
from tuner.load.stream import Failure
from tuner.measurement import Load, LoadKind
from tuner.verdict import Evidence, Outcome, Reason, Verdict, kept_limits

RISE = 1.02
"""Factor by which a level must raise QPS, or the ladder ends."""


HEADROOM = 1.05
"""Factor for the spread of two closed loops that are compared."""

OPEN_SEARCHES = SearchCapacity | MeasureBlock | ClaimRate
"""Tasks that look for a rate."""


class LoadOutcome(StrEnum):
    """Statement of a task about its server. `BEHIND` was measured until it could not beat the incumbent any more."""

    FEASIBLE = "feasible"
    INFEASIBLE = "infeasible"
    UNDECIDED = "undecided"
    INVALID = "invalid"
    BEHIND = "behind"


class Cut(StrEnum):
    """Reason why a task did not come to its end."""

    INTERRUPTED = "interrupted"
    SERVER_LOST = "server-lost"
    NOT_IDLE = "not-idle"
    NOT_OFFERED = "not-offered"


class LoadCutError(Exception):
    """Load that was cut off. Nothing more can be measured in this session."""

    def __init__(self, cut: Cut) -> None:
        super().__init__(cut)
        self.cut = cut


class InvalidLoadError(Exception):
    """Load that said nothing of the server, also when it was repeated. It ends its task without a verdict."""

    def __init__(self, load: Load, verdict: Verdict) -> None:
        super().__init__("; ".join(map(str, verdict.reasons)))
        self.load = load
        self.verdict = verdict


@dataclass(frozen=True, slots=True)
class NotOffered:
    """Load that could not be offered undisturbed, and why. `rate` is in requests/s, or of clients in a closed loop."""

    rate: float
    reasons: tuple[Reason, ...]
    loop: LoadKind = LoadKind.OPEN


@dataclass(frozen=True, slots=True)
class NothingTried:
    """A closed loop that completed too little, `saturation` requests/s in `seconds`, for any rate to be tried."""

    seconds: float
    saturation: float


@dataclass(frozen=True, slots=True)
class FellBehind:
    """Candidate that cannot beat the incumbent, by its race or its closed loop."""

    capacity: Capacity
    incumbent: Incumbent


@dataclass(frozen=True, slots=True)
class LostForAMoment:
    """Server that took no requests for a moment, and lives."""


@dataclass(frozen=True, slots=True)
class Remark:
    """A note in the words of an earlier version."""

    text: str


Note = NotOffered | NothingTried | FellBehind | LostForAMoment | Remark


@dataclass(frozen=True, slots=True)
class Measured:
    """Result of a task.

    Attributes:
        outcome: None if nothing was measured.
        best: Index in `levels` of the level that counts. None if none does.
        seconds: Seconds of load in `levels`.
        waited_s: Seconds of waiting for a quiet machine.
        capacity, claim: Answers of the tasks of these names. None for all others, and if the task was cut off.
        cut: Why the task did not come to its end. None if it did.
    """

    levels: tuple[Level, ...]
    outcome: LoadOutcome | None
    best: int | None
    seconds: float
    waited_s: float = 0.0
    capacity: Capacity | None = None
    claim: Claim | None = None
    notes: tuple[Note, ...] = ()
    cut: Cut | None = None


class Session(Protocol):
    """One running server and what can be asked of it. A task cut off is a value, not an exception."""

    def run(self, task: Task) -> Measured: ...


class Loads(Protocol):
    """The loads that a session puts on its server. Every one is appended to `levels`, its time added to `seconds`.
    All raise LoadCutError if the server is lost or the user interrupts, and InvalidLoadError."""

    levels: list[Level]
    seconds: float
    waited_s: float

    def warm_up(self, task: Task) -> None: ...

    def closed(self, concurrency: int, seconds: float) -> Level:
        """Keep `concurrency` requests under way, up to the first limit that cannot be kept any more."""
        ...

    def probe(self, rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult: ...

    def saturate(self, seconds: float) -> Saturation: ...


def measure_task(task: Task, loads: Loads, queue_s: float = 0.0) -> Measured:
    """Run a task. `queue_s` is how long the tightest limit lets a request wait, 0 if no limit is about waiting."""
    first, before_s, waited_s = len(loads.levels), loads.seconds, loads.waited_s
    notes: list[Note] = []
    capacity: Capacity | None = None
    claimed: Claim | None = None
    cut: Cut | None = None

    try:
        loads.warm_up(task)
        match task:
            case RunLadder():
                _climb(task, loads)
            case HoldRate():
                loads.probe(task.rate, task.seconds, SEARCH_TRACE, Stop.AT_END)
            case Saturate():
                loads.saturate(task.seconds)
            case SearchCapacity():
                capacity = search_capacity(loads.probe, loads.saturate, task.incumbent, task.settings, queue_s)
            case MeasureBlock():
                capacity = search_near(loads.probe, task.start, task.settings, task.answer_s)
            case ClaimRate():
                full = None if task.saturate_s is None else loads.saturate(task.saturate_s).rate
                share = _share_left(task, full)
                if task.block is not None:
                    capacity = search_near(loads.probe, share * task.block.start, task.settings, task.block.answer_s)
                estimate = _estimate(task, capacity, share)
                if estimate is not None:
                    claimed = replace(claim(loads.probe, estimate, task.settings, queue_s), saturation=full)
    except LoadCutError as error:
        cut = error.cut
    except InvalidLoadError as error:
        cut = Cut.NOT_OFFERED
        notes.append(NotOffered(error.load.level, error.verdict.reasons, error.load.kind))
    levels = tuple(loads.levels[first:])
    outcome = outcome_of(task, levels, capacity, claimed, notes)
    best = None if outcome is LoadOutcome.INVALID else _best(task, levels, capacity, claimed)
    if capacity is not None and capacity.ended is Ended.UNTRIED:
        notes.append(NothingTried(capacity.seconds, capacity.saturation))
    elif outcome is LoadOutcome.BEHIND and isinstance(task, SearchCapacity) and task.incumbent and capacity:
        notes.append(FellBehind(capacity, task.incumbent))
    spent = (loads.seconds - before_s, loads.waited_s - waited_s)
    return Measured(levels, outcome, best, *spent, capacity, claimed, tuple(notes), cut)


def _share_left(task: ClaimRate, full: float | None) -> float:
    """Return the share of the estimate that is tried first. It may be `HEADROOM` higher than the full servers' loss
    would have it, since a claim only goes down."""
    if not full or not task.saturation:
        return 1.0
    return min(1.0, HEADROOM * full / task.saturation)


def _estimate(task: ClaimRate, block: Capacity | None, share: float) -> float | None:
    """Return the rate at which a claim begins, None if no rate of its block kept the limits. A rate too low for a
    block may still be claimed."""
    if block is None or block.ended is Ended.UNTRIED:
        return share * task.estimate
    return block.rate


def _climb(task: RunLadder, loads: Loads) -> None:
    best, kept = 0.0, 0
    for concurrency in task.levels:
        level = loads.closed(concurrency, task.level_s)
        qps = level.measurement.qps or 0.0
        if level.verdict.outcome is Outcome.INFEASIBLE:
            _descend(task, loads, (kept, concurrency))
            return
        if qps < RISE * best:
            return
        best, kept = max(best, qps), concurrency


def _descend(task: RunLadder, loads: Loads, between: tuple[int, int]) -> None:
    """Go down the lower levels `between` the one that was kept and the one that was not."""
    for concurrency in sorted(task.lower, reverse=True):
        inside = between[0] < concurrency < between[1]
        if inside and loads.closed(concurrency, task.level_s).verdict.outcome is not Outcome.INFEASIBLE:
            return


def _held(capacity: Capacity | None, claimed: Claim | None) -> float | None:
    """Return the highest rate that was loaded and passed, in requests per second."""
    if claimed is not None:
        return claimed.loaded
    return None if capacity is None else capacity.passed


def best_held(levels: Sequence[Level], held: float | None) -> int | None:
    """Return the index of the level at the held rate, of several the one with the longest tail."""
    passed = [
        (level.measurement.ttft_ms.p99 if level.measurement.ttft_ms else 0.0, i)
        for i, level in enumerate(levels)
        if held is not None
        and level.measurement.load == Load(LoadKind.OPEN, held)
        and kept_limits(level.measurement, level.verdict, Evidence.PREEMPTIONS_SEEN)
    ]
    return max(passed)[1] if passed else None


def _best(task: Task, levels: Sequence[Level], capacity: Capacity | None, claimed: Claim | None) -> int | None:
    is_open = isinstance(task, OPEN_SEARCHES)
    return best_held(levels, _held(capacity, claimed)) if is_open else best_of(tuple(levels))


def outcome_of(
    task: Task,
    levels: Sequence[Level],
    capacity: Capacity | None,
    claimed: Claim | None,
    notes: Sequence[Note],
) -> LoadOutcome | None:
    """Judge a task by its levels and its answer. `notes` hold the load that ended it without a verdict, if one did."""
    if notes:
        return LoadOutcome.INVALID
    if not levels:
        return None
    if _best(task, levels, capacity, claimed) is not None:
        return LoadOutcome.FEASIBLE
    if not isinstance(task, OPEN_SEARCHES):
        told = (level.verdict.outcome for level in levels if level.verdict.outcome is not Outcome.INVALID)
        return LoadOutcome(next(told, Outcome.INVALID))
    if _held(capacity, claimed) is not None or (capacity is None and claimed is None):
        return LoadOutcome.UNDECIDED
    if capacity is not None and capacity.ended is Ended.UNTRIED:
        # Answers that took longer than anybody waited decide nothing; requests that failed outright do.
        failed = any(kind != Failure.TIMEOUT for level in levels for kind, _ in level.measurement.failed)
        return LoadOutcome.INFEASIBLE if failed else LoadOutcome.UNDECIDED
    lost = capacity is not None and capacity.ended in (Ended.HOPELESS, Ended.RACE_LOST)
    return LoadOutcome.BEHIND if lost else LoadOutcome.INFEASIBLE
