from __future__ import annotations

from dataclasses import replace

import pytest

from tests.study.builders import level
from tests.study.open_server import OpenServer, open_level
from tuner.bench.capacity_search import Capacity, Ended, Incumbent, ProbeResult, Saturation, SearchSettings, Stop
from tuner.bench.open_probe import InvalidLoadError
from tuner.load.stream import Failure
from tuner.study.open_loop import OpenLoopResult
from tuner.study.record import Level, TrialOutcome
from tuner.verdict import Outcome, Reason, ReasonKind, Verdict


def found(server: OpenServer, incumbent: Incumbent | None = None, estimate: float | None = None) -> OpenLoopResult:
    answer = OpenLoopResult(incumbent)
    answer.find(server.probe, server.saturate, SearchSettings(), estimate)
    return answer


@pytest.mark.parametrize("rate", [0.2, 7.3, 1500.0])
def test_the_level_that_counts_is_the_highest_rate_that_passed(rate: float) -> None:
    server = OpenServer(rate)
    answer = found(server)
    assert answer.capacity is not None and answer.capacity.rate == pytest.approx(rate, rel=0.01)
    best = answer.best(server.levels)
    assert best is not None
    assert server.levels[best].measurement.load.level == answer.capacity.passed
    assert answer.outcome(server.levels) is TrialOutcome.FEASIBLE


def test_the_closed_loop_is_never_the_level_that_counts() -> None:
    server = OpenServer(10.0)
    answer = found(server)
    server.levels[0] = level(1000.0, p99_ms=1.0)
    best = answer.best(server.levels)
    assert best is not None and best > 0


def test_of_a_claims_traces_the_one_with_the_longest_tail_is_shown() -> None:
    server = OpenServer(10.0)
    answer = found(server, estimate=9.0)
    assert answer.claim is not None and answer.claim.rate is not None
    rate = answer.claim.rate
    levels = [open_level(rate, 200), open_level(rate, 400), open_level(rate, 300), open_level(rate * 1.1, 450)]
    assert answer.best(levels) == 1


def test_a_claim_that_never_holds_is_infeasible_though_traces_of_it_passed() -> None:
    server = OpenServer(10.0)
    answer = found(server, estimate=30.0)
    assert answer.outcome([*server.levels, open_level(28.5)]) is TrialOutcome.INFEASIBLE


@pytest.mark.parametrize(("capacity", "says"), [(7.0, "a closed loop gives 8.75 req/s at most"),
                                                (9.7, "does not keep the limits at 10.0 req/s")])  # fmt: skip
def test_who_cannot_win_is_behind_and_it_says_why(capacity: float, says: str) -> None:
    server = OpenServer(capacity)
    answer = found(server, Incumbent(10.0, 12.5))
    outcome = answer.outcome(server.levels)
    assert outcome is TrialOutcome.BEHIND
    (note,) = answer.notes(outcome)
    assert says in note and "sustains 10.0 req/s" in note


def test_a_rate_that_the_client_cannot_offer_is_rejected_and_lower_ones_are_searched() -> None:
    server = OpenServer(100.0)

    def weak_client(rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        if rate > 50:
            raise InvalidLoadError(Verdict(Outcome.INVALID, (Reason(ReasonKind.CLIENT_BUSY, 0.95),)))
        return server.probe(rate, seconds, trace, stop)

    answer = OpenLoopResult()
    answer.find(weak_client, server.saturate, SearchSettings(), None)
    assert answer.outcome(server.levels) is TrialOutcome.FEASIBLE
    assert answer.held is not None and 40 < answer.held <= 50
    assert "could not be offered: the load generator used 95%" in answer.notes(TrialOutcome.FEASIBLE)[0]


def test_where_nothing_passed_and_the_client_is_why_the_answer_is_invalid() -> None:
    def no_client(rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        raise InvalidLoadError(Verdict(Outcome.INVALID, (Reason(ReasonKind.CLIENT_LATE, 80.0),)))

    for incumbent in (None, Incumbent(10.0, 12.5)):
        server, answer = OpenServer(10.0), OpenLoopResult(incumbent)
        answer.find(no_client, server.saturate, SearchSettings(), None)
        assert answer.outcome(server.levels) is TrialOutcome.INVALID


def undecided(made: Level, *, preemptions: int | None, margin: float = -0.1, completed: int = 60) -> Level:
    server = replace(made.measurement.server, preemptions=preemptions)
    measured = replace(made.measurement, server=server, completed=completed)
    return Level(measured, Verdict(Outcome.UNDECIDED, (), margin))


def test_few_requests_pass_by_all_they_show_and_nothing_else_does() -> None:
    answer = OpenLoopResult(capacity=Capacity(Ended.FOUND, 0.51, 0.5, 0.52, 0.6, 300.0))
    few = undecided(open_level(0.5), preemptions=0)
    blind = undecided(open_level(0.5), preemptions=None)
    late = undecided(open_level(0.5), preemptions=0, margin=0.1)
    none = undecided(open_level(0.5), preemptions=0, completed=0)
    assert answer.outcome([few]) is TrialOutcome.FEASIBLE
    assert [answer.outcome([made]) for made in (blind, late, none)] == [TrialOutcome.UNDECIDED] * 3


@pytest.mark.parametrize(
    ("failed", "outcome"),
    [
        ((), TrialOutcome.UNDECIDED),
        (((str(Failure.TIMEOUT), 320),), TrialOutcome.UNDECIDED),
        ((("http-500", 320),), TrialOutcome.INFEASIBLE),
    ],
)
@pytest.mark.parametrize("incumbent", [None, Incumbent(10.0, 12.5)])
def test_without_an_answer_in_the_longest_closed_loop_nothing_is_decided_unless_requests_failed(
    failed: tuple[tuple[str, int], ...], outcome: TrialOutcome, incumbent: Incumbent | None
) -> None:
    answer = OpenLoopResult(incumbent)
    answer.find(OpenServer(1.0).probe, lambda seconds: Saturation(0.0, seconds), SearchSettings(), None)
    closed = level(0.0, concurrency=320)
    closed = replace(closed, measurement=replace(closed.measurement, completed=0, failed=failed))
    assert answer.outcome([closed]) is outcome
    assert answer.best([closed]) is None
    (note,) = answer.notes(outcome)
    assert note.startswith("no rate was tried: in ")


def test_load_that_did_not_come_to_its_end_decides_nothing() -> None:
    assert OpenLoopResult().outcome([level(100.0)]) is TrialOutcome.UNDECIDED
