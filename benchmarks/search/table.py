"""True figures of a started candidate, tabulated once on the virtual stand-in and interpolated in between.

Coordinates: sequences, token budget, KV tokens, cap on long prompts. The nodes are no round numbers, so no list of
powers of two hits them. The adaptive floor of the cap and chunked prefill are taken as without effect on the rate.
Their effect on refusals is computed for each candidate by the stand-in's own start-up, as are memory and times of a
start.
"""

from __future__ import annotations

import json
import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tuner.candidate import Candidate, Value
from tuner.load.arrivals import schedule
from tuner.sim import ClosedLoop, EngineArguments, OpenLoop, Refused, Shape, Started, simulate, startup
from tuner.study.plan import MOST_CLIENTS, StudyPlan

from .landscapes import TEMPLATE_TOKENS, Landscape

TABLES = Path(__file__).with_name("tables")


@dataclass(frozen=True, slots=True)
class Grid:
    """Nodes on each axis, and how long each is loaded.

    The closed loop lasts `closed_s`, of which the first third is left out: answers take up to a minute. An open loop
    lasts as long as `requests` take, between the two ends of `open_s`.
    """

    sequences: int = 9
    budgets: int = 6
    kv: int = 4
    caps: int = 3
    closed_s: float = 150.0
    requests: int = 1000
    open_s: tuple[float, float] = (40.0, 150.0)


FINE = Grid()

STEP, PRECISION = 1.06, 1.02
"""Widths of the final bracket. The narrower one holds if preemption or a backlog fails. The surface between the
nodes is the truth by definition."""

Axes = tuple[Sequence[float], ...]


@dataclass(frozen=True, slots=True)
class Point:
    """Requests/s in open loop (within the limit, without preemption) and in a saturating closed loop.

    In the closed loop an answer takes `answer_s`. `kv_usage` is the peak at the sustained rate.
    """

    rate: float
    saturation: float
    kv_usage: float
    answer_s: float


@dataclass(frozen=True)
class Table:
    """Points on a grid. `cells` has one row of a Point's numbers for every node, `axes` in the order of the
    coordinates."""

    axes: Axes
    cells: NDArray[np.float64]
    optimum: float
    best: Candidate

    @cached_property
    def _logs(self) -> NDArray[np.float64]:
        """Return the cells on the grid, all but kv_usage as logarithms. A rate of 0 gets a hundredth of the best."""
        nothing = self.cells[:, 0].max() / 100
        numbers = self.cells.copy()
        numbers[:, (0, 1, 3)] = np.log(np.maximum(numbers[:, (0, 1, 3)], (nothing, nothing, 1e-3)))
        return numbers.reshape(*(len(axis) for axis in self.axes), 4)

    def at(self, started: Started, longest_prompt: int) -> Point:
        """Interpolate linearly in the logarithms of coordinates and rates. Outside the grid the nearest node holds."""
        config = started.config
        cap = min(config.long_prefill_token_threshold or longest_prompt, config.max_num_batched_tokens, longest_prompt)
        here = (config.max_num_seqs, config.max_num_batched_tokens, started.kv_tokens, cap)
        numbers = self._logs
        for value, axis in zip(here, self.axes, strict=True):
            upper = min(bisect_right(axis, value), len(axis) - 1)
            lower = max(upper - 1, 0)
            width = math.log(axis[upper] / axis[lower]) or 1.0
            share = min(max(math.log(value / axis[lower]) / width, 0.0), 1.0)
            numbers = (1 - share) * numbers[lower] + share * numbers[upper]
        rate, saturation, answer_s = np.exp(numbers[[0, 1, 3]])
        holds = rate > 0.03 * self.cells[:, 0].max()
        return Point(float(rate) if holds else 0.0, float(saturation), float(numbers[2]), float(answer_s))

    @classmethod
    def read(cls, name: str) -> Table:
        kept = json.loads((TABLES / f"{name}.json").read_text())
        return cls(tuple(kept["axes"]), np.array(kept["cells"]), kept["optimum"], Candidate.of(kept["best"]))

    def write(self, name: str) -> None:
        cells = json.dumps([[float(f"{value:.4g}") for value in row] for row in self.cells], separators=(",", ":"))
        head = {"axes": self.axes, "optimum": self.optimum, "best": self.best.as_dict()}
        text = json.dumps(head)[:-1] + f', "cells": {cells}}}\n'
        (TABLES / f"{name}.json").write_text(text.replace("],[", "],\n["))


def is_tabulated(name: str) -> bool:
    """Return True if a landscape has its table."""
    return (TABLES / f"{name}.json").is_file()


