"""Binding limits: every reading from measurements made to show it."""

from __future__ import annotations

import dataclasses

import pytest

from tuner.measurement import Caution, CautionKind, ClientLoad, GpuLoad, Measurement, ServerLoad
from tuner.report.bottleneck import Bottleneck, Levels, Reading, binding, bottleneck_rows, levels_of
from tuner.report.tables import StudyFiles
from tuner.report.translations import Words
from tuner.telemetry.cautions import Observation, Sign

QUIET = ServerLoad(preemptions=0, kv_usage_peak=0.3, running_peak=20.0, waiting_mean=0.0)
IDLE_CLIENT = ClientLoad(cpu_share=0.1, lag_p99_ms=1.0, late_p99_ms=None)


@pytest.fixture
def levels(files: StudyFiles) -> Levels:
    """Nothing binds: QPS rises with the load, the server has room in every respect."""
    assert files.winner is not None
    found = levels_of(files, files.winner.candidate)
    assert found is not None

    def quiet(load: float, qps: float) -> Measurement:
        at = dataclasses.replace(found.at.load, level=load)
        return dataclasses.replace(found.at, load=at, qps=qps, server=QUIET, client=IDLE_CLIENT, cautions=())

    return Levels(found.record, quiet(16, 8.0), quiet(32, 15.5), quiet(64, 30.0))


def read(levels: Levels, words: Words) -> dict[Bottleneck, Reading]:
    return {row.limit: row.reading for row in bottleneck_rows(levels, words)}


def server(levels: Levels, **changes: float | None) -> Levels:
    """`levels` with another server load in the level beyond."""
    assert levels.beyond is not None
    changed = dataclasses.replace(levels.beyond.server, **changes)  # type: ignore[arg-type]
    return levels._replace(beyond=dataclasses.replace(levels.beyond, server=changed))


def test_with_room_everywhere_nothing_is_named(levels: Levels, words: Words) -> None:
    rows = bottleneck_rows(levels, words)
    assert binding(rows) == []
    assert {row.reading for row in rows} == {Reading.CLEAR}


def test_preemptions_at_the_next_level_point_at_the_kv_cache(levels: Levels, words: Words) -> None:
    assert binding(bottleneck_rows(server(levels, preemptions=12, kv_usage_peak=1.0), words)) == [Bottleneck.KV]


def test_a_nearly_full_kv_cache_is_near(levels: Levels, words: Words) -> None:
    at = dataclasses.replace(levels.at, server=dataclasses.replace(QUIET, kv_usage_peak=0.8))
    assert read(levels._replace(at=at), words)[Bottleneck.KV] is Reading.NEAR


def test_a_full_running_set_with_a_queue_points_at_max_num_seqs(levels: Levels, words: Words) -> None:
    limit = levels.record.start.launch.max_num_seqs
    assert limit is not None
    rows = bottleneck_rows(server(levels, running_peak=float(limit), waiting_mean=9.0), words)
    assert binding(rows) == [Bottleneck.SEQUENCES]
    assert {row.limit: row.reading for row in rows}[Bottleneck.TOKENS] is Reading.UNKNOWN


def test_a_queue_with_room_everywhere_points_at_the_token_budget(levels: Levels, words: Words) -> None:
    assert binding(bottleneck_rows(server(levels, waiting_mean=9.0), words)) == [Bottleneck.TOKENS]


def test_throughput_that_stays_flat_points_at_compute(levels: Levels, words: Words) -> None:
    assert levels.beyond is not None
    flat = levels._replace(beyond=dataclasses.replace(levels.beyond, qps=15.6))
    assert binding(bottleneck_rows(flat, words)) == [Bottleneck.COMPUTE]


def test_without_a_higher_level_the_load_was_the_limit(levels: Levels, words: Words) -> None:
    assert binding(bottleneck_rows(levels._replace(beyond=None), words)) == [Bottleneck.LOAD]


def test_a_client_that_was_the_bottleneck_is_named_first(levels: Levels, words: Words) -> None:
    caution = Caution(CautionKind.CLIENT_BOUND, (Observation(Sign.CPU_SHARE, 0.98),))
    at = dataclasses.replace(levels.at, cautions=(caution,))
    assert binding(bottleneck_rows(levels._replace(at=at), words))[0] is Bottleneck.CLIENT


def test_what_was_not_observed_is_never_read_as_clear(levels: Levels, words: Words) -> None:
    nothing = dataclasses.replace(levels.at, server=ServerLoad(), client=ClientLoad(None, None, None), gpu=None)
    readings = read(Levels(levels.record, None, nothing, None), words)
    for limit in (Bottleneck.CLIENT, Bottleneck.KV, Bottleneck.SEQUENCES, Bottleneck.TOKENS, Bottleneck.COMPUTE):
        assert readings[limit] is Reading.UNKNOWN


def test_gpu_utilisation_alone_proves_nothing(levels: Levels, words: Words) -> None:
    busy = GpuLoad(1.0, 75.0, 700.0, 70.0, 1700.0)
    at, beyond = (dataclasses.replace(m, gpu=busy) for m in (levels.at, levels.beyond) if m is not None)
    assert read(levels._replace(at=at, beyond=beyond), words)[Bottleneck.COMPUTE] is Reading.CLEAR


def test_a_full_host_is_near_where_there_is_no_gpu(levels: Levels, words: Words) -> None:
    assert levels.beyond is not None
    busy = dataclasses.replace(IDLE_CLIENT, host_cpu_share=0.99)
    beyond = dataclasses.replace(levels.beyond, gpu=None, client=busy)
    assert read(levels._replace(beyond=beyond), words)[Bottleneck.COMPUTE] is Reading.NEAR


def test_the_start_with_the_most_levels_is_read(files: StudyFiles) -> None:
    assert files.winner is not None
    found = levels_of(files, files.winner.candidate)
    assert found is not None
    longest = max(len(r.levels) for r in files.starts_of(files.winner.candidate))
    assert len(found.record.levels) == longest
    loads = [m.load.level for m in (found.below, found.at, found.beyond) if m is not None]
    assert loads == sorted(loads)
