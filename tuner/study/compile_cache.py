"""vLLM's compile cache: which starts had to compile, and how long a start takes with and without."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from enum import StrEnum

from tuner.candidate import Candidate, Value
from tuner.study.record import TrialRecord
from tuner.vllm import knobs

NOT_IN_THE_KEY = frozenset({
    "gpu-memory-utilization", "kv-cache-memory-bytes", "num-gpu-blocks-override", "enable-prefix-caching",
    "max-num-active-seqs", "max-num-scheduled-tokens", "enable-chunked-prefill", "long-prefill-token-threshold",
    "long-prefill-token-threshold-adaptive", "max-num-partial-prefills", "max-long-partial-prefills", "watermark",
    "scheduling-policy", "scheduler-reserve-full-isl", "prefill-schedule-interval", "async-scheduling",
    "stream-interval",
})  # fmt: skip
"""Flags that vLLM's cache key leaves out. Of the scheduler it holds max-num-seqs and max-num-batched-tokens alone, of
the KV cache nothing that sets its size, and of the model max-model-len: compute_hash in vllm/config/scheduler.py,
cache.py and model.py (0.32; before 0.29 max-num-seqs was in it only below 256). A flag that is not listed here counts
as part of the key: a start that is wrongly called cold costs nothing but a longer estimate."""


class Cache(StrEnum):
    COLD = "cold"
    WARM = "warm"


def compile_key(candidate: Candidate) -> tuple[tuple[str, Value], ...]:
    """Candidates of one study with equal keys run the same compiled code. A flag that is left out is a value of its
    own, though vLLM's default may equal what another candidate sets."""
    return tuple((flag, value) for flag, value in candidate.values if flag not in NOT_IN_THE_KEY)


def neighbours(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Those with equal keys one after the other, otherwise in their order."""
    by_key: dict[tuple[tuple[str, Value], ...], list[Candidate]] = {}
    for candidate in candidates:
        by_key.setdefault(compile_key(candidate), []).append(candidate)
    return [candidate for alike in by_key.values() for candidate in alike]


def cache_states(records: Iterable[TrialRecord]) -> dict[int, Cache | None]:
    """By trial number: COLD for the first start of a key, WARM once a server with that key got ready.

    All GPU groups of a study share one cache folder. None: nothing is compiled (--enforce-eager), only starts that did
    not get ready came before and may have compiled all the same, or the cache is in a container and ends with it.
    """
    ready: dict[tuple[tuple[str, Value], ...], bool] = {}
    states: dict[int, Cache | None] = {}
    for record in sorted(records, key=lambda r: r.trial):
        key = compile_key(record.candidate)
        known = ready.get(key)
        state = Cache.COLD if known is None else Cache.WARM if known else None
        states[record.trial] = (
            None
            if record.start.launch.value(knobs.ENFORCE_EAGER) is True or record.start.launch.in_container
            else state
        )
        ready[key] = bool(known) or record.start.got_ready
    return states


def start_times_s(records: Sequence[TrialRecord]) -> dict[Cache | None, list[float]]:
    """Seconds from its fork until a server was ready, by the state of the cache."""
    states = cache_states(records)
    times: dict[Cache | None, list[float]] = {}
    for record in records:
        if record.start.got_ready and record.start.phases.start_s is not None:
            times.setdefault(states[record.trial], []).append(record.start.phases.start_s)
    return times


def expected_start_s(records: Sequence[TrialRecord], cache: Cache) -> float | None:
    """Median of the starts in that state; of all where there was none, and None before the first."""
    times = start_times_s(records)
    like = times.get(cache) or [seconds for alike in times.values() for seconds in alike]
    return statistics.median(like) if like else None
