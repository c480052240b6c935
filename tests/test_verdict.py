from __future__ import annotations

import math
from dataclasses import replace

import pytest

from tests.load.builders import CALM, level, request, telemetry
from tuner.load.drive import ClientFigures
from tuner.load.early_end import BACKLOG_GROWS, INTERRUPTED, EarlyEnd
from tuner.load.stream import Failure, RequestSample
from tuner.measurement import Load, LoadKind, Measurement, ServerLoad, measure
from tuner.slo import parse_slo
from tuner.verdict import Evidence, Outcome, Reason, ReasonKind, Verdict, judge, kept_limits, most_violations

SLO = parse_slo("p99 ttft <= 500ms")


def judged(
    requests: list[RequestSample],
    *,
    preemptions: float | None = 0,
    client: ClientFigures = CALM,
    aborted: EarlyEnd | None = None,
) -> Verdict:
    samples = level(requests, client=client, aborted=aborted)
    found = measure(samples, telemetry(preemptions=preemptions), Load(LoadKind.CLOSED, 10), slos=[SLO])
    return judge(found, [SLO])


def mixture(fast: int, slow: int, slow_ms: float = 600) -> list[RequestSample]:
    return [request(i, ttft_ms=100 if i < fast else slow_ms) for i in range(fast + slow)]


def test_a_level_that_keeps_everything_is_feasible() -> None:
    verdict = judged(mixture(500, 0))
    assert verdict.outcome is Outcome.FEASIBLE
    assert verdict.reasons == ()
    assert verdict.slo_margin == pytest.approx(math.log(100 / 500))
    assert verdict.confidence == pytest.approx(1 - 0.99**500)


def test_one_in_a_hundred_may_be_slow_and_not_one_more() -> None:
    assert judged(mixture(990, 10)).outcome is Outcome.FEASIBLE
    broken = judged(mixture(989, 11))
    assert broken.outcome is Outcome.INFEASIBLE
    assert broken.slo_margin == pytest.approx(math.log(600 / 500))
    assert broken.reasons == (Reason(ReasonKind.LIMIT_BROKEN, 600.0, 1000.0, "p99 ttft <= 500ms"),)


def test_a_single_preemption_is_infeasible_and_an_unseen_one_undecided() -> None:
    assert judged(mixture(500, 0), preemptions=1).outcome is Outcome.INFEASIBLE
    unseen = judged(mixture(500, 0), preemptions=None)
    assert unseen.outcome is Outcome.UNDECIDED
    assert unseen.reasons == (Reason(ReasonKind.PREEMPTIONS_UNKNOWN),)


def test_a_single_failed_request_is_infeasible() -> None:
    verdict = judged([*mixture(500, 0), request(501, failure=Failure.SHORTENED)])
    assert verdict.outcome is Outcome.INFEASIBLE
    assert verdict.reasons[0] == Reason(ReasonKind.REQUESTS_FAILED, 1.0, subject="shortened")


def test_all_requests_failed_is_not_the_best_trial() -> None:
    verdict = judged([request(i, ttft_ms=None, failure=Failure.CONNECT) for i in range(50)])
    assert verdict.outcome is Outcome.INFEASIBLE
    assert verdict.slo_margin is None


def test_too_few_requests_are_undecided_and_it_says_how_many_are_missing() -> None:
    verdict = judged(mixture(60, 0))
    assert verdict.outcome is Outcome.UNDECIDED
    assert verdict.missing_requests == 40
    assert verdict.reasons == (Reason(ReasonKind.REQUESTS_MISSING, 40.0, 100.0),)


def test_few_requests_that_can_no_longer_pass_are_infeasible_already() -> None:
    assert judged(mixture(30, 1)).outcome is Outcome.UNDECIDED
    assert judged(mixture(30, 2)).outcome is Outcome.INFEASIBLE


def test_nothing_at_all_is_undecided() -> None:
    assert judged([]).outcome is Outcome.UNDECIDED
    assert judged([]).missing_requests == 100


@pytest.mark.parametrize("fault", [{"cpu_share": 0.95}, {"lag_p99_ms": 30.0}, {"late_p99_ms": 30.0}])
def test_a_level_that_the_client_could_not_drive_is_invalid_not_slow(fault: dict[str, float]) -> None:
    for requests in (mixture(500, 0), mixture(400, 100)):
        verdict = judged(requests, client=replace(CALM, **fault))
        assert verdict.outcome is Outcome.INVALID


def test_a_preemption_counts_however_the_client_fared() -> None:
    verdict = judged(mixture(500, 0), preemptions=2, client=replace(CALM, lag_p99_ms=90.0))
    assert (verdict.outcome, verdict.reasons) == (Outcome.INFEASIBLE, (Reason(ReasonKind.PREEMPTIONS, 2.0),))


def test_a_limit_broken_by_less_than_the_clients_lag_is_invalid() -> None:
    late = replace(CALM, lag_p99_ms=8.0)
    assert judged(mixture(400, 100, slow_ms=510), client=late).outcome is Outcome.INVALID
    assert judged(mixture(400, 100, slow_ms=600), client=late).outcome is Outcome.INFEASIBLE
    assert judged(mixture(500, 0), client=late).outcome is Outcome.FEASIBLE, "lag only ever makes an answer look later"


