"""Timeline and telemetry."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tests.study.builders import with_start
from tuner.layout import Layout, PlacedLayout
from tuner.placement import GpuGroup
from tuner.report.gallery import Section, gallery
from tuner.report.tables import StudyFiles
from tuner.report.timeline import POINTS, TrialPhase, phase_rows, phase_shares, start_times, telemetry
from tuner.report.translations import Language, Words
from tuner.study.start_record import Phases
from tuner.study.units import machine_units


def test_phases_of_a_gpu_follow_each_other_without_overlap(files: StudyFiles) -> None:
    rows = phase_rows(files)
    for unit in machine_units(files.plan):
        mine = [row for row in rows if row.unit == unit]
        assert mine
        for before, after in itertools.pairwise(mine):
            assert after.began_h == pytest.approx(before.began_h + before.length_h)
    assert {row.phase for row in rows} == set(TrialPhase) - {TrialPhase.WAIT}


def test_a_wait_for_quiet_is_not_drawn_as_warm_up(files: StudyFiles) -> None:
    *others, last = files.records
    waited = with_start(last, phases=replace(last.start.phases, wait_s=360.0))
    rows = phase_rows(replace(files, records=(*others, waited)))
    assert {round(row.length_h, 6) for row in rows if row.phase is TrialPhase.WAIT} == {0.1}


def test_a_trial_over_several_gpus_is_drawn_on_each_of_them(layouts: StudyFiles) -> None:
    rows = phase_rows(layouts)
    for record in layouts.records:
        units = {row.unit for row in rows if row.trial == record.trial}
        assert units == {f"gpu{gpu}" for gpu in record.start.gpus}


def test_a_trial_over_several_workers_of_a_cpu_is_drawn_on_each_of_them(files: StudyFiles) -> None:
    workers = (GpuGroup(workers=(0,), cores=("0",)), GpuGroup(workers=(1,), cores=("1",)))
    both = GpuGroup(workers=(0, 1), cores=("0", "1"))
    placed = (PlacedLayout(Layout(2, 1), workers), PlacedLayout(Layout(1, 2), (both,)))
    places = ("cpu0", "cpu1", "cpu0-1", "cpu0+cpu1")
    records = tuple(with_start(files.records[n], group=place) for n, place in enumerate(places))
    study = replace(files, plan=replace(files.plan, layouts=placed), records=records)
    drawn = [sorted({row.unit for row in phase_rows(study) if row.trial == n}) for n in range(4)]
    assert drawn == [["cpu0"], ["cpu1"], ["cpu0", "cpu1"], ["cpu0", "cpu1"]]


def test_shares_add_up_to_the_whole_study(files: StudyFiles) -> None:
    assert sum(phase_shares(phase_rows(files)).values()) == pytest.approx(1)
    assert phase_shares([]) == {}


def test_starts_with_and_without_compiling_are_distinguished_in_both_languages(files: StudyFiles) -> None:
    first = files.records[0]
    takes = [replace(with_start(first, phases=Phases(s, 5, 60, 1)), trial=n) for n, s in enumerate((50.0, 21.0, 23.0))]
    study = replace(files, records=tuple(takes))
    said = start_times(study, Words(Language.ENGLISH))
    assert said == "50 s where vLLM compiled (median of 1); 22 s with the code in its compile cache (median of 2)"
    assert all(time in start_times(study, Words(Language.CHINESE)) for time in ("50 s", "22 s"))
    assert start_times(replace(files, records=()), Words(Language.ENGLISH)) == ""


def write(path: Path, **columns: list[object]) -> Path:
    pd.DataFrame(columns).to_parquet(path)
    return path


def test_gpus_of_one_moment_are_one_point(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.parquet",
        at_ns=[10**9, 10**9, 2 * 10**9, 2 * 10**9],
        gpu=[0, 1, 0, 1],
        gpu_utilization=[0.5, 0.7, None, None],
        gpu_memory_used_bytes=[2**30, 2**31, None, None],
        gpu_temperature_c=[50.0, 60.0, 51.0, None],
    )
    found = {series.channel: series for series in telemetry(path)}
    assert found["gpu-util"].values == (60.0, None)
    assert found["gpu-memory"].values == (3.0, None)
    assert found["gpu-temperature"].values == (60.0, 51.0)
    assert found["gpu-util"].seconds == (0.0, 1.0)


def test_each_server_of_a_machine_has_a_line_and_the_host_has_one(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.parquet",
        at_ns=[0, 0, 0, 0, 10**9, 10**9, 10**9, 10**9],
        server=[0, 0, 1, 1, 0, 0, 1, 1],
        gpu=[0, 1, 2, 3, 0, 1, 2, 3],
        running=[5.0, 5.0, 7.0, 7.0, 6.0, 6.0, 8.0, 8.0],
        kv_usage=[0.1, 0.1, 0.4, 0.4, 0.2, 0.2, 0.5, 0.5],
        gpu_power_w=[100.0, 110.0, 300.0, 310.0, 120.0, 130.0, 320.0, 330.0],
        host_cpu_share=[0.5] * 8,
    )
    found = {(series.channel, series.server): series.values for series in telemetry(path)}
    assert found["running", 0] == (5.0, 6.0) and found["running", 1] == (7.0, 8.0)
    assert found["kv", 0] == (10.0, 20.0) and found["kv", 1] == (40.0, 50.0)
    assert found["gpu-power", 0] == (210.0, 250.0) and found["gpu-power", 1] == (610.0, 650.0)
    assert [key for key in found if key[0] == "host-cpu"] == [("host-cpu", 0)]


def test_the_telemetry_of_the_winner_shows_all_servers_of_its_confirmation(layouts: StudyFiles, words: Words) -> None:
    drawn = {d.name: d.figure for d in gallery(layouts, words)[Section.TELEMETRY]}
    names = [(trace.name, trace.showlegend) for trace in drawn["telemetry-kv"].data]
    assert names.count(("winner (4 servers)", True)) == 1
    assert names.count(("winner (4 servers)", False)) == 3
    assert names.count(("default", True)) == 1


def test_prefix_hits_are_shares_between_samples(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.parquet",
        at_ns=[0, 1, 2, 3],
        prefix_hits=[0.0, 50.0, 50.0, 80.0],
        prefix_queries=[0.0, 100.0, 100.0, 200.0],
    )
    (series,) = telemetry(path)
    assert series.values == (None, 50.0, None, 30.0)


def test_long_series_are_thinned_to_means(tmp_path: Path) -> None:
    count = POINTS * 3
    moments: list[object] = [i * 10**9 for i in range(count)]
    (series,) = telemetry(write(tmp_path / "t.parquet", at_ns=moments, running=[float(i) for i in range(count)]))
    assert len(series.values) == POINTS
    assert series.values[0] == 1.0


def test_columns_that_are_not_there_or_hold_nothing_are_not_drawn(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", at_ns=[0, 1], kv_usage=[None, None], running=[1.0, 2.0], odd=["a", "b"])
    assert [series.channel for series in telemetry(path)] == ["running"]


@pytest.mark.parametrize("content", [None, b"", b"PAR1 torn"])
def test_a_missing_or_torn_file_draws_nothing(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "telemetry.parquet"
    if content is not None:
        path.write_bytes(content)
    assert telemetry(path) == []
