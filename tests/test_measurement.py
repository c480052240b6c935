from __future__ import annotations

from dataclasses import replace

import pytest

from tests.load.builders import CALM, HOST, level, request, telemetry
from tuner import jsonfile
from tuner.load.stream import Failure
from tuner.measurement import (
    CautionKind,
    Load,
    LoadKind,
    Measurement,
    Throughput,
    distribution,
    latencies_ms,
    measure,
)
from tuner.slo import Metric, parse_slo
from tuner.telemetry.cautions import Sign
from tuner.telemetry.gpu import GpuReading
from tuner.telemetry.prometheus import Scrape
from tuner.telemetry.sampler import Row

LOAD = Load(LoadKind.CLOSED, 10)
TTFT_500 = parse_slo("p99 ttft <= 500ms")


def kinds(found: Measurement) -> set[CautionKind]:
    return {caution.kind for caution in found.cautions}


def test_latencies_are_what_their_names_say() -> None:
    one = request(due_ms=1000, ttft_ms=80, tpot_ms=20, tokens=6)
    assert latencies_ms([one], Metric.TTFT).tolist() == [80]
    assert latencies_ms([one], Metric.TPOT).tolist() == [20]
    assert latencies_ms([one], Metric.ITL).tolist() == [20] * 5
    assert latencies_ms([one], Metric.E2E).tolist() == [180]


def test_a_single_token_has_no_tpot() -> None:
    assert latencies_ms([request(tokens=1)], Metric.TPOT).tolist() == []


def test_tpot_counts_tokens_not_chunks() -> None:
    merged = replace(request(tokens=3, tpot_ms=10), output_tokens=5)
    assert latencies_ms([merged], Metric.TPOT).tolist() == [20 / 4]


def test_a_percentile_of_nothing_is_none() -> None:
    found = measure(level([request(ttft_ms=None, failure=Failure.CONNECT)]), telemetry(), LOAD, slos=[TTFT_500])
    assert (found.ttft_ms, found.tpot_ms, found.itl_ms, found.e2e_ms) == (None, None, None, None)
    assert found.failed == (("connect", 1),)
    assert found.attainments[0].value_ms is None and found.attainments[0].violations == 1


def test_distribution_uses_values_that_were_seen() -> None:
    found = distribution(latencies_ms([request(i, ttft_ms=i + 1) for i in range(1000)], Metric.TTFT))
    assert found is not None
    assert (found.p50, found.p90, found.p95, found.p99, found.max) == (500, 900, 950, 990, 1000)
    assert found.p99_low is not None and found.p99_high is not None
    assert found.p99_low < 990 < found.p99_high


def test_qps_is_counted_over_the_steady_window_without_ramp_and_drain() -> None:
    # One answer every 100 ms, each 200 ms long: ten a second; the last ones arrive behind the end.
    requests = [request(i, due_ms=100 * i, ttft_ms=100, tpot_ms=10, tokens=11) for i in range(100)]
    found = measure(level(requests, 10.0), telemetry(), LOAD)
    assert found.window_s == pytest.approx(9.5)  # 2.5 answers of 200 ms
    assert found.qps == pytest.approx(10, rel=0.02)
    assert found.output_tokens_per_s == pytest.approx(110, rel=0.02)
    assert found.completed == found.sent == 100


def test_at_most_a_third_of_a_short_level_is_left_out() -> None:
    found = measure(level([request(ttft_ms=5000)], 6.0), telemetry(), LOAD)
    assert found.window_s == pytest.approx(4.0)


def test_failures_are_counted_by_kind_and_what_we_cut_is_none() -> None:
    found = measure(
        level(
            [
                request(0),
                request(1, failure=Failure.SHORTENED),
                request(2, failure=Failure.HTTP, status=503, ttft_ms=None),
                request(3, failure=Failure.HTTP, status=503, ttft_ms=None),
                request(4, failure=Failure.CUT, ttft_ms=None),
            ]
        ),
        telemetry(),
        LOAD,
    )
    assert found.failed == (("http-503", 2), ("shortened", 1))
    assert (found.sent, found.completed, found.failed_total) == (5, 1, 3)


def test_unanswered_requests_violate_only_once_the_limit_has_passed() -> None:
    late = request(0, ttft_ms=None, failure=Failure.CUT, end_ms=900)
    early = request(1, ttft_ms=None, failure=Failure.CUT, end_ms=200)
    failed = request(2, ttft_ms=None, failure=Failure.BROKEN_STREAM)
    good = request(3, ttft_ms=100)
    (found,) = measure(level([late, early, failed, good]), telemetry(), LOAD, slos=[TTFT_500]).attainments
    assert (found.counted, found.violations) == (3, 2)


