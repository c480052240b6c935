from __future__ import annotations

import pytest

from tuner.errors import EnvironmentFaultError, TunerError
from tuner.placement import GpuGroup, groups_of, parse_gpus


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


def test_a_machine_without_gpus_gives_one_group_without_gpus() -> None:
    assert groups_of(parse_gpus(None, []), 1, {}) == (GpuGroup(),)


def test_neighbours_on_a_numa_node_stay_together() -> None:
    groups = groups_of((0, 1, 2, 3), 2, {0: 0, 1: 1, 2: 0, 3: 1})
    assert [(g.gpus, g.numa_node) for g in groups] == [((0, 2), 0), ((1, 3), 1)]


def test_a_group_across_nodes_is_bound_to_none() -> None:
    (group,) = groups_of((0, 1), 2, {0: 0, 1: 1})
    assert group.numactl == () and group.numa_node is None


def test_workers_without_gpus_have_names_of_their_own() -> None:
    assert [g.name for g in groups_of((), 1, {}, 3)] == ["cpu0", "cpu1", "cpu2"]


def test_groups_of_one_node_share_its_cpus_without_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tuner.placement.shutil.which", lambda _: "/usr/bin/numactl")
    monkeypatch.setattr("tuner.placement.node_cpus", lambda node: tuple(range(8)))
    first, second = groups_of((0, 1), 1, {0: 0, 1: 0})
    assert first.numactl == ("numactl", "--physcpubind=0,1,2,3", "--membind=0")
    assert second.numactl == ("numactl", "--physcpubind=4,5,6,7", "--membind=0")