def start(landscape: Landscape, flags: dict[str, Value], compiled: set[str] | None = None) -> Started | Refused:
    """Start `flags`, spelt as vLLM does. A successful start leaves its compilation in `compiled`."""
    values = {flag.replace("-", "_"): value for flag, value in flags.items()}
    if landscape.max_model_len is not None:
        values["max_model_len"] = landscape.max_model_len
    values["tensor_parallel_size"] = landscape.tensor_parallel
    values["pipeline_parallel_size"] = landscape.pipeline_parallel
    values.pop("data_parallel_size", None)
    arguments = replace(EngineArguments(), **values)  # type: ignore[arg-type]
    found = startup(
        arguments, landscape.hardware, landscape.shape, held_bytes=landscape.held_bytes, compiled=compiled or ()
    )
    if compiled is not None and isinstance(found, Started):
        compiled.add(found.compile_key)
    return found


def longest_prompt(landscape: Landscape) -> int:
    return max(share.prompt.high for share in landscape.shares)


def tabulate(landscape: Landscape, plan: StudyPlan, grid: Grid = FINE) -> Table:
    axes = _axes(landscape, plan, grid)
    sequences, budgets, kv, caps = axes
    cells = np.zeros((*map(len, axes), 4))
    share = 0.9
    for t, cap in reversed(list(enumerate(caps))):
        for b, budget in enumerate(budgets):
            if t < len(caps) - 1 and cap >= budget:
                cells[:, b, :, t] = cells[:, b, :, -1]
                continue
            for s, seqs in enumerate(sequences):
                for k, tokens in enumerate(kv):
                    cell = _Cell(landscape, grid, int(seqs), int(max(budget, seqs)), int(tokens), int(cap))
                    cells[s, b, k, t] = cell.point(share)
                    share = max(0.3, cells[s, b, k, t, 0] / max(cells[s, b, k, t, 1], 1e-6))
                    if cell.fullest < 0.97:  # more KV memory changes nothing
                        cells[s, b, k:, t] = cells[s, b, k, t]
                        break
            print(f"{landscape.name}: cap {cap:.0f}, budget {budget:.0f}", flush=True)
    # More memory never hurts on this machine: what falls with it is the chance of one trace.
    cells[..., 0] = np.maximum.accumulate(cells[..., 0], axis=2)
    table = Table(axes, cells.reshape(-1, 4), 0.0, Candidate())
    return with_optimum(table, landscape, plan)


def _axes(landscape: Landscape, plan: StudyPlan, grid: Grid) -> Axes:
    ranges = {p.flag: p.axis for p in plan.parameters}
    kv = [found.kv_tokens for flags in _sample(plan, 2000) if isinstance(found := start(landscape, flags), Started)]
    longest = longest_prompt(landscape)
    caps = [float(longest)] if longest <= 1500 else np.geomspace(256, longest, grid.caps).round().tolist()
    return (
        np.geomspace(*ranges["max-num-seqs"], grid.sequences).round().tolist(),
        np.geomspace(*ranges["max-num-batched-tokens"], grid.budgets).round(-1).tolist(),
        np.geomspace(min(kv), max(kv), grid.kv).round().tolist(),
        caps,
    )


def _sample(plan: StudyPlan, count: int) -> list[dict[str, Value]]:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        values = {p.flag: p.decode(_between(p.axis, rng.random(), "log" in p.kind)) for p in plan.parameters}
        found.append(plan.space.candidate(values, plan.given).as_dict())
    return found


def _between(axis: tuple[float, float], share: float, logarithmic: bool) -> float:
    low, high = axis
    return float(low * (high / low) ** share) if logarithmic else low + (high - low) * share


@dataclass(frozen=True, slots=True)
class Probe:
    """Result of one probe. `excess` is ln(P99 / limit)."""

    rate: float
    excess: float