def test_an_answer_that_was_cut_later_still_has_its_ttft() -> None:
    cut = request(0, ttft_ms=700, failure=Failure.CUT)
    (found,) = measure(level([cut]), telemetry(), LOAD, slos=[TTFT_500]).attainments
    assert (found.counted, found.violations, found.value_ms) == (1, 1, 700)


def test_what_the_server_does_not_say_is_none_and_never_zero() -> None:
    found = measure(level([request()]), None, LOAD)
    assert found.server.preemptions is None and found.server.kv_usage_peak is None
    assert CautionKind.METRICS_MISSING in kinds(found)
    assert measure(level([request()]), telemetry(preemptions=None), LOAD).server.preemptions is None


def test_preemptions_are_the_difference_of_the_level() -> None:
    assert measure(level([request()]), telemetry(before=5, preemptions=7), LOAD).server.preemptions == 2


def rows(*gpus: GpuReading) -> list[Row]:
    scrapes = (Scrape(0, running=3, waiting=0, kv_usage=0.2), Scrape(0, running=5, waiting=4, kv_usage=0.6))
    return [Row(i, server, gpus, HOST) for i, server in enumerate(scrapes)]


def test_peaks_and_means_come_from_the_samples() -> None:
    gpu = GpuReading(0, 0.8, 2**31, 250.0, 70.0, 1500.0, ("power cap",))
    found = measure(level([request()]), telemetry(rows=rows(gpu)), LOAD)
    assert (found.server.running_mean, found.server.running_peak) == (4, 5)
    assert (found.server.waiting_mean, found.server.kv_usage_peak) == (2, 0.6)
    assert found.gpu is not None
    assert (found.gpu.memory_gib_peak, found.gpu.power_w_mean, found.gpu.throttled) == (2, 250, ("power cap",))
    assert CautionKind.THROTTLED in kinds(found)


def test_a_foreign_process_on_the_gpu_is_seen_where_pids_can_be_read() -> None:
    gpu = GpuReading(0, 0.8, 2**31, 250.0, 70.0, 1500.0, pids=(11, 99))
    assert CautionKind.FOREIGN_PROCESS in kinds(
        measure(level([request()]), telemetry(rows=rows(gpu), server_pids=(10, 11)), LOAD)
    )
    assert CautionKind.FOREIGN_PROCESS not in kinds(
        measure(level([request()]), telemetry(rows=rows(gpu), server_pids=(10, 12)), LOAD)
    ), "in a container the driver counts processes by the host's numbers"


def test_a_busy_host_and_a_late_client_are_seen() -> None:
    busy = replace(HOST, busy_cores=1.9)
    found = measure(
        level([request()], client=replace(CALM, lag_p99_ms=9.0)),
        telemetry(rows=[Row(0, None, (), busy)]),
        LOAD,
        slos=[TTFT_500],
    )
    assert {CautionKind.HOST_BUSY, CautionKind.CLIENT_BOUND} <= kinds(found)
    values = {seen.sign: seen.value for caution in found.cautions for seen in caution.seen}
    assert values[Sign.LAG_MS] == 9.0
    assert values[Sign.FOREIGN_CORES] == pytest.approx(0.9)
    assert all(caution.seen for caution in found.cautions)


def test_drift_between_the_halves_is_seen_and_noise_is_not() -> None:
    rising = [request(i, due_ms=10 * i, ttft_ms=100 + i) for i in range(400)]
    jumping = [request(i, due_ms=10 * i, ttft_ms=100 + 37 * i % 41) for i in range(400)]
    assert CautionKind.DRIFT in kinds(measure(level(rising), telemetry(), LOAD))
    assert CautionKind.DRIFT not in kinds(measure(level(jumping), telemetry(), LOAD))


def test_a_measurement_survives_json() -> None:
    gpu = GpuReading(0, 0.8, 2**31, 250.0, 70.0, 1500.0, ("power cap",))
    found = measure(level([request(i) for i in range(500)]), telemetry(rows=rows(gpu)), LOAD, slos=[TTFT_500])
    assert jsonfile.loads(jsonfile.dumps(found), Measurement) == found


def test_the_second_half_of_an_open_loop_is_counted_against_what_came() -> None:
    # Ten a second for 10 s, a second each: ten are open at any time. The last ten answers of the level come after it.
    requests = [request(i, due_ms=100 * i, ttft_ms=500, tpot_ms=50, tokens=11) for i in range(100)]
    found = measure(level(requests, 10.0), telemetry(), Load(LoadKind.OPEN, 10.0))
    assert found.second_half == Throughput(5.0, 50, 50, 10)
    assert measure(level(requests, 10.0), telemetry(), LOAD).second_half is None


def test_a_level_too_short_for_its_answers_says_nothing_of_its_second_half() -> None:
    requests = [request(i, due_ms=100 * i, ttft_ms=500, tpot_ms=250, tokens=11) for i in range(100)]
    assert measure(level(requests, 10.0), telemetry(), Load(LoadKind.OPEN, 10.0)).second_half is None
