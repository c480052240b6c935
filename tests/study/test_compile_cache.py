from __future__ import annotations

from dataclasses import replace

import pytest

from tests.study.builders import record, with_start
from tuner.candidate import Candidate, Value
from tuner.study.compile_cache import Cache, cache_states, compile_key, expected_start_s, neighbours, start_times_s
from tuner.study.record import TrialOutcome, TrialRecord
from tuner.study.start_record import Phases

SMALL: dict[str, Value] = {"max-num-seqs": 64, "max-num-batched-tokens": 2048, "gpu-memory-utilization": 0.9}
LARGE: dict[str, Value] = {**SMALL, "max-num-seqs": 256}


def started(trial: int, values: dict[str, Value], seconds: float = 50.0) -> TrialRecord:
    return with_start(record(trial, Candidate.of(values)), phases=Phases(seconds, 5, 60, 1))


def refused(trial: int, values: dict[str, Value]) -> TrialRecord:
    made = record(trial, Candidate.of(values), outcome=TrialOutcome.REFUSED)
    return with_start(made, phases=Phases(20.0, stop_s=1))


def with_words(made: TrialRecord, *words: str) -> TrialRecord:
    return with_start(
        made, launch=replace(made.start.launch, arguments=(*made.start.launch.arguments, *words), flags=())
    )


@pytest.mark.parametrize(
    "flag", ["max-num-seqs", "max-num-batched-tokens", "max-model-len", "block-size", "unheard-of"]
)
def test_sizes_and_whatever_is_not_known_to_be_left_out_make_another_key(flag: str) -> None:
    assert compile_key(Candidate.of({**SMALL, flag: 96})) != compile_key(Candidate.of(SMALL))


@pytest.mark.parametrize(
    "flag",
    [
        "gpu-memory-utilization",
        "kv-cache-memory-bytes",
        "long-prefill-token-threshold",
        "enable-chunked-prefill",
        "data-parallel-size",
    ],
)
def test_memory_scheduling_and_the_number_of_servers_are_not_compiled_in(flag: str) -> None:
    assert compile_key(Candidate.of({**SMALL, flag: 0.5})) == compile_key(Candidate.of(SMALL))


def test_the_first_start_of_a_key_is_cold_and_later_ones_are_warm() -> None:
    records = [
        started(0, {}),
        started(1, SMALL),
        started(2, LARGE),
        started(3, {**SMALL, "gpu-memory-utilization": 0.95}),
        started(4, {}),
    ]
    assert cache_states(records) == {0: Cache.COLD, 1: Cache.COLD, 2: Cache.COLD, 3: Cache.WARM, 4: Cache.WARM}


def test_vllms_own_data_parallelism_compiles_apart() -> None:
    records = [started(0, SMALL), with_words(started(1, SMALL), "--data-parallel-size", "2"), started(2, SMALL)]
    assert cache_states(records) == {0: Cache.COLD, 1: Cache.COLD, 2: Cache.WARM}


def test_what_a_refused_start_left_in_the_cache_is_not_known() -> None:
    records = [refused(0, SMALL), started(1, SMALL), refused(2, SMALL), started(3, SMALL)]
    assert cache_states(records) == {0: Cache.COLD, 1: None, 2: Cache.WARM, 3: Cache.WARM}


def test_where_nothing_is_compiled_all_starts_are_alike() -> None:
    records = [with_words(started(n, SMALL), "--enforce-eager") for n in range(2)]
    assert set(cache_states(records).values()) == {None}
    assert cache_states([with_words(records[0], "--no-enforce-eager")]) == {0: Cache.COLD}


def test_the_cache_of_a_container_ends_with_it_unless_it_is_mounted_and_is_not_known() -> None:
    made = started(0, SMALL)
    contained = with_start(made, launch=replace(made.start.launch, command=("docker", "run", "vllm")))
    assert cache_states([contained, replace(contained, trial=1)]) == {0: None, 1: None}


def test_the_next_start_is_expected_to_take_the_median_of_its_kind() -> None:
    records = [started(n, {**SMALL, "max-num-seqs": 8 * n + 8}, s) for n, s in enumerate((50.0, 300.0, 52.0))]
    assert expected_start_s(records, Cache.COLD) == 52.0
    assert expected_start_s(records, Cache.WARM) == 52.0, "no warm one yet: as any"
    warm = [started(n, {**SMALL, "max-num-seqs": 8}, s) for n, s in ((3, 20.0), (4, 22.0))]
    assert expected_start_s([*records, *warm], Cache.WARM) == 21.0
    assert expected_start_s([*records, *warm], Cache.COLD) == 52.0
    assert expected_start_s([], Cache.COLD) is None


def test_the_time_until_a_refusal_is_not_the_time_until_a_server_is_ready() -> None:
    assert start_times_s([refused(0, SMALL), started(1, LARGE, 40.0)]) == {Cache.COLD: [40.0]}


def test_candidates_with_one_key_stand_together_in_the_order_of_the_first() -> None:
    small, large = Candidate.of(SMALL), Candidate.of(LARGE)
    more = Candidate.of({**SMALL, "gpu-memory-utilization": 0.95})
    assert neighbours([small, large, more]) == [small, more, large]