class _Cell:
    """One node on the virtual stand-in. The traffic is the same at all nodes and all rates."""

    def __init__(self, landscape: Landscape, grid: Grid, seqs: int, budget: int, kv_tokens: int, cap: int) -> None:
        self._landscape = landscape
        self._grid = grid
        self._hardware = replace(landscape.hardware, memory_bytes=2**44)
        self._clients = min(int(1.25 * seqs), MOST_CLIENTS)
        length = max(share.prompt.high + share.output.high for share in landscape.shares) + TEMPLATE_TOKENS
        arguments = EngineArguments(
            max_num_seqs=seqs, max_num_batched_tokens=budget, max_model_len=length,
            long_prefill_token_threshold=0 if cap >= longest_prompt(landscape) else cap,
            tensor_parallel_size=landscape.tensor_parallel, pipeline_parallel_size=landscape.pipeline_parallel,
            enable_prefix_caching=False,
            num_gpu_blocks_override=max(kv_tokens, length + 16) // 16 + 1,
        )  # fmt: skip
        found = startup(arguments, self._hardware, landscape.shape)
        assert isinstance(found, Started), found
        self._started = found
        self.fullest = 0.0

    def point(self, share: float) -> tuple[float, float, float, float]:
        """Measure the numbers of a Point. The search starts at `share` of the saturation."""
        closed_s = self._grid.closed_s
        closed = ClosedLoop(_shapes(self._landscape, 3000), self._clients, closed_s, closed_s / 3)
        level = simulate(self._started, self._hardware, self._landscape.shape, closed)
        self.fullest = level.peak_kv_usage
        assert level.qps > 0, "the closed loop ended before its first answers"
        answered = level.done_s > 0
        answer_s = float((level.done_s - level.sent_s)[answered].mean())
        rate, usage = self._sustained(share * level.qps)
        return rate, level.qps, usage, answer_s

    def _sustained(self, first: float) -> tuple[float, float]:
        """Step out, then halve, until pass and fail enclose the answer.

        The answer is the zero of the line through ln(P99 / limit) over ln(rate). It is the middle if the failure was
        not lateness.
        """
        low, high, rate, step, usage = Probe(0.0, 0.0), Probe(math.inf, 0.0), first, STEP, 1.0
        while not high.rate < low.rate * (STEP if high.excess > 0 else PRECISION) and rate > 0.02 * first:
            kept, excess, peak = self._keeps(rate)
            if kept:
                low, usage = Probe(rate, excess), peak
            else:
                high = Probe(rate, excess)
            if low.rate and high.rate < math.inf:
                rate = math.sqrt(low.rate * high.rate)
            else:
                rate, step = (rate * step, step) if kept else (rate / step, step * 1.1)
        if not low.rate:
            return 0.0, usage
        share = -low.excess / (high.excess - low.excess) if high.excess > 0 else 0.5
        return low.rate * (high.rate / low.rate) ** share, usage

    def _keeps(self, rate: float) -> tuple[bool, float, float]:
        """Return (all limits kept, ln(P99 / limit), peak of the KV cache's usage) at a rate."""
        shortest_s, longest_s = self._grid.open_s
        seconds = min(max(shortest_s, self._grid.requests / rate), longest_s)
        due = schedule(rate, seconds, seed=0, trace="truth")
        load = OpenLoop(_shapes(self._landscape, len(due)), due)
        level = simulate(self._started, self._hardware, self._landscape.shape, load)
        self.fullest = max(self.fullest, level.peak_kv_usage)
        p99_s = float(np.percentile(level.first_token_s - level.sent_s, 99))
        excess = math.log(p99_s * 1000 / self._landscape.limit_ms)
        second_half = ((level.done_s > seconds / 2) & (level.done_s <= seconds)).sum()
        keeps_up = second_half >= 0.97 * (level.sent_s > seconds / 2).sum() - 3 * np.sqrt(len(due) / 2)
        return excess <= 0 and level.preemptions == 0 and bool(keeps_up), excess, level.peak_kv_usage


def _shapes(landscape: Landscape, count: int) -> list[Shape]:
    rng = random.Random("truth")
    weights = [share.weight for share in landscape.shares]
    shares = rng.choices(landscape.shares, weights, k=max(1, count))
    lengths = random.Random("lengths")
    return [
        Shape(lengths.randint(s.prompt.low, s.prompt.high), lengths.randint(s.output.low, s.output.high))
        for s in shares
    ]


def with_optimum(table: Table, landscape: Landscape, plan: StudyPlan) -> Table:
    """Find the best of the decoded space: dense in sequences, budget and cap, each with the most memory that starts.

    Both sides of every node are tried too: a surface that is linear between its nodes has its peaks there.
    """
    ranges = {p.flag: p for p in plan.parameters}
    budget, utilization = ranges["max-num-batched-tokens"], ranges["gpu-memory-utilization"]
    longest = longest_prompt(landscape)
    sequences = {round(n) for n in (*np.geomspace(*ranges["max-num-seqs"].axis, 33), *table.axes[0])}
    near = [node + side for node in table.axes[1] for side in (-budget.multiple_of / 2, budget.multiple_of / 2)]
    budgets = {budget.decode(n) for n in (*np.geomspace(*budget.axis, 25), *near)}
    best, optimum = Candidate(), 0.0
    for seqs, tokens, cap in product(sequences, budgets, ranges["long-prefill-token-threshold"].choices):
        for share in np.arange(utilization.high, utilization.low - 1e-9, -0.005):
            values: dict[str, Value] = {
                "max-num-seqs": seqs,
                "max-num-batched-tokens": tokens,
                "long-prefill-token-threshold": cap,
                "gpu-memory-utilization": round(float(share), 3),
            }
            candidate = plan.space.candidate(values, plan.given)
            found = start(landscape, candidate.as_dict())
            if isinstance(found, Started):
                rate = table.at(found, longest).rate
                best, optimum = (candidate, rate) if rate > optimum else (best, optimum)
                break
    return replace(table, optimum=optimum, best=best)


def share_refused(landscape: Landscape, plan: StudyPlan) -> float:
    return sum(isinstance(start(landscape, flags), Refused) for flags in _sample(plan, 2000)) / 2000
