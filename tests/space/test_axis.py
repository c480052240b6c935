from __future__ import annotations

import random

import pytest

from tuner.space.axis import ParameterAxis
from tuner.space.parameter import Kind, Parameter

LOG = ParameterAxis(Parameter("max-num-seqs", Kind.LOG_INT, 8, 1024))
LINEAR = ParameterAxis(Parameter("gpu-memory-utilization", Kind.FLOAT, 0.80, 0.97))
CHOICE = ParameterAxis(Parameter("block-size", Kind.CHOICE, choices=(16, 32, 64)))
FLAG = ParameterAxis(Parameter("enable-chunked-prefill", Kind.FLAG))
ALL = (LOG, LINEAR, CHOICE, FLAG)


@pytest.mark.parametrize("axis", ALL, ids=lambda axis: axis.parameter.flag)
def test_a_share_and_its_number_are_one_another_s_inverse(axis: ParameterAxis) -> None:
    for share in (0.0, 0.1, 0.5, 1.0):
        assert axis.share(axis.at(share)) == pytest.approx(share)


@pytest.mark.parametrize("axis", ALL, ids=lambda axis: axis.parameter.flag)
def test_what_is_drawn_or_stepped_to_stays_on_the_axis(axis: ParameterAxis) -> None:
    draw, (low, high) = random.Random(0), axis.ends
    for _ in range(200):
        number = axis.drawn(draw)
        assert low <= number <= high
        assert low <= axis.stepped(number, 0.5, draw) <= high


def test_the_middle_of_a_logarithmic_axis_is_the_geometric_mean() -> None:
    assert LOG.number(None) == pytest.approx((8 * 1024) ** 0.5)
    assert LINEAR.number(None) == pytest.approx(0.885)


def test_a_step_has_the_given_spread_as_a_share_of_the_range() -> None:
    draw, here = random.Random(0), LOG.at(0.5)
    moved = [LOG.share(LOG.stepped(here, 0.1, draw)) - 0.5 for _ in range(2000)]
    assert (sum(m * m for m in moved) / len(moved)) ** 0.5 == pytest.approx(0.1, rel=0.1)


def test_a_discrete_step_goes_to_a_neighbour() -> None:
    draw = random.Random(0)
    assert {CHOICE.stepped(1, 0.1, draw) for _ in range(50)} == {0, 2}


def test_values_inwards_begin_at_the_nearest_one_on_the_axis() -> None:
    assert next(LINEAR.inwards(0.99, -1)) == 0.97
    assert list(LINEAR.inwards(0.9, -1)) == [0.9, 0.898, 0.897]


def test_a_range_of_one_value_has_no_length() -> None:
    point = ParameterAxis(Parameter("max-num-seqs", Kind.INT, 8, 8))
    assert (point.share(8), point.at(0.7)) == (0.0, 8)
