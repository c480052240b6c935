from __future__ import annotations

import pytest

from tuner.telemetry.prometheus import Scrape, deltas, engines, parse, scrape, summed, totals

TWO_ENGINES = """
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 4.0
vllm:num_requests_waiting{engine="0",model_name="m"} 1.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 9.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:kv_cache_usage_perc{engine="1",model_name="m"} 0.75
vllm:num_preemptions_total{engine="0",model_name="m"} 2.0
vllm:num_preemptions_total{engine="1",model_name="m"} 5.0
vllm:num_preemptions_created{engine="0",model_name="m"} 1.7e+09
vllm:prompt_tokens_total{engine="0",model_name="m"} 1000.0
vllm:prompt_tokens_cached_total{engine="0",model_name="m"} 77.0
vllm:generation_tokens_total{engine="0",model_name="m"} 500.0
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1000.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 250.0
vllm:request_success_total{engine="0",finished_reason="stop",model_name="m"} 1.0
vllm:request_success_total{engine="0",finished_reason="length",model_name="m"} 19.0
vllm:request_success_total{engine="0",finished_reason="abort",model_name="m"} 6.0
vllm:request_queue_time_seconds_sum{engine="0",model_name="m"} 1.5
vllm:request_queue_time_seconds_count{engine="0",model_name="m"} 20.0
vllm:request_queue_time_seconds_bucket{engine="0",le="0.3",model_name="m"} 20.0
"""


def parsed(text: str) -> Scrape:
    found = parse(text, 1)
    assert found is not None
    return found


def test_engines_are_summed_and_the_fullest_cache_counts() -> None:
    seen = parsed(TWO_ENGINES)
    assert (seen.running, seen.waiting, seen.kv_usage, seen.preemptions) == (7, 1, 0.75, 7)


def test_engines_can_be_read_one_by_one() -> None:
    first, second = engines(TWO_ENGINES, 1)
    assert (first.running, first.kv_usage, first.preemptions, first.succeeded) == (3, 0.25, 2, 20)
    assert (second.running, second.kv_usage, second.preemptions, second.succeeded) == (4, 0.75, 5, None)
    assert len(engines('vllm:num_requests_running{model_name="m"} 1.0\n', 1)) == 1
    assert engines("", 1) == ()


def test_engines_are_in_the_order_of_their_numbers() -> None:
    lines = (f'vllm:num_requests_running{{engine="{number}"}} {number}.0' for number in (10, 2, 0))
    assert [one.running for one in engines("\n".join([*lines, ""]), 1)] == [0, 2, 10]


def test_servers_are_summed_and_the_fullest_cache_counts() -> None:
    both = summed(
        [Scrape(5, running=1, kv_usage=0.2, preemptions=2), Scrape(6, running=3, kv_usage=0.7, preemptions=0)]
    )
    assert both == Scrape(6, running=4, kv_usage=0.7, preemptions=2)


def test_a_metric_that_one_server_lacks_is_not_observed() -> None:
    both = summed([Scrape(5, running=1, preemptions=2), Scrape(6, running=3)])
    assert both is not None and (both.running, both.preemptions) == (4, None)


def test_a_server_without_an_answer_leaves_no_sum() -> None:
    assert summed([Scrape(5, running=1), None]) is None
    assert summed([]) is None


def test_a_counter_that_one_server_shows_later_does_not_lend_it_the_others_past() -> None:
    before, after = totals(
        [Scrape(0, succeeded=100), Scrape(0, running=1)], [Scrape(9, succeeded=150), Scrape(9, running=0, succeeded=50)]
    )
    assert deltas(before, after).succeeded == 100


def test_names_that_only_begin_alike_are_other_metrics() -> None:
    seen = parsed(TWO_ENGINES)
    assert (seen.prompt_tokens, seen.waiting, seen.queued) == (1000, 1, 20)


def test_aborted_requests_did_not_succeed() -> None:
    assert parsed(TWO_ENGINES).succeeded == 20


