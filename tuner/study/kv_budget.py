"""KV cache sizes of a plan, and what fits. Each layout has its own: a server's GPUs share weights and KV cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tuner.candidate import Candidate, Value
from tuner.capacity import (
    GIB,
    FirstStart,
    KvRoom,
    ModelMemory,
    ServerFlags,
    at_kv_bytes,
    at_utilization,
    calibrated,
    least_for,
    model_memory,
)
from tuner.environment import Gpu
from tuner.kv.config_json import UnknownModelError
from tuner.layout import Layout
from tuner.model import folder_of, why_unread
from tuner.space.parameter import Parameter
from tuner.space.space import Space
from tuner.study.lifetimes import Lifetimes
from tuner.study.plan import StudyPlan
from tuner.study.record import TrialRecord
from tuner.study.setting import StudySetting
from tuner.vllm import knobs
from tuner.vllm.defaults import caches_states, latent_packing, steps_in_flight
from tuner.vllm.speculation import draft

UTILIZATION, KV_BYTES, LENGTH = knobs.GPU_MEMORY_UTILIZATION, knobs.KV_CACHE_MEMORY_BYTES, knobs.MAX_MODEL_LEN
MOST_BESIDE_OTHERS, DRIVERS_SHARE = 0.97, 0.01
"""Largest share of a GPU's memory where others are on it, and about what the driver keeps."""

UTILIZATIONS = (0.80, 0.85, 0.90, 0.92, 0.95, 0.97)
LIKELY_TO_START = 0.95
"""Highest share of memory that usually starts. vLLM does not count fragmentation and some graphs."""
BYTE_ROWS = 6


@dataclass(frozen=True, slots=True)
class KvTable:
    """Table of (value of `flag`, what fits), the most memory last. If empty, the reason is in `why_empty`.
    `calibrated_by` is the number of the trial whose log replaced the estimates."""

    flag: str
    rows: tuple[tuple[float, KvRoom], ...]
    memory: ModelMemory
    calibrated_by: int | None = None
    why_empty: str | None = None

    @property
    def likely(self) -> tuple[float, KvRoom] | None:
        """Return the row of the largest KV cache that is likely to start. None if the table is empty."""
        rows = [row for row in self.rows if self.flag == KV_BYTES or row[0] <= LIKELY_TO_START] or self.rows
        return rows[-1] if rows else None


@dataclass(frozen=True, slots=True)
class KvFloor:
    """Lower bound on `flag` for one request of max-model-len.

    It is derived from the start-up log of `trial`. For gpu-memory-utilization it only holds for candidates that use
    at least as much memory outside the KV cache as that trial did.
    """

    flag: str
    least: float
    trial: int


def kv_table(setting: StudySetting, records: Iterable[TrialRecord] = (), layout: Layout | None = None) -> KvTable:
    """Compute what fits at each searched size on one server of a layout, None being the default's. Only `records` of
    such servers are read. Raises UnknownModelError with the reason if nothing can be said."""
    plan = setting.plan
    layout = layout or plan.own_layout
    folder = model_folder(setting)
    if folder is None:
        raise UnknownModelError(why_unread(plan.model))
    usual = setting.values(Candidate.of({**dict(plan.space.fixed), **setting.on(layout)}))
    memory = model_memory(folder, server_flags(setting, usual))
    gpu_bytes = smallest_gpu_bytes(setting.gpus)
    trial = None
    for record in of_servers(setting, records, layout):
        if (first := _first_start(setting, record)) is not None:
            memory, trial = calibrated(memory, first, gpu_bytes), record.trial
            break
    flag, values = _settings(plan, usual)
    if memory.unknown_kv is not None and memory.paging is None:
        return KvTable(flag, (), memory, trial, memory.unknown_kv)
    if flag != KV_BYTES and gpu_bytes is None:
        return KvTable(flag, (), memory, trial, f"no GPU was found that {flag} could be a share of")
    rows = tuple((v, room) for v in values if (room := _room(memory, flag, v, gpu_bytes)) is not None)
    why = None if rows else "the weights' bytes: no weight files in the folder, and config.json does not tell them"
    return KvTable(flag, rows, memory, trial, why)


def model_folder(setting: StudySetting) -> Path | None:
    """Return the folder with the config.json that vLLM reads."""
    return folder_of(setting.plan.model, setting.given.get(knobs.REVISION))


def _room(memory: ModelMemory, flag: str, value: float, gpu_bytes: int | None) -> KvRoom | None:
    if flag == KV_BYTES:
        return at_kv_bytes(memory, int(value))
    return None if gpu_bytes is None else at_utilization(memory, gpu_bytes, value)


def of_servers(setting: StudySetting, records: Iterable[TrialRecord], layout: Layout) -> list[TrialRecord]:
    """List the trials whose servers have as many GPUs as a layout's, in the same arrangement."""
    return [record for record in records if setting.plan.layout_of(record.candidate).server == layout.server]


