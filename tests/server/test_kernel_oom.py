"""The kernel's count of processes that it ended for want of memory."""

from __future__ import annotations

from tuner.server.kernel_oom import oom_kills, oom_kills_since


def test_the_count_of_this_machine_rises_by_nothing_in_between() -> None:
    before = oom_kills()
    rise = oom_kills_since(before)
    assert (rise is None) == (before is None)
    assert rise in (None, 0)


def test_without_a_first_count_the_rise_is_unknown() -> None:
    assert oom_kills_since(None) is None
