"""Layouts of a study → rows: what each gave, and what became of it. All QPS are the whole machine's."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from tuner import formatting
from tuner.formatting import one_line
from tuner.layout import Layout, RuledOut
from tuner.report.tables import FAILED, StudyFiles, shown_level
from tuner.report.translations import Words
from tuner.study.layout_race import standing
from tuner.study.plan import StudyPlan
from tuner.study.result import LayoutStanding, WhyDropped


class LayoutState(StrEnum):
    """What became of a layout."""

    WINNER = "winner"
    SEARCHED = "searched"
    DROPPED = "dropped"
    DEFAULT = "default"
    RULED_OUT = "ruled-out"


class LayoutRow(NamedTuple):
    """One layout. Figures are None where nothing kept the limits, and for a layout that was not started. `starts` are
    those of the search."""

    layout: Layout
    state: LayoutState
    is_default: bool
    default_qps: float | None = None
    best_qps: float | None = None
    best_p99_ttft_ms: float | None = None
    starts: int = 0
    refused: int = 0
    remarks: tuple[str, ...] = ()


def layout_rows(study: StudyFiles, words: Words) -> list[LayoutRow]:
    """List the layouts in the plan's order, then those that were ruled out."""
    plan = study.plan
    found = study.result.layouts if study.result else ()
    rows = [_row(study, one, words) for one in found or standing(plan, study.records)]
    return [*rows, *(_ruled_out(plan, ruled_out) for ruled_out in plan.ruled_out)]


class DoorRow(NamedTuple):
    """What the winner's servers showed behind one door."""

    door: str
    rate: str
    saturation: str
    cost: str
    is_quoted: bool


def door_rows(study: StudyFiles, words: Words) -> list[DoorRow]:
    """List the doors that were measured, the preferred one first. Empty for a single server."""
    return [
        DoorRow(
            words(f"door-{one.door}"),
            formatting.qps(one.rate),
            formatting.qps(one.saturation),
            formatting.NOT_OBSERVED if one.cost is None else formatting.share(one.cost),
            one.is_quoted,
        )
        for one in (study.result.doors if study.result else ())
    ]


def door_words(study: StudyFiles, words: Words) -> str:
    """Say what the quoted door costs. Empty if that is not known."""
    quoted = next((one for one in (study.result.doors if study.result else ()) if one.is_quoted), None)
    if quoted is None or quoted.cost is None:
        return ""
    door = words(f"door-{quoted.door}")
    if round(quoted.cost, 2) <= 0:
        return words("door-costs-nothing", door=door)
    return words("door-costs", door=door, share=formatting.share(quoted.cost))


def layout_words(layout: Layout, words: Words) -> str:
    """Say what a layout is: its servers, and the GPUs of each."""
    key = "layout-server" if layout.replicas == 1 else "layout-servers"
    return words(key, n=layout.replicas, ranks=_ranks(layout))


def dropped_words(dropped: LayoutStanding, words: Words) -> str:
    """Say why the search goes on without a layout."""
    trials = ", ".join(map(str, dropped.dropped_by or ()))
    match dropped.why:
        case WhyDropped.BEHIND:
            best, leader = formatting.qps(dropped.best_qps), formatting.qps(dropped.leader_qps)
            return words("layout-behind", best=best, leader=dropped.leader, qps=leader, trials=trials)
        case WhyDropped.BREAKS_LIMITS:
            return words("layout-breaks-limits", leader=dropped.leader, trials=trials)
        case WhyDropped.DOES_NOT_START:
            return words("layout-does-not-start", leader=dropped.leader, trials=trials)
        case None:
            return ""


def _ranks(layout: Layout) -> str:
    parts = [f"TP {layout.tensor_parallel}"]
    if layout.pipeline_parallel > 1:
        parts.append(f"PP {layout.pipeline_parallel}")
    return " × ".join(parts)


def _row(study: StudyFiles, found: LayoutStanding, words: Words) -> LayoutRow:
    records = {r.trial: r for r in study.records}
    best = None if found.best_trial is None else shown_level(records[found.best_trial])
    ttft = best.measurement.ttft_ms if best is not None else None
    return LayoutRow(
        layout=found.layout,
        state=_state(study, found),
        is_default=found.layout == study.plan.own_layout,
        default_qps=found.default_qps,
        best_qps=found.best_qps,
        best_p99_ttft_ms=ttft.p99 if ttft is not None else None,
        starts=found.starts,
        refused=sum(records[trial].outcome in FAILED for trial in found.trials if trial in records),
        remarks=tuple(_remarks(study.plan, found, words)),
    )


def _state(study: StudyFiles, found: LayoutStanding) -> LayoutState:
    if study.winner is not None and study.plan.layout_of(study.winner.candidate) == found.layout:
        return LayoutState.WINNER
    if found.is_dropped:
        return LayoutState.DROPPED
    planned = {placed.layout for placed in study.plan.layouts}
    return LayoutState.SEARCHED if found.layout in planned else LayoutState.DEFAULT


def _remarks(plan: StudyPlan, found: LayoutStanding, words: Words) -> Iterator[str]:
    if found.is_dropped:
        yield dropped_words(found, words)
    if found.saved:
        yield words("layout-saved", n=found.saved)
    if found.kept is not None:
        yield words("layout-kept", share=formatting.share(found.kept))
    for placed in plan.layouts:
        if placed.layout == found.layout:
            yield from map(one_line, placed.cautions)


def _ruled_out(plan: StudyPlan, ruled_out: RuledOut) -> LayoutRow:
    is_default = ruled_out.layout == plan.own_layout
    return LayoutRow(ruled_out.layout, LayoutState.RULED_OUT, is_default, remarks=(one_line(ruled_out.why),))
