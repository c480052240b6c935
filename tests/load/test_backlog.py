from __future__ import annotations

import numpy as np
import pytest

from tuner.load.backlog import Backlog
from tuner.load.drive import LevelProgress


def queue(load: float, seconds: float, seed: int) -> list[LevelProgress]:
    """Simulate a single server of rate 20/s under Poisson arrivals, as the watch sees it ten times a second."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / (20 * load), round(20 * load * seconds * 2)))
    served = np.zeros_like(arrivals)
    free = 0.0
    for i, at in enumerate(arrivals):
        free = max(free, at) + rng.exponential(1 / 20)
        served[i] = free
    seen = []
    for now in np.arange(0.1, seconds, 0.1):
        answered = np.sort(served[served <= now])
        waiting = arrivals[(arrivals <= now) & (served > now)]
        order = np.argsort(served)
        ttft = (served - arrivals)[order][: len(answered)] * 1000
        seen.append(LevelProgress(float(now), 0, len(waiting), 0, ttft.tolist(), ((now - waiting) * 1000).tolist()))
    return seen


def stopped_at(load: float, seed: int, seconds: float = 60.0) -> float | None:
    backlog = Backlog(seconds, 0.0)
    return next((p.elapsed_s for p in queue(load, seconds, seed) if backlog.grows(p)), None)


@pytest.mark.parametrize("seed", range(5))
def test_an_overload_of_a_half_is_seen_within_half_a_minute(seed: int) -> None:
    stopped = stopped_at(1.5, seed)
    assert stopped is not None and 10 <= stopped <= 30


def test_half_a_load_is_hardly_ever_called_a_growing_backlog() -> None:
    assert sum(stopped_at(0.5, seed, 30.0) is not None for seed in range(20)) <= 1


def test_a_few_points_make_no_slope_though_the_first_request_came_after_ten_seconds() -> None:
    backlog = Backlog(20.0, 0.0)
    late = [LevelProgress(12.0 + i, 0, 5 * i, 0, [100.0], [50.0 * i]) for i in range(9)]
    assert not any(backlog.grows(p) for p in late)


def test_nothing_is_said_before_ten_seconds_or_of_nothing() -> None:
    backlog = Backlog(10.0, 0.0)
    assert not backlog.grows(LevelProgress())
    assert not any(backlog.grows(p) for p in queue(3.0, 9.9, 0))


def test_a_long_level_gives_a_burst_a_quarter_of_its_time_to_pass() -> None:
    backlog = Backlog(300.0, 0.0)
    assert not any(backlog.grows(p) for p in queue(3.0, 74.0, 0))


def test_a_wait_that_the_limit_tolerates_is_no_backlog_however_it_grows() -> None:
    assert stopped_at(1.5, 0) is not None
    backlog = Backlog(60.0, 1e6)
    assert not any(backlog.grows(p) for p in queue(1.5, 60.0, 0))
