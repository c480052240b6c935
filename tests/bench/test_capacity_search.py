"""Capacity search on servers whose capacity is a formula: ln(P99 / limit) crosses zero at it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.bench.capacity_search import (
    Ended,
    Incumbent,
    ProbeResult,
    Saturation,
    SearchSettings,
    Steps,
    Stop,
    claim,
    search_capacity,
    search_near,
)


@dataclass
class Known:
    """Capacity `rate`; saturation is 1.25 times that. Steep: 1 % more load is `steepness` % more P99."""

    rate: float
    steepness: float = 20.0
    answer_s: float = 1.0
    probed: list[tuple[float, float, str, Stop]] = field(default_factory=list)

    def probe(self, rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        self.probed.append((rate, seconds, trace, stop))
        log_ratio = self.steepness * math.log(rate / self.rate)
        return ProbeResult(rate, log_ratio <= 0, log_ratio, seconds)

    def saturate(self, seconds: float) -> Saturation:
        return Saturation(1.25 * self.rate, self.answer_s)


@given(st.floats(0.05, 5000), st.floats(2, 60))
def test_a_cold_search_finds_capacities_from_a_twentieth_to_thousands(rate: float, steepness: float) -> None:
    server = Known(rate, steepness)
    found = search_capacity(server.probe, server.saturate)
    assert found.ended is Ended.FOUND
    assert found.rate == pytest.approx(rate, rel=0.002)
    assert found.passed is not None and found.failed is not None
    assert found.passed <= rate <= found.failed <= found.passed * 1.06
    assert len(server.probed) <= 12


def test_a_candidate_that_cannot_win_costs_one_closed_probe() -> None:
    server = Known(7.0)
    found = search_capacity(server.probe, server.saturate, Incumbent(10.0, 12.5))
    assert (found.ended, found.rate, found.seconds, server.probed) == (Ended.HOPELESS, None, 15.0, [])


def test_an_incumbent_that_preempts_long_before_it_is_full_rules_no_candidate_out() -> None:
    """It sustains 10 of 25; the candidate is slower at saturation, and sustains four fifths of it."""
    server = Known(16.0)
    found = search_capacity(server.probe, server.saturate, Incumbent(10.0, 25.0))
    assert found.ended is Ended.FOUND
    assert found.rate == pytest.approx(16, rel=0.002)
    assert len(server.probed) <= 9


def test_a_candidate_that_is_no_better_loses_the_race_in_one_probe_that_runs_to_its_end() -> None:
    server = Known(10.0)
    found = search_capacity(server.probe, server.saturate, Incumbent(10.0, 12.5))
    assert found.ended is Ended.RACE_LOST
    assert found.failed == pytest.approx(10 * SearchSettings().race)
    assert [probed[3] for probed in server.probed] == [Stop.AT_END]


@pytest.mark.parametrize(("too_high", "likely"), [(0.05, 0.95), (0.1, 0.9), (0.8, 0.5)])
def test_the_tail_of_a_lost_race_tells_how_far_behind_a_candidate_is(too_high: float, likely: float) -> None:
    """The wait grew, over the twenty seconds of a probe, from the limit's half second by a share of them."""

    def probe(rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        return ProbeResult(rate, False, math.log((0.5 + too_high * seconds) / 0.5), seconds)

    found = search_capacity(probe, lambda _: Saturation(12.5, 1.0), Incumbent(10.0, 12.5), queue_s=0.5)
    assert found.likely == pytest.approx(10.0 * likely)


def test_the_sooner_a_candidate_preempts_the_further_behind_it_is_taken_to_be() -> None:
    def probe(rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        return ProbeResult(rate, False, None, 5.0)

    found = search_capacity(probe, lambda _: Saturation(12.5, 1.0), Incumbent(10.0, 12.5), queue_s=0.5)
    assert found.likely == pytest.approx(10.0 * 0.9)


def test_without_a_limit_on_waiting_a_rejection_tells_no_rate() -> None:
    server = Known(10.0)
    assert search_capacity(server.probe, server.saturate, Incumbent(10.0, 12.5)).likely is None


@pytest.mark.parametrize("gain", [1.03, 1.06, 1.2])
def test_a_better_candidate_is_stepped_up_to_its_capacity(gain: float) -> None:
    server = Known(10.0 * gain)
    found = search_capacity(server.probe, server.saturate, Incumbent(10.0, 12.5))
    assert found.ended is Ended.FOUND
    assert found.rate == pytest.approx(10 * gain, rel=0.002)


def test_far_below_the_limit_the_way_up_is_short() -> None:
    """The incumbent sustains 6 of 12.5, the candidate 10 of as many: nobody foresees its share."""
    server = Known(10.0)
    found = search_capacity(server.probe, server.saturate, Incumbent(6.0, 12.5))
    assert found.ended is Ended.FOUND
    assert found.rate == pytest.approx(10, rel=0.002)
    steps = math.log(10 / 6.12) / math.log(1 + SearchSettings().step)
    assert len(server.probed) < steps / 2


@pytest.mark.parametrize(
    ("log_ratio", "stride"),
    [(None, 0.035), (0.0, 0.035), (-0.7, 0.035), (-1.4, 0.07), (-9.0, 0.14), (1.0, 0.035)],
)
def test_a_step_is_longer_the_further_the_tail_is_below_the_limit(log_ratio: float | None, stride: float) -> None:
    assert SearchSettings().stride(log_ratio) == pytest.approx(stride)


def test_steps_alone_estimate_losers_too() -> None:
    server = Known(7.0)
    steps = Steps.of_full_server(server.probe, server.saturate, SearchSettings(), Incumbent(10.0, 12.5))
    assert steps.search(steps.saturation.rate * 0.8, widen=1.0).rate == pytest.approx(7.0, rel=0.002)


def test_all_probes_of_a_search_are_on_one_trace() -> None:
    server = Known(10.0)
    search_capacity(server.probe, server.saturate)
    assert {trace for _, _, trace, _ in server.probed} == {"search"}


def test_slow_servers_are_probed_long_enough_for_a_p99_within_reason() -> None:
    assert SearchSettings().seconds_at(50) == 20
    assert SearchSettings().seconds_at(2) == 50
    assert SearchSettings().seconds_at(0.1) == 120


def test_long_answers_make_longer_probes() -> None:
    server = Known(10.0, answer_s=12.0)
    found = search_capacity(server.probe, server.saturate)
    assert {seconds for _, seconds, _, _ in server.probed} == {24.0}
    assert found.seconds == 15 + 36 + 24 * len(server.probed)


def test_where_the_time_of_an_answer_is_known_one_closed_loop_is_enough() -> None:
    server = Known(10.0, answer_s=12.0)
    before = search_capacity(server.probe, server.saturate)
    assert before.rate is not None
    server.probed.clear()
    incumbent = Incumbent(before.rate, before.saturation, before.answer_s)
    steps = Steps.of_full_server(server.probe, server.saturate, SearchSettings(), incumbent)
    found = steps.search(before.rate, widen=1.0)
    assert found.seconds == 36 + 24 * len(server.probed)


@pytest.mark.parametrize("incumbent", [None, Incumbent(10.0, 12.5)])
def test_a_closed_loop_without_an_answer_is_tried_for_the_longest_time_and_then_nothing_is_known(
    incumbent: Incumbent | None,
) -> None:
    server, tried = Known(1), list[float]()

    def silent(seconds: float) -> Saturation:
        tried.append(seconds)
        return Saturation(0.0, seconds + 120.0)

    found = search_capacity(server.probe, silent, incumbent)
    assert (found.ended, found.rate, server.probed) == (Ended.UNTRIED, None, [])
    assert tried == [15.0, 120.0] and found.seconds == 135.0


def test_a_server_too_slow_for_five_requests_a_probe_is_untried_and_has_not_failed() -> None:
    server = Known(0.02)
    found = search_capacity(server.probe, server.saturate)
    assert (found.ended, found.rate, server.probed) == (Ended.UNTRIED, None, [])


def test_a_limit_that_no_load_keeps_ends_with_never_passed() -> None:
    def hopeless(rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        return ProbeResult(rate, False, 1.0, seconds)

    found = search_capacity(hopeless, lambda seconds: Saturation(10.0, 1.0))
    assert (found.ended, found.rate) == (Ended.NEVER_PASSED, None)
    lowest = found.probes[-1]
    assert 5 <= lowest.rate * lowest.seconds < 20, "no rate is tried that offers next to nothing"


def test_without_ratios_the_middle_of_the_interval_is_the_answer() -> None:
    def blind(rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        return ProbeResult(rate, rate <= 10, None, seconds)

    found = search_capacity(blind, lambda seconds: Saturation(12.5, 1.0))
    assert found.rate == pytest.approx(10, rel=0.03)


def test_a_claim_is_held_on_three_fresh_traces() -> None:
    server = Known(100.0)
    claimed = claim(server.probe, 99.0)
    assert claimed.rate == 99.0
    assert [(seconds, trace) for _, seconds, trace, _ in server.probed] == [
        (120.0, "claim-0-0"), (120.0, "claim-0-1"), (120.0, "claim-0-2")
    ]  # fmt: skip


def test_more_is_loaded_than_promised_by_what_a_growing_queue_could_hide() -> None:
    server = Known(100.0)
    claimed = claim(server.probe, 99.5, queue_s=1.2)
    assert claimed.rate == pytest.approx(99.5 * 0.985)
    assert claimed.loaded == pytest.approx(99.5 * 0.985 / 0.99)
    assert {rate for rate, *_ in server.probed} == {99.5 / 0.99, claimed.loaded}


def test_a_limit_that_is_long_for_its_trace_costs_a_twentieth_at_most() -> None:
    claimed = claim(Known(100.0).probe, 90.0, queue_s=60.0)
    assert claimed.loaded == pytest.approx(90.0 / 0.95)


def test_the_traces_of_a_claim_hold_2500_requests_within_reason() -> None:
    assert SearchSettings().claim_seconds_at(100) == 120
    assert SearchSettings().claim_seconds_at(10) == 250
    assert SearchSettings().claim_seconds_at(1) == 400


def test_a_claim_that_fails_backs_off_on_traces_of_its_own() -> None:
    server = Known(10.0)
    claimed = claim(server.probe, 10.2)
    assert claimed.rate == pytest.approx(10.2 * 0.985**2)
    assert len({trace for _, _, trace, _ in server.probed}) == len(server.probed) == 5


@pytest.mark.parametrize(
    ("share", "steps"), [(1.5, 1.0), (0.8, 1.25), (0.1, 3.0)], ids=["past its end", "late", "early"]
)
def test_a_claim_backs_off_further_the_earlier_it_was_rejected(share: float, steps: float) -> None:
    rates: list[float] = []

    def rejected(rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        rates.append(rate)
        return ProbeResult(rate, False, None, share * seconds)

    claim(rejected, 100.0)
    assert rates[1] == pytest.approx(100 * 0.985**steps)


def test_a_claim_that_never_holds_is_none() -> None:
    assert claim(Known(10.0).probe, 20.0).rate is None


def test_a_claim_walks_down_far_enough_for_a_machine_that_became_a_quarter_slower() -> None:
    """Rejected at the end of each trace, it takes its shortest steps."""
    claimed = claim(Known(10.0 / 1.25).probe, 10.0)
    assert claimed.rate == pytest.approx(8.0, rel=0.02)


@dataclass
class Uneven(Known):
    """Its traces differ: each has an offset of ln(P99 / limit)."""

    offsets: tuple[float, ...] = (0.2, -0.15, -0.05)
    preempts_from: float = math.inf

    def probe(self, rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
        found = super().probe(rate, seconds, trace, stop)
        number = int(trace[-1])
        if number == 2 and rate > self.preempts_from:
            return ProbeResult(rate, False, None, 1.0)
        log_ratio = (found.log_ratio or 0.0) + self.offsets[number]
        return ProbeResult(rate, log_ratio <= 0, log_ratio, seconds)


def test_a_block_takes_the_mean_of_traces_as_long_as_a_claims() -> None:
    server = Uneven(10.0)
    found = search_near(server.probe, 10.1)
    assert found.rate == pytest.approx(10.0, rel=0.01)
    assert {seconds for _, seconds, _, _ in server.probed} == {SearchSettings().claim_seconds_at(10.1)}
    assert len({trace for _, _, trace, _ in server.probed}) == SearchSettings().claim_traces


def test_far_beyond_the_limit_one_trace_of_a_block_is_enough() -> None:
    server = Uneven(10.0)
    assert search_near(server.probe, 14.0).rate == pytest.approx(10.0, rel=0.01)
    assert sum(rate == 14.0 for rate, *_ in server.probed) == 1


def test_a_preemption_on_one_trace_fails_the_rate_of_a_block() -> None:
    found = search_near(Uneven(10.0, preempts_from=9.0).probe, 10.0)
    assert found.failed is not None and 9.0 < found.failed < 9.5
    assert found.passed is not None and found.passed <= 9.0