def default_room(setting: StudySetting, needed_tokens: int = 0) -> tuple[KvRoom, ModelMemory] | None:
    """Return the default's KV cache before any start.

    Of several layouts it is the smallest that surely holds `needed_tokens`, so that each of them can serve what fits
    into it; if none surely does, that of the default's own layout. None if the weights or the GPUs' memory are not
    known. Raises UnknownModelError with the reason if nothing can be said.
    """
    plan = setting.plan
    own = _room_on(setting, plan.own_layout)
    rooms = [room for placed in plan.layouts if (room := _room_on(setting, placed.layout)) is not None]
    enough = [found for found in rooms if found[0].tokens_of(needed_tokens or found[0].longest).low >= needed_tokens]
    return min(enough, key=lambda found: found[0].kv_tokens.low, default=own)


def _room_on(setting: StudySetting, layout: Layout) -> tuple[KvRoom, ModelMemory] | None:
    """Return the KV cache of one server of a layout with vLLM's defaults. Where the space searches the cache's bytes
    and the default has none, it is the largest that is searched."""
    table = kv_table(setting, layout=layout)
    room = _room_with(table.memory, setting.values(setting.plan.default_of(layout)), smallest_gpu_bytes(setting.gpus))
    if room is None and table.flag == KV_BYTES and not setting.gpus and table.rows:
        room = table.rows[-1][1]
    return None if room is None else (room, table.memory)


def _room_with(memory: ModelMemory, values: Mapping[str, Value], gpu_bytes: int | None) -> KvRoom | None:
    """Return the KV cache of a server with these values."""
    if isinstance(kv_bytes := values.get(KV_BYTES), (int, float)):
        return at_kv_bytes(memory, int(kv_bytes))
    return _room(memory, UTILIZATION, float(values[UTILIZATION]), gpu_bytes)


def most_sequences(setting: StudySetting, values: Mapping[str, Value]) -> int | None:
    """Return the most max-num-seqs of a server with these values.

    vLLM refuses more sequences than it has blocks for their states. Where the arithmetic leaves something out, it is
    vLLM's default. None if there is no such limit.
    """
    folder = model_folder(setting)
    if folder is None:
        return None
    try:
        memory = model_memory(folder, server_flags(setting, values))
    except UnknownModelError:
        return None
    default = setting.base.get(knobs.MAX_NUM_SEQS)
    known = [int(default)] if isinstance(default, int) and (memory.paging is None or memory.not_modelled) else []
    room = _room_with(memory, values, smallest_gpu_bytes(setting.gpus))
    if room is not None and room.paging.has_states:
        known.append(max(1, room.blocks.low))
    return min(known, default=None)


def kv_floor(setting: StudySetting, records: Iterable[TrialRecord], layout: Layout | None = None) -> KvFloor | None:
    """Return the floor of the searched flag for servers of a layout, None being the default's. None before a start's
    log makes the arithmetic exact, if it does not model everything, or if the whole range lies above."""
    records = tuple(records)
    try:
        table = kv_table(setting, records, layout)
    except UnknownModelError:
        return None
    record = next((r for r in records if r.trial == table.calibrated_by), None)
    parameter = next((p for p in setting.plan.parameters if p.flag == table.flag), None)
    if record is None or parameter is None or table.memory.not_modelled:
        return None
    first, tokens = _first_start(setting, record), _shortest_length(setting, record)
    if first is None or tokens is None or (first.utilization is None) != (table.flag == KV_BYTES):
        return None
    least = least_for(table.memory, first, smallest_gpu_bytes(setting.gpus), int(tokens))
    lowest = min(map(float, parameter.choices)) if parameter.choices else parameter.low
    return KvFloor(table.flag, least, record.trial) if least is not None and least > lowest else None


def _shortest_length(setting: StudySetting, record: TrialRecord) -> float | None:
    """Return the least max-model-len of the study's candidates; that of `record` if vLLM chooses it for all."""
    for parameter in setting.plan.parameters:
        if parameter.flag == LENGTH:
            numbers = [c for c in parameter.choices if isinstance(c, (int, float))]
            known = len(numbers) == len(parameter.choices)
            return min(numbers, default=parameter.low) if known else None
    if LENGTH not in setting.constant:
        return None if record.start.facts is None else record.start.facts.max_model_len
    length = setting.constant[LENGTH]
    return length if isinstance(length, (int, float)) and length > 0 else None


def smallest_gpu_bytes(gpus: tuple[Gpu, ...]) -> int | None:
    return int(min(gpu.memory_gib for gpu in gpus) * GIB) if gpus else None


def _settings(plan: StudyPlan, usual: Mapping[str, Value]) -> tuple[str, tuple[float, ...]]:
    ranges = {p.flag: p for p in plan.parameters}
    if KV_BYTES in ranges:
        return KV_BYTES, _spread(ranges[KV_BYTES])
    if isinstance(given := usual.get(KV_BYTES), int):
        return KV_BYTES, (given,)
    if UTILIZATION in ranges:
        if ranges[UTILIZATION].choices:
            return UTILIZATION, _spread(ranges[UTILIZATION])
        low, high = ranges[UTILIZATION].axis
        return UTILIZATION, tuple(sorted({low, high, *(u for u in UTILIZATIONS if low <= u <= high)}))
    return UTILIZATION, (float(usual[UTILIZATION]),)


