"""Results that every session makes of its loads: outcome, the level that counts, and notes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from tests.study.builders import level
from tests.study.open_server import OpenServer, open_level
from tuner.bench.capacity_search import Capacity, Claim, Ended, Incumbent, ProbeResult, Saturation, Stop
from tuner.bench.level import Level
from tuner.bench.measured import (
    Cut,
    FellBehind,
    InvalidLoadError,
    LoadCutError,
    LoadOutcome,
    NothingTried,
    NotOffered,
    best_held,
    measure_task,
    outcome_of,
)
from tuner.bench.phrases import note_text
from tuner.bench.task import ClaimRate, HoldRate, RunLadder, Saturate, SearchCapacity, Task
from tuner.load.stream import Failure
from tuner.measurement import Load, LoadKind
from tuner.verdict import Outcome, Reason, ReasonKind, Verdict


@pytest.mark.parametrize("rate", [0.2, 7.3, 1500.0])
def test_the_level_that_counts_is_the_highest_rate_that_passed(rate: float) -> None:
    found = OpenServer(rate).run(SearchCapacity())
    assert found.capacity is not None and found.capacity.rate == pytest.approx(rate, rel=0.01)
    assert found.best is not None
    assert found.levels[found.best].measurement.load.level == found.capacity.passed
    assert found.outcome is LoadOutcome.FEASIBLE


def test_the_closed_loop_is_never_the_level_that_counts() -> None:
    assert best_held([level(10.0, p99_ms=1.0, concurrency=10), open_level(10.0)], 10.0) == 1


def test_of_a_claims_traces_the_one_with_the_longest_tail_is_shown() -> None:
    levels = [open_level(9.0, 200), open_level(9.0, 400), open_level(9.0, 300), open_level(9.9, 450)]
    assert best_held(levels, 9.0) == 1


def test_a_claim_that_never_holds_is_infeasible_though_traces_of_it_passed() -> None:
    claim = OpenServer(10.0).run(ClaimRate(30.0)).claim
    assert claim is not None and claim.rate is None
    assert outcome_of(ClaimRate(30.0), [open_level(28.5)], None, claim, ()) is LoadOutcome.INFEASIBLE


@pytest.mark.parametrize(("alone", "begins"), [(12.5, 10.0), (16.0, 10.0 * 1.05 * 12.5 / 16.0), (10.0, 10.0)])
def test_a_claim_of_several_servers_fills_them_first_and_begins_lower_by_what_they_lost(
    alone: float, begins: float
) -> None:
    """The servers saturate at 12.5 behind their door, and at `alone` without it."""
    found = OpenServer(10.0).run(ClaimRate(10.0, saturate_s=15.0, saturation=alone))
    assert [measured.measurement.load.kind for measured in found.levels[:2]] == [LoadKind.CLOSED, LoadKind.OPEN]
    assert found.claim is not None and found.claim.saturation == 12.5
    assert found.claim.probes[0].rate == pytest.approx(begins)
    assert found.best is not None and found.levels[found.best].measurement.load.kind is LoadKind.OPEN


def test_a_claim_that_fills_servers_without_an_answer_begins_where_it_would_without() -> None:
    found = Silent(10.0).run(ClaimRate(10.0, saturate_s=15.0, saturation=12.5))
    assert found.claim is not None and (found.claim.saturation, found.claim.probes[0].rate) == (0.0, 10.0)


@pytest.mark.parametrize(("capacity", "says"), [(7.0, "a closed loop gives 8.75 req/s at most"),
                                                (9.7, "does not keep the limits at 10.0 req/s")])  # fmt: skip
def test_who_cannot_win_is_behind_and_the_note_says_why(capacity: float, says: str) -> None:
    found = OpenServer(capacity).run(SearchCapacity(incumbent=Incumbent(10.0, 12.5)))
    assert found.outcome is LoadOutcome.BEHIND
    (note,) = found.notes
    assert isinstance(note, FellBehind) and note.incumbent.rate == 10.0
    assert says in note_text(note) and "sustains 10.0 req/s" in note_text(note)


@dataclass
class WeakClient(OpenServer):
    """Server whose client can offer no more than `most` requests/s."""

    most: float = 0.0

    def probe(self, rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        if rate > self.most:
            raise InvalidLoadError(
                Load(LoadKind.OPEN, rate), Verdict(Outcome.INVALID, (Reason(ReasonKind.CLIENT_BUSY, 0.95),))
            )
        return super().probe(rate, seconds, trace, stop)


@pytest.mark.parametrize(
    "task", [SearchCapacity(), SearchCapacity(incumbent=Incumbent(60.0, 75.0)), ClaimRate(60.0), HoldRate(60.0, 20.0)]
)
def test_a_rate_that_cannot_be_offered_ends_the_task_and_no_lower_one_is_promised(task: Task) -> None:
    server = WeakClient(100.0, most=50.0)
    found = server.run(task)
    assert (found.outcome, found.cut, found.best) == (LoadOutcome.INVALID, Cut.NOT_OFFERED, None)
    assert found.capacity is None and found.claim is None
    assert all(level.measurement.load.kind is LoadKind.CLOSED for level in found.levels), "nothing lower was tried"
    (note,) = found.notes
    assert isinstance(note, NotOffered) and note.rate > 50
    assert "could not be offered: the load generator used 95%" in note_text(note)


def test_a_rate_that_passed_before_one_that_cannot_be_offered_is_no_answer() -> None:
    found = WeakClient(45.0, most=44.0).run(SearchCapacity(incumbent=Incumbent(40.0, 50.0)))
    assert any(level.verdict.outcome is Outcome.FEASIBLE for level in found.levels)
    assert (found.outcome, found.best) == (LoadOutcome.INVALID, None)


def undecided(made: Level, *, preemptions: int | None, margin: float = -0.1, completed: int = 60) -> Level:
    server = replace(made.measurement.server, preemptions=preemptions)
    measured = replace(made.measurement, server=server, completed=completed)
    return Level(measured, Verdict(Outcome.UNDECIDED, (), margin))


def test_few_requests_pass_by_all_they_show_and_nothing_else_does() -> None:
    capacity = Capacity(Ended.FOUND, 0.51, 0.5, 0.52, 0.6, 300.0)

    def outcome(made: Level) -> LoadOutcome | None:
        return outcome_of(SearchCapacity(), [made], capacity, None, ())

    assert outcome(undecided(open_level(0.5), preemptions=0)) is LoadOutcome.FEASIBLE
    blind = undecided(open_level(0.5), preemptions=None)
    late = undecided(open_level(0.5), preemptions=0, margin=0.1)
    none = undecided(open_level(0.5), preemptions=0, completed=0)
    assert [outcome(made) for made in (blind, late, none)] == [LoadOutcome.UNDECIDED] * 3


@dataclass
class Silent(OpenServer):
    """Server that completes nothing in its closed loop; `failed` counts its requests by kind of failure."""

    failed: tuple[tuple[str, int], ...] = ()

    def saturate(self, seconds: float) -> Saturation:
        closed = level(0.0, concurrency=320)
        measurement = replace(closed.measurement, completed=0, failed=self.failed)
        self.levels.append(replace(closed, measurement=measurement))
        return Saturation(0.0, seconds)


@pytest.mark.parametrize(
    ("failed", "outcome"),
    [
        ((), LoadOutcome.UNDECIDED),
        (((str(Failure.TIMEOUT), 320),), LoadOutcome.UNDECIDED),
        ((("http-500", 320),), LoadOutcome.INFEASIBLE),
    ],
)
@pytest.mark.parametrize("incumbent", [None, Incumbent(10.0, 12.5)])
def test_without_an_answer_in_the_longest_closed_loop_nothing_is_decided_unless_requests_failed(
    failed: tuple[tuple[str, int], ...], outcome: LoadOutcome, incumbent: Incumbent | None
) -> None:
    found = Silent(1.0, failed=failed).run(SearchCapacity(incumbent=incumbent))
    assert found.outcome is outcome and found.best is None
    (note,) = found.notes
    assert isinstance(note, NothingTried)
    assert note_text(note).startswith("no rate was tried: in ")


def test_a_task_is_warmed_up_for_and_says_its_own_levels_only() -> None:
    server = OpenServer(10.0)
    first, second = server.run(Saturate(15.0)), server.run(SearchCapacity())
    assert len(first.levels) == 1 and first.capacity is None and first.outcome is LoadOutcome.INFEASIBLE
    assert first.levels + second.levels == tuple(server.levels)


@dataclass
class Steps:
    """Loads of a ladder: QPS by concurrency; at a concurrency that is not there the server is lost. At those of
    `breaking` a limit is broken."""

    qps: dict[int, float]
    disturbed: tuple[int, ...] = ()
    breaking: tuple[int, ...] = ()
    levels: list[Level] = field(default_factory=list)
    seconds: float = 0.0
    waited_s: float = 0.0

    def warm_up(self, task: Task) -> None:
        self.seconds += 1.0

    def closed(self, concurrency: int, seconds: float) -> Level:
        if concurrency in self.disturbed:
            self.waited_s += 6.0
            raise InvalidLoadError(
                Load(LoadKind.CLOSED, concurrency), Verdict(Outcome.INVALID, (Reason(ReasonKind.CLIENT_LATE, 145.0),))
            )
        if concurrency not in self.qps:
            raise LoadCutError(Cut.SERVER_LOST)
        self.seconds += seconds
        p99_ms = 900.0 if concurrency in self.breaking else 300.0
        self.levels.append(level(self.qps[concurrency], p99_ms, concurrency=concurrency))
        return self.levels[-1]

    def probe(self, rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        raise AssertionError("a ladder has no open loop")

    def saturate(self, seconds: float) -> Saturation:
        raise AssertionError("a ladder has levels of its own")


def test_a_ladder_ends_at_the_level_that_brings_no_more() -> None:
    found = measure_task(RunLadder((4, 8, 16, 32), 5.0), Steps({4: 10.0, 8: 19.0, 16: 19.1, 32: 40.0}))
    assert [made.measurement.load.level for made in found.levels] == [4, 8, 16]
    assert found.best == 2 and found.outcome is LoadOutcome.FEASIBLE and found.cut is None


@pytest.mark.parametrize(
    ("levels", "breaking", "loaded", "best"),
    [
        ((4, 32), (32,), [4, 32, 16], 16),
        ((4, 32), (16, 32), [4, 32, 16, 8], 8),
        ((4, 32), (8, 16, 32), [4, 32, 16, 8], 4),
        ((16,), (16,), [16, 8], 8),
        ((8, 32), (), [8, 32], 32),
        ((8, 16), (4, 8), [8, 4], None),
    ],
)
def test_from_a_level_that_breaks_a_limit_the_load_goes_down_to_one_that_keeps_it(
    levels: tuple[int, ...], breaking: tuple[int, ...], loaded: list[int], best: int | None
) -> None:
    steps = Steps({n: float(n) for n in (4, 8, 16, 32)}, breaking=breaking)
    lower = tuple(n for n in (4, 8, 16, 32) if n not in levels)
    found = measure_task(RunLadder(levels, 60.0, lower), steps)
    assert [made.measurement.load.level for made in found.levels] == loaded
    counted = None if found.best is None else found.levels[found.best].measurement.load.level
    assert counted == best
    assert found.outcome is (LoadOutcome.INFEASIBLE if best is None else LoadOutcome.FEASIBLE)


def test_a_ladder_with_a_level_that_cannot_be_offered_has_no_verdict() -> None:
    found = measure_task(RunLadder((4, 8, 16), 5.0), Steps({4: 10.0, 16: 40.0}, disturbed=(8,)))
    assert [made.measurement.load.level for made in found.levels] == [4]
    assert (found.outcome, found.best, found.cut) == (LoadOutcome.INVALID, None, Cut.NOT_OFFERED)
    assert found.waited_s == 6.0
    says = "8 concurrent requests could not be offered: the load generator was 145 ms late"
    assert note_text(found.notes[0]).startswith(says)


def test_a_task_that_is_cut_off_keeps_the_levels_before() -> None:
    found = measure_task(RunLadder((4, 8), 5.0), Steps({4: 10.0}))
    assert len(found.levels) == 1 and found.cut is Cut.SERVER_LOST and found.outcome is LoadOutcome.FEASIBLE
    nothing = measure_task(RunLadder((4, 8), 5.0), Steps({}))
    assert nothing.outcome is None and nothing.best is None and nothing.cut is Cut.SERVER_LOST


def test_load_that_did_not_come_to_its_end_decides_nothing() -> None:
    assert outcome_of(SearchCapacity(), [open_level(9.0)], None, None, ()) is LoadOutcome.UNDECIDED
    held = Claim(9.0, (), 10.0, loaded=9.1)
    assert outcome_of(ClaimRate(9.0), [open_level(5.0)], None, held, ()) is LoadOutcome.UNDECIDED