def test_a_level_ended_early_for_no_fault_of_its_own_is_undecided() -> None:
    verdict = judged(mixture(500, 0), aborted=INTERRUPTED)
    assert verdict.outcome is Outcome.UNDECIDED
    assert verdict.reasons == (Reason(ReasonKind.ENDED_EARLY, ended=INTERRUPTED),)


def test_a_record_without_attainments_is_judged_by_its_percentiles() -> None:
    found = measure(level(mixture(500, 0)), telemetry(), Load(LoadKind.CLOSED, 10), slos=[SLO])
    old: Measurement = replace(found, attainments=())
    assert judge(old, [SLO]).outcome is Outcome.FEASIBLE
    assert judge(old, [parse_slo("p99 ttft <= 99ms")]).outcome is Outcome.INFEASIBLE


def test_every_limit_counts_and_the_tightest_gives_the_margin() -> None:
    slos = [SLO, parse_slo("p50 e2e <= 100ms")]
    found = measure(level(mixture(500, 0)), telemetry(), Load(LoadKind.CLOSED, 10), slos=slos)
    verdict = judge(found, slos)
    assert verdict.outcome is Outcome.INFEASIBLE
    assert verdict.slo_margin == pytest.approx(math.log(200 / 100))


@pytest.mark.parametrize(("requests", "most"), [(99, 0), (100, 1), (1000, 10), (1999, 19)])
def test_one_percent_is_counted_without_floating_point_surprises(requests: int, most: int) -> None:
    assert most_violations(requests, SLO) == most


def in_open_loop(answers_s: list[float], seconds: float = 30.0, aborted: EarlyEnd | None = None) -> Verdict:
    """`answers_s`: how long each request takes after a first token in 50 ms; they come evenly over the level."""
    rate = len(answers_s) / seconds
    requests = [
        request(i, due_ms=1000 * i / rate, ttft_ms=50, tpot_ms=100 * answer_s - 5, tokens=11)
        for i, answer_s in enumerate(answers_s)
    ]
    found = measure(level(requests, seconds, aborted=aborted), telemetry(), Load(LoadKind.OPEN, rate), slos=[SLO])
    assert found.ttft_ms is not None and found.ttft_ms.max < 500
    return judge(found, [SLO])


def test_a_server_that_answers_ever_more_slowly_does_not_keep_up_however_fast_its_first_tokens() -> None:
    """Seen: 32.5 offered, 26 completed, and every first token in time."""
    verdict = in_open_loop([4 + 8 * i / 975 for i in range(975)])
    assert verdict.outcome is Outcome.INFEASIBLE
    assert [reason.kind for reason in verdict.reasons] == [ReasonKind.FELL_BEHIND]
    assert verdict.slo_margin is not None and verdict.slo_margin < 0


def test_a_server_that_is_slow_and_steady_keeps_up() -> None:
    assert in_open_loop([5.0] * 975).outcome is Outcome.FEASIBLE


def test_a_handful_left_open_by_chance_is_no_backlog() -> None:
    assert in_open_loop([1 + 0.5 * (i > 250) for i in range(300)]).outcome is Outcome.FEASIBLE


def test_a_level_that_was_ended_for_its_backlog_is_infeasible() -> None:
    verdict = in_open_loop([5.0] * 300, aborted=BACKLOG_GROWS)
    assert (verdict.outcome, verdict.reasons) == (Outcome.INFEASIBLE, (Reason(ReasonKind.BACKLOG_GROWS),))


def undecided(**changes: object) -> tuple[Measurement, Verdict]:
    """Build a level of sixty requests that kept its limit as far as it went."""
    found = measure(level(mixture(60, 0)), telemetry(), Load(LoadKind.CLOSED, 10), slos=[SLO])
    found = replace(found, **changes)  # type: ignore[arg-type]
    return found, judge(found, [SLO])


def kept_by(measurement: Measurement, verdict: Verdict) -> set[Evidence]:
    return {needed for needed in Evidence if kept_limits(measurement, verdict, needed)}


def test_few_requests_keep_the_limits_where_no_number_of_them_is_asked_for() -> None:
    assert kept_by(*undecided()) == {Evidence.NONE, Evidence.PREEMPTIONS_SEEN}
    assert kept_by(*undecided(server=ServerLoad(preemptions=None))) == {Evidence.NONE}
    assert kept_by(*undecided(aborted=INTERRUPTED)) == kept_by(*undecided(completed=0)) == set()


def test_unseen_preemptions_keep_the_limits_where_no_promise_is_made() -> None:
    found = measure(level(mixture(500, 0)), telemetry(preemptions=None), Load(LoadKind.CLOSED, 10), slos=[SLO])
    assert kept_by(found, judge(found, [SLO])) == {Evidence.NONE, Evidence.ENOUGH_REQUESTS}
    seen = replace(found, server=ServerLoad(preemptions=0))
    assert kept_by(seen, judge(seen, [SLO])) == set(Evidence)
    broken = replace(found, server=ServerLoad(preemptions=1))
    assert kept_by(broken, judge(broken, [SLO])) == set()
