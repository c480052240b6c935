from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.strategies import parameters
from tuner.space.parameter import Kind, Parameter


@given(parameters(), st.floats(0, 1))
def test_every_axis_number_decodes_into_the_range(parameter: Parameter, share: float) -> None:
    low, high = parameter.axis
    value = parameter.decode(low + share * (high - low))
    if parameter.kind is Kind.CHOICE:
        assert value in parameter.choices
    elif parameter.kind is not Kind.FLAG:
        assert parameter.low <= float(value) <= parameter.high


@given(parameters(), st.floats(0, 1))
def test_decoding_what_was_encoded_gives_the_value_back(parameter: Parameter, share: float) -> None:
    low, high = parameter.axis
    value = parameter.decode(low + share * (high - low))
    assert parameter.decode(parameter.encode(value)) == value


def test_a_multiple_never_leaves_the_range() -> None:
    parameter = Parameter("max-num-batched-tokens", Kind.LOG_INT, 100, 1000, 64)
    assert parameter.decode(100) == 128
    assert parameter.decode(1000) == 960