def test_what_is_missing_is_none_not_zero() -> None:
    seen = parsed('vllm:num_requests_running{model_name="m"} 0.0\n')
    assert seen.running == 0
    assert (seen.preemptions, seen.kv_usage, seen.request_preemptions) == (None, None, None)


def test_names_of_older_versions_are_understood() -> None:
    seen = parsed(
        'vllm:gpu_cache_usage_perc{model_name="m"} 0.5\nvllm:gpu_prefix_cache_hits_total{model_name="m"} 3.0\n'
    )
    assert (seen.kv_usage, seen.prefix_hits) == (0.5, 3)


@pytest.mark.parametrize("text", ["", "process_cpu_seconds_total 3.0\n", "<html>not metrics</html>"])
def test_a_page_without_vllms_metrics_is_not_observed(text: str) -> None:
    assert parse(text, 1) is None


@pytest.mark.parametrize(
    "line",
    [
        'vllm:num_preemptions_total{engine="0"} NaN',
        'vllm:num_preemptions_total{engine="0"} +Inf',
        'vllm:num_preemptions_total{engine="0"} 7.0.0',
        'vllm:num_preemptions_total{engine="0"}',
        'vllm:num_preemptions_total{engine="0',
        "vllm:num_preemptions_total",
        'vllm:num_preemptions_total{engine=0"} 1',
    ],
)
def test_a_metric_with_a_malformed_line_is_not_observed_and_the_others_are(line: str) -> None:
    seen = parsed(f"{TWO_ENGINES}{line}\n")
    assert seen.preemptions is None
    assert (seen.running, seen.prompt_tokens) == (7, 1000)


def test_labels_may_hold_anything() -> None:
    text = 'vllm:request_success_total{ model_name="a}b,\\"c\\\\", finished_reason = "abort" } 5 1700000000000\n'
    assert parsed(text).succeeded == 0


def test_a_counter_that_fell_is_not_observed() -> None:
    assert deltas(Scrape(0, preemptions=5, queue_s=2.0, queued=9), Scrape(1, preemptions=3, queue_s=3.0, queued=8)) == (
        deltas(Scrape(0), Scrape(1))
    )


@pytest.mark.parametrize(
    ("running", "waiting"),
    [
        ("sglang:num_running_reqs", "sglang:num_queue_reqs"),
        ("llamacpp:requests_processing", "llamacpp:requests_deferred"),
    ],
)
def test_other_engines_tell_if_they_are_busy_and_no_preemptions(running: str, waiting: str) -> None:
    seen = parsed(f'{running}{{tp_rank="0"}} 0\n{waiting} 2\n')
    assert (seen.running, seen.waiting, seen.idle, seen.preemptions) == (0, 2, False, None)


def test_counters_are_differences() -> None:
    later = TWO_ENGINES.replace("} 5.0", "} 8.0").replace("} 1000.0", "} 3000.0").replace("} 250.0", "} 1250.0")
    rise = deltas(parsed(TWO_ENGINES), parsed(later))
    assert (rise.preemptions, rise.prompt_tokens, rise.generation_tokens, rise.succeeded) == (3, 2000, 0, 0)
    assert rise.prefix_hit_rate == 0.5
    assert rise.queue_ms_mean is None, "no request was scheduled in between"
    assert rise.request_preemptions is None


def test_a_counter_that_appears_later_rose_from_nothing() -> None:
    before = parsed('vllm:num_preemptions_total{model_name="m"} 0.0\n')
    assert deltas(before, parsed(TWO_ENGINES)).succeeded == 20


def test_without_one_of_the_two_scrapes_nothing_was_observed() -> None:
    assert deltas(None, parsed(TWO_ENGINES)).preemptions is None
    assert deltas(parsed(TWO_ENGINES), None).preemptions is None


def test_a_server_that_does_not_answer_is_not_observed() -> None:
    assert scrape("http://127.0.0.1:9/metrics") is None
