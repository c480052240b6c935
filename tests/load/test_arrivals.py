from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.errors import UsageError
from tuner.load.arrivals import ArrivalKind, Arrivals, arriving, chosen_arrivals, recorded_schedule, schedule
from tuner.load.prompts import Request
from tuner.load.workload import Workload, workload


@given(st.floats(0.01, 3000), st.floats(0.1, 20), st.integers(0, 2**40))
def test_arrivals_ascend_and_stay_within_the_time(rate: float, seconds: float, seed: int) -> None:
    due = schedule(rate, seconds, seed=seed, trace="a")
    assert all(0 <= at < seconds for at in due)
    assert list(due) == sorted(due)


@pytest.mark.parametrize("kind", [kind for kind in ArrivalKind if kind is not ArrivalKind.RECORDED])
def test_the_gaps_of_a_trace_only_scale_with_the_rate(kind: ArrivalKind) -> None:
    slow = np.array(schedule(5, 100, seed=3, trace="a", arrivals=Arrivals(kind, 0.5)))
    fast = np.array(schedule(10, 50, seed=3, trace="a", arrivals=Arrivals(kind, 0.5)))
    assert slow / 2 == pytest.approx(fast)


def test_longer_schedules_begin_with_shorter_ones() -> None:
    short = schedule(20, 10, seed=0, trace="a")
    assert schedule(20, 60, seed=0, trace="a")[: len(short)] == short


def test_seed_and_trace_make_other_traffic_and_seed_zero_is_a_seed() -> None:
    traffic = {schedule(20, 10, seed=seed, trace=trace) for seed in (0, 1) for trace in ("a", "b")}
    assert len(traffic) == 4
    assert schedule(20, 10, seed=0, trace="a") == schedule(20, 10, seed=0, trace="a")


@pytest.mark.parametrize(
    ("arrivals", "cv"),
    [
        (Arrivals(ArrivalKind.POISSON), 1.0),
        (Arrivals(ArrivalKind.GAMMA, 0.25), 2.0),
        (Arrivals(ArrivalKind.GAMMA, 4.0), 0.5),
        (Arrivals(ArrivalKind.CONSTANT), 0.0),
    ],
)
def test_rate_and_burstiness_are_as_asked(arrivals: Arrivals, cv: float) -> None:
    gaps = np.diff(schedule(50, 400, seed=1, trace="a", arrivals=arrivals))
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, abs=0.05)


@pytest.mark.parametrize("kind", ArrivalKind)
def test_one_server_of_four_gets_a_quarter_of_the_machines_requests(kind: ArrivalKind) -> None:
    def draw(count: int) -> list[Request]:
        return came(*np.cumsum(np.random.default_rng(0).standard_exponential(count)))

    arrivals = Arrivals(kind, 0.25, share=4)
    requests, due = arriving(draw, 50, 400, seed=1, trace="a", arrivals=arrivals)
    assert len(requests) == len(due) == pytest.approx(50 * 400, rel=0.05)
    assert list(due) == sorted(due)


def test_a_share_of_bursts_is_less_bursty_and_one_of_even_arrivals_less_even() -> None:
    def cv(kind: ArrivalKind, burstiness: float, share: int) -> float:
        gaps = np.diff(schedule(50, 400, seed=1, trace="a", arrivals=Arrivals(kind, burstiness, share)))
        return float(gaps.std() / gaps.mean())

    assert cv(ArrivalKind.GAMMA, 0.1, 1) > cv(ArrivalKind.GAMMA, 0.1, 4) > 1.3
    assert cv(ArrivalKind.CONSTANT, 1.0, 8) == pytest.approx(1.0, abs=0.1)  # nearly Poisson


def test_a_share_of_poisson_arrivals_is_poisson() -> None:
    alone, share = (schedule(20, 10, seed=0, trace="a", arrivals=Arrivals(share=share)) for share in (1, 4))
    assert alone == share


def came(*times: float) -> list[Request]:
    return [Request((("user", "x"),), 1, 1, arrival_s=at) for at in times]


def test_recorded_gaps_are_kept_and_their_mean_is_one_over_the_rate() -> None:
    assert recorded_schedule(came(100.0, 100.5, 103.0, 112.0), 0.5) == (0.0, 0.25, 1.5, 6.0)
    assert recorded_schedule(came(7.0), 3.0) == (0.0,)
    assert recorded_schedule(came(7.0, 7.0, 7.0), 2.0) == (0.0, 0.5, 1.0), "no gap is longer than another"


@given(
    st.lists(st.floats(0, 1e4), min_size=2, max_size=50).filter(lambda gaps: sum(gaps) > 1e-3),
    st.floats(0.01, 3000),
)
def test_a_recording_scales_to_any_rate_with_the_same_relative_gaps(gaps: list[float], rate: float) -> None:
    due = np.array(recorded_schedule(came(*np.cumsum([0.0, *gaps])), rate))
    assert np.diff(due).mean() == pytest.approx(1 / rate)
    assert list(due) == sorted(due)
    shares = np.array(gaps) / sum(gaps)
    assert np.diff(due) / due[-1] == pytest.approx(shares, abs=1e-9)


@given(st.floats(0.05, 500), st.floats(0.1, 10))
def test_a_level_of_recorded_traffic_ends_within_its_time(rate: float, seconds: float) -> None:
    def draw(count: int) -> list[Request]:
        return came(*np.cumsum(np.arange(count)))

    arrivals = Arrivals(ArrivalKind.RECORDED)
    requests, due = arriving(draw, rate, seconds, seed=0, trace="search", arrivals=arrivals)
    assert len(requests) == len(due) >= 1
    assert all(0 <= at < seconds for at in due)
    assert len(due) == pytest.approx(rate * seconds, abs=1)


TIMED = replace(workload("random:8,4"), timed=True)


@pytest.mark.parametrize(
    ("burstiness", "traffic", "arrivals"),
    [
        (None, workload("random:8,4"), "Poisson arrivals"),
        (1.0, workload("random:8,4"), "Poisson arrivals"),
        (0.5, workload("random:8,4"), "gamma, shape 0.5 arrivals"),
        (None, TIMED, "arrivals as recorded"),
        (1.0, TIMED, "Poisson arrivals"),
        (0.5, TIMED, "gamma, shape 0.5 arrivals"),
    ],
)
def test_recorded_times_are_kept_unless_a_burstiness_is_asked_for(
    burstiness: float | None, traffic: Workload, arrivals: str
) -> None:
    chosen = chosen_arrivals(burstiness, traffic)
    assert chosen.phrase == arrivals
    assert chosen_arrivals(chosen.asked_for(traffic), traffic) == chosen


@pytest.mark.parametrize("burstiness", [0.0, 0.04, 1001.0, float("nan"), float("inf")])
def test_a_burstiness_that_is_no_traffic_is_refused(burstiness: float) -> None:
    with pytest.raises(UsageError, match="--burstiness"):
        chosen_arrivals(burstiness, TIMED)
