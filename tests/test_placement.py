from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuner.errors import EnvironmentFaultError, TunerError, UsageError
from tuner.placement import core_shares, gpu_places, own_cores, parse_gpus, worker_places


@pytest.mark.parametrize(
    ("text", "gpus"),
    [("0-3", (0, 1, 2, 3)), ("0,2,5", (0, 2, 5)), ("all", tuple(range(8))), (None, tuple(range(8))), ("1-2,1", (1, 2))],
)
def test_gpus_parse_as_people_write_them(text: str | None, gpus: tuple[int, ...]) -> None:
    assert parse_gpus(text, range(8)) == gpus


@pytest.mark.parametrize("text", ["0-", "-1", "3-1", "a", "", "0,,1", "0-3x"])
def test_what_does_not_parse_is_a_usage_error(text: str) -> None:
    with pytest.raises(TunerError) as caught:
        parse_gpus(text, range(8))
    assert caught.value.exit_code == 2


def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(EnvironmentFaultError, match="GPU 8"):
        parse_gpus("7-9", range(8))


def test_neighbours_on_a_numa_node_stay_together() -> None:
    groups = gpu_places((0, 1, 2, 3), 2, {0: 0, 1: 1, 2: 0, 3: 1})
    assert [(g.gpus, g.numa_node) for g in groups] == [((0, 2), 0), ((1, 3), 1)]


def test_a_group_across_nodes_is_bound_to_none() -> None:
    (group,) = gpu_places((0, 1), 2, {0: 0, 1: 1})
    assert group.numactl == () and group.numa_node is None


@pytest.mark.parametrize(("gpus", "size", "places"), [(4, 3, 1), (6, 4, 1), (8, 2, 4), (5, 2, 2), (2, 3, 0)])
def test_as_many_servers_are_placed_as_the_gpus_give(gpus: int, size: int, places: int) -> None:
    groups = gpu_places(range(gpus), size, {})
    assert len(groups) == places
    assert len({gpu for group in groups for gpu in group.gpus}) == places * size


def test_workers_have_names_and_cores_of_their_own_one_text_a_rank() -> None:
    shares = core_shares(4, range(8))
    assert shares == ("0-1", "2-3", "4-5", "6-7")
    assert [(g.name, g.workers, g.cores) for g in worker_places(shares, 2)] == [
        ("cpu0-1", (0, 1), ("0-1", "2-3")),
        ("cpu2-3", (2, 3), ("4-5", "6-7")),
    ]


@given(cpus=st.sets(st.integers(0, 300), min_size=1, max_size=40), workers=st.integers(1, 40))
def test_workers_share_the_cores_evenly_and_none_has_anothers(cpus: set[int], workers: int) -> None:
    if workers > len(cpus):
        with pytest.raises(UsageError) as caught:
            core_shares(workers, sorted(cpus))
        assert caught.value.hint == f"at most {len(cpus)}"
        return
    shares = [cores_of(text) for text in core_shares(workers, sorted(cpus))]
    assert {len(share) for share in shares} == {len(cpus) // workers}
    assert len({cpu for share in shares for cpu in share}) == sum(map(len, shares))
    assert {cpu for share in shares for cpu in share} <= cpus


def cores_of(text: str) -> list[int]:
    """Read a share as vLLM does: `5,2-4`."""
    ends = [part.split("-") for part in text.split(",")]
    return [cpu for end in ends for cpu in range(int(end[0]), int(end[-1]) + 1)]


def test_this_machines_cores_are_some_that_it_may_use() -> None:
    assert set(own_cores()) <= os.sched_getaffinity(0)
    assert len(set(own_cores())) == len(own_cores()) >= 1


def test_groups_of_one_node_share_its_cpus_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.placement.shutil.which", lambda _: "/usr/bin/numactl")
    monkeypatch.setattr("tuner.placement.node_cpus", lambda node: tuple(range(8)))
    first, second = gpu_places((0, 1), 1, {0: 0, 1: 0})
    assert first.numactl == ("numactl", "--physcpubind=0,1,2,3", "--membind=0")
    assert second.numactl == ("numactl", "--physcpubind=4,5,6,7", "--membind=0")
