"""Every number of the program is printed through these functions."""

from __future__ import annotations

import math

import pytest

from tuner import formatting as f


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.44, "0.4 s"),
        (8.0, "8 s"),
        (9.949, "9.9 s"),
        (9.96, "10 s"),
        (59.7, "1 min"),
        (185, "3 min 5 s"),
        (3600, "1 h"),
        (25_920, "7 h 12 min"),
        (90_061, "1 d 1 h"),
        (86_400 + 120, "1 d"),
        (-65, "-1 min 5 s"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_a_duration_shows_its_two_largest_units(seconds: float | None, text: str) -> None:
    assert f.duration(seconds) == text


@pytest.mark.parametrize(
    ("new", "old", "text"),
    [
        (143, 100, "+43 %"),
        (99.5, 100, "-0.5 %"),
        (100, 100, "0 %"),
        (100.001, 100, "0 %"),
        (50, 100, "-50 %"),
        (1, 0, "–"),
        (None, 1, "–"),
        (1, None, "–"),
    ],
)
def test_a_change_has_a_sign_and_is_a_dash_when_it_is_not_known(
    new: float | None, old: float | None, text: str
) -> None:
    assert f.change(new, old) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.01234, "0.0123"), (4.251, "4.25"), (42.13, "42.1"), (1234.5, "1,234"), (None, "–"), (math.inf, "–")],
)
def test_numbers_keep_three_significant_figures(value: float | None, text: str) -> None:
    assert f.significant(value) == text


def test_units_are_spelt_one_way() -> None:
    assert f.qps(42.13) == "42.1 req/s"
    assert f.ms(411.6) == "412 ms"
    assert f.ms(4.25) == "4.2 ms"
    assert f.ms(9_012) == "9,012 ms"
    assert f.gib(71.23) == "71.2 GiB"
    assert f.share(0.434) == "43 %"
    assert f.tokens(588_672) == "588,672 tokens"
    assert f.span(50, 50) == "50"
    assert f.span(20, 60) == "20-60"
    assert [f.compact(v) for v in (0.05, 2000, 5e7, 2e9, 1e12)] == ["0.05", "2,000", "50M", "2G", "1T"]
    assert f.price(1234.5) == "1,234.50"
    assert f.price(0.01234) == "0.0123"


def test_what_was_not_observed_is_never_a_zero() -> None:
    for text in (f.qps(None), f.ms(None), f.gib(None), f.share(None), f.count(None), f.price(None)):
        assert text == f.NOT_OBSERVED


def test_hostile_text_becomes_one_plain_line() -> None:
    assert f.one_line("\x1b[31mred\x1b[0m\nnext\r\n\x1b]0;title\x07end\x00\u202e") == "red next end"
    assert f.one_line("模型 – ok") == "模型 – ok"