def _spread(parameter: Parameter) -> tuple[float, ...]:
    """Spread values over a range, each the same number of times the one before."""
    if parameter.choices:
        return tuple(sorted(float(choice) for choice in parameter.choices if isinstance(choice, (int, float))))
    low = max(1.0, parameter.low)
    steps = [low * (parameter.high / low) ** (i / (BYTE_ROWS - 1)) for i in range(BYTE_ROWS)]
    return tuple(dict.fromkeys(float(parameter.decode(step)) for step in steps))


def server_flags(setting: StudySetting, usual: Mapping[str, Value]) -> ServerFlags:
    def number(flag: str, default: int) -> int:
        value = usual.get(flag, default)
        return max(1, int(value)) if isinstance(value, (int, float)) else default

    return ServerFlags(
        max_num_batched_tokens=number(knobs.MAX_NUM_BATCHED_TOKENS, 2048),
        max_num_seqs=number(knobs.MAX_NUM_SEQS, 256),
        block_tokens=number(knobs.BLOCK_SIZE, 16 if setting.gpus else 128),  # vLLM's defaults on a GPU and on a CPU
        max_model_len=length if isinstance(length := usual.get(LENGTH), int) and length > 0 else None,
        caches_states=_caches_states(setting, usual),
        steps_in_flight=1 if usual.get(knobs.ASYNC_SCHEDULING) is False else steps_in_flight(setting.plan.vllm_version),
        by_kind=usual.get(knobs.DISABLE_HYBRID_KV_CACHE_MANAGER) is not True,
        state_dtype=str(usual.get(knobs.MAMBA_SSM_CACHE_DTYPE, "auto")),
        draft=draft(usual),
        packing=latent_packing(setting.plan.vllm_version, setting.gpus, usual),
        tensor_parallel_size=number(knobs.TENSOR_PARALLEL, 1),
        pipeline_parallel_size=number(knobs.PIPELINE_PARALLEL, 1),
        dtype=str(usual.get(knobs.DTYPE, "auto")),
        kv_cache_dtype=str(usual.get(knobs.KV_CACHE_DTYPE, "auto")),
        quantization=str(usual[knobs.QUANTIZATION]) if knobs.QUANTIZATION in usual else None,
        mentioned=frozenset(flag.partition(".")[0] for flag in usual),
    )


def _caches_states(setting: StudySetting, usual: Mapping[str, Value]) -> bool:
    """Return True if a server with states caches prefixes: older vLLM does so if it is asked to."""
    asked = {**dict(setting.plan.base.fixed), **setting.given}.get(knobs.ENABLE_PREFIX_CACHING) is True
    by_default = asked or caches_states(setting.plan.vllm_version)
    return by_default and usual.get(knobs.ENABLE_PREFIX_CACHING) is not False


def _first_start(setting: StudySetting, record: TrialRecord) -> FirstStart | None:
    facts = record.start.facts
    if facts is None or not facts.kv_tokens:
        return None
    values = setting.values(record.candidate)
    kv_bytes = values.get(KV_BYTES)
    explicit = int(kv_bytes) if isinstance(kv_bytes, (int, float)) else None
    stages = values.get(knobs.PIPELINE_PARALLEL, 1)
    return FirstStart(
        kv_tokens=facts.kv_tokens,
        kv_gib=facts.kv_memory_gib if stages == 1 else None,  # the least of the stages, whose layers differ
        weights_gib=facts.weights_gib,
        utilization=None if explicit else float(values[UTILIZATION]),
        kv_bytes=explicit,
        concurrency=facts.max_concurrency,
        length=facts.concurrency_tokens or facts.max_model_len,
        block_tokens=facts.block_tokens,
        step_tokens=int(steps) if isinstance(steps := values.get(knobs.MAX_NUM_BATCHED_TOKENS), (int, float)) else None,
    )


def fullest(setting: StudySetting, layout: Layout | None = None) -> dict[str, float]:
    """Return the flags of the largest KV cache that is likely to start on a layout's server, with as many sequences as
    it is likely to hold nearly always while they are served. Empty if that is not known."""
    try:
        table = kv_table(setting, layout=layout)
    except UnknownModelError:
        return {}
    if table.likely is None:
        return {}
    value, room = table.likely
    lives = Lifetimes.of(setting.plan.workload)
    blocks = (room.blocks.low + room.blocks.high) / 2  # the first start's log will say
    sequences = int(lives.surely_fit(max(0.0, blocks - 1) / room.paging.mean_blocks(lives.resident) * lives.resident))
    return {knobs.MAX_NUM_SEQS: sequences, table.flag: value} if sequences else {}


def beside_others(space: Space, held: float, say: Callable[[str], None]) -> Space:
    """Leave others on a GPU the share `held` of its memory. A space in a file of the user's own stays as written."""
    if not held or space.file is not None:
        return space
    most = min(MOST_BESIDE_OTHERS, math.floor(100 * (1 - held - DRIVERS_SHARE)) / 100)
    say(f"--{UTILIZATION} is searched up to {most} at most: others hold {held:.0%} of a GPU's memory")
    return space.up_to(UTILIZATION, most)
