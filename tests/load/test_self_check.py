from __future__ import annotations

import pytest

from tuner.load.drive import drive_closed
from tuner.load.self_check import (
    CheckedRate,
    SelfCheck,
    inflation_ms,
    known_requests,
    known_server,
    self_check,
    truth_ns,
)
from tuner.load.stream import Target


def test_the_known_server_answers_what_was_asked_when_it_says() -> None:
    with known_server(step_s=0.01) as url:
        samples = drive_closed(Target(url, "m"), known_requests(30, tokens=5), 3, 10)
        truth = truth_ns(url)
    assert [r.failure for r in samples.requests] == [None] * 30
    assert {r.output_tokens for r in samples.requests} == {5}
    assert {len(r.token_ns) for r in samples.requests} == {5}
    inflation = inflation_ms(samples.requests, truth)
    assert len(inflation) == 30
    assert all(ms >= 0 for ms in inflation), "nothing arrives before it was sent"


def test_the_truth_is_given_once() -> None:
    with known_server(step_s=0.01) as url:
        drive_closed(Target(url, "m"), known_requests(4, tokens=2), 2, 5)
        assert sorted(truth_ns(url)) == [0, 1, 2, 3]
        assert truth_ns(url) == {}


def test_a_self_check_says_what_a_rate_costs() -> None:
    (rate,) = self_check((500,), seconds=3).rates
    assert rate.streams == 10
    assert rate.chunks_per_s == pytest.approx(500, rel=0.2)
    assert rate.inflation_p50_ms >= 0
    assert 0 < rate.cpu_share < 1


def checked(offered: float, inflation_p99_ms: float = 0.5, cpu_share: float = 0.1, reached: float = 1.0) -> CheckedRate:
    return CheckedRate(offered, 10, offered * reached, 0.1, inflation_p99_ms, 0.3, cpu_share, 10.0)


def test_the_safe_rate_is_the_last_before_the_first_that_is_not() -> None:
    good, slow, busy, short = (
        checked(1000),
        checked(2000, inflation_p99_ms=3),
        checked(4000, cpu_share=0.9),
        checked(8, reached=0.5),
    )
    assert SelfCheck((good, slow, checked(9000))).safe_chunks_per_s == 1000
    assert SelfCheck((good, checked(2000), busy)).safe_chunks_per_s == 2000
    assert SelfCheck((short,)).safe_chunks_per_s is None
