"""State of vLLM's compile cache, and its effect on starts."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from enum import StrEnum

from tuner.candidate import Candidate, Value
from tuner.study.record import TrialRecord
from tuner.vllm import knobs
from tuner.vllm.compile_key import NOT_IN_THE_KEY

Key = tuple[tuple[str, Value], ...]
"""Flags and values that decide which compiled code runs."""


class Cache(StrEnum):
    COLD = "cold"
    WARM = "warm"


def compile_key(candidate: Candidate) -> Key:
    """Return the key of the compiled code. Candidates of one study with equal keys share it. A flag that is left out
    is a value of its own, though vLLM's default may equal what another candidate sets."""
    return tuple((flag, value) for flag, value in candidate.values if flag not in NOT_IN_THE_KEY)


def neighbours(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Sort candidates with equal keys together, stably."""
    by_key: dict[Key, list[Candidate]] = {}
    for candidate in candidates:
        by_key.setdefault(compile_key(candidate), []).append(candidate)
    return [candidate for alike in by_key.values() for candidate in alike]


def cache_states(records: Iterable[TrialRecord]) -> dict[int, Cache | None]:
    """Map trials to COLD or WARM. COLD is the first start of a key, WARM one after a ready server.

    All GPU groups of a study share one cache folder. None if nothing is compiled (--enforce-eager), if only failed
    starts came before, which may have compiled, or if the cache is in a container and ends with it.
    """
    ready: dict[Key, bool] = {}
    states: dict[int, Cache | None] = {}
    for record in sorted(records, key=lambda r: r.trial):
        key = _key(record)
        known = ready.get(key)
        state = Cache.COLD if known is None else Cache.WARM if known else None
        launch = record.start.launch
        is_eager = launch.value(knobs.ENFORCE_EAGER) is True
        states[record.trial] = None if is_eager or launch.in_container else state
        ready[key] = bool(known) or record.start.got_ready
    return states


def _key(record: TrialRecord) -> Key:
    """Return the key of a trial's servers. vLLM's own data parallelism compiles apart."""
    engines = record.start.launch.value(knobs.DATA_PARALLEL)
    key = compile_key(record.candidate)
    return key if engines is None else (*key, (knobs.DATA_PARALLEL, engines))


def start_times_s(records: Sequence[TrialRecord]) -> dict[Cache | None, list[float]]:
    """Return the seconds to a ready server, by cache state."""
    states = cache_states(records)
    times: dict[Cache | None, list[float]] = {}
    for record in records:
        if record.start.got_ready and record.start.phases.start_s is not None:
            times.setdefault(states[record.trial], []).append(record.start.phases.start_s)
    return times


def expected_start_s(records: Sequence[TrialRecord], cache: Cache) -> float | None:
    """Return the median start in a state, else of all. None before the first."""
    times = start_times_s(records)
    like = times.get(cache) or [seconds for alike in times.values() for seconds in alike]
    return statistics.median(like) if like else None
