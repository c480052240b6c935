from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.load.arrivals import ArrivalKind, Arrivals, recorded_schedule, schedule
from tuner.load.prompts import Request


@given(st.floats(0.01, 3000), st.floats(0.1, 20), st.integers(0, 2**40))
def test_arrivals_ascend_and_stay_within_the_time(rate: float, seconds: float, seed: int) -> None:
    due = schedule(rate, seconds, seed=seed, trace="a")
    assert all(0 <= at < seconds for at in due)
    assert list(due) == sorted(due)


@pytest.mark.parametrize("kind", ArrivalKind)
def test_the_gaps_of_a_trace_only_scale_with_the_rate(kind: ArrivalKind) -> None:
    slow = np.array(schedule(5, 100, seed=3, trace="a", arrivals=Arrivals(kind, 0.5)))
    fast = np.array(schedule(10, 50, seed=3, trace="a", arrivals=Arrivals(kind, 0.5)))
    assert slow / 2 == pytest.approx(fast)


@pytest.mark.parametrize("kind", ArrivalKind)
@given(rate=st.floats(0.1, 200), seed=st.integers(0, 50))
def test_a_rate_offers_what_it_says_and_not_what_chance_would(kind: ArrivalKind, rate: float, seed: int) -> None:
    due = schedule(rate, 30, seed=seed, trace="a", arrivals=Arrivals(kind, 0.5))
    planned = math.ceil(rate * 30)
    assert planned / 2 - 5 <= len(due) <= planned


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


def test_recorded_times_are_kept_from_the_first_one_on() -> None:
    requests = [Request((("user", "x"),), 1, 1, arrival_s=at) for at in (100.0, 100.5, 103.0, 180.0)]
    assert recorded_schedule(requests, 60) == (0.0, 0.5, 3.0)
