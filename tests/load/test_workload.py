from __future__ import annotations

import pytest

from tuner.errors import UsageError
from tuner.load.workload import PRESETS, Lengths, workload


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_says_where_its_lengths_come_from(name: str) -> None:
    preset = workload(name)
    assert preset.name == name
    assert len(preset.source) > 20
    assert sum(share.weight for share in preset.shares) == pytest.approx(1)
    for share in preset.shares:
        assert 0 < share.prompt.low <= share.prompt.high
        assert 0 < share.output.low <= share.output.high
        assert share.shared_prefix < share.prompt.low


def test_random_takes_lengths_and_ranges() -> None:
    (share,) = workload("random:256,32").shares
    assert (share.prompt, share.output) == (Lengths(256, 256), Lengths(32, 32))
    (share,) = workload("random:128-512,16-64").shares
    assert (share.prompt, share.output) == (Lengths(128, 512), Lengths(16, 64))
    assert workload("random:128-512,16-64").longest == 576


def test_prefix_adds_what_is_shared_to_what_is_not() -> None:
    (share,) = workload("prefix:1000,50-100,20").shares
    assert (share.prompt, share.shared_prefix) == (Lengths(1050, 1100), 1000)


def test_the_mean_request_weighs_its_shares() -> None:
    assert workload("random:100-200,50").mean == 200
    # Four of five: 20 to 80 in, 50 out; one of five: 40 to 200 in, 256 to 1,024 out.
    assert workload("mixed").mean == pytest.approx(0.8 * (50 + 50) + 0.2 * (120 + 640))


def test_mixed_thinks_in_one_of_five() -> None:
    direct, thinking = workload("mixed").shares
    assert (direct.weight, direct.thinking) == (0.8, False)
    assert (thinking.weight, thinking.thinking, thinking.output.high) == (0.2, True, 1024)


@pytest.mark.parametrize(
    "text", ["chatt", "random:256", "random:0,5", "random:512-128,5", "prefix:10,0,5", "", "random:a,b"]
)
def test_what_is_no_workload_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        workload(text)
    assert "random:" in caught.value.hint


def test_a_misspelt_name_is_guessed() -> None:
    with pytest.raises(UsageError) as caught:
        workload("short-q")
    assert "did you mean 'short-qa'?" in caught.value.hint
