"""Rows of a study → plotly figures. Outcomes differ in symbol as well as in colour, candidates in dash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from tuner import formatting
from tuner.candidate import Candidate, Value
from tuner.layout import split_layout
from tuner.report.drawing import Axis, Point, Strip, Style, Trace, bars, figure, limit, line, marks, plain, strip_marks
from tuner.report.layouts import LayoutRow
from tuner.report.parameters import LAYOUT, SliceRow, WeightRow
from tuner.report.phrases import remark
from tuner.report.tables import BestRow, LevelRow, TrialRow
from tuner.report.timeline import PhaseRow, Series, TrialPhase
from tuner.report.translations import Words
from tuner.slo import Metric, Slo
from tuner.space.parameter import Kind, Parameter
from tuner.study.record import TrialOutcome

WINNER = Style("#2f7fd1", "solid")
DEFAULT = Style("#8a8a8a", "dot")
STAR = Style("#2f7fd1", "star")
LIMIT = "#d9542b"
OUTCOMES = {
    TrialOutcome.FEASIBLE: Style("#16916b", "circle"),
    TrialOutcome.INFEASIBLE: Style("#d9542b", "triangle-up-open"),
    TrialOutcome.UNDECIDED: Style("#b07d00", "diamond-open"),
    TrialOutcome.INVALID: Style("#808080", "square-open"),
    TrialOutcome.BEHIND: Style("#5b7fa3", "triangle-down-open"),
    TrialOutcome.REFUSED: Style("#b455a0", "x"),
    TrialOutcome.DIED: Style("#b455a0", "cross"),
    TrialOutcome.INFRASTRUCTURE: Style("#808080", "hexagon-open"),
    TrialOutcome.INTERRUPTED: Style("#808080", "line-ns-open"),
}
PHASES = {
    TrialPhase.START: ("#b07d00", 0.35),
    TrialPhase.WARM_UP: ("#d9542b", 0.5),
    TrialPhase.MEASURE: ("#16916b", 0.75),
    TrialPhase.WAIT: ("#5b7fa3", 0.5),
    TrialPhase.STOP: ("#808080", 0.35),
}


def best_so_far(
    rows: Sequence[TrialRow],
    best: Sequence[BestRow],
    winner: Candidate | None,
    words: Words,
    *,
    of_machine: bool = False,
) -> go.Figure:
    """Draw every start at the time when its outcome was known, and the best QPS so far as a line."""
    end_h = max((row.ended_h for row in rows), default=0.0)
    axis, scale = _time_axis(end_h, words)
    strip = Strip(words("no-figures"), shares_x=True)
    traces: list[Trace] = []
    if best:
        steps = [Point(b.hours * scale, b.qps) for b in best] + [Point(end_h * scale, best[-1].qps)]
        traces.append(line(steps, words("best-so-far"), WINNER, steps=True))
    for outcome, look in OUTCOMES.items():
        mine = [row for row in rows if row.outcome is outcome]
        name = f"{words(f'outcome-{outcome}')} ({len(mine)})"
        if drawn := [Point(row.ended_h * scale, row.qps, _about(row, words)) for row in mine if row.has_figures]:
            traces.append(marks(drawn, name, look))
        if apart := [Point(row.ended_h * scale, None, _about(row, words)) for row in mine if not row.has_figures]:
            traces.append(strip_marks(apart, name, look, strip))
    traces += _star([Point(r.ended_h * scale, r.qps) for r in rows if r.candidate == winner and r.has_figures], words)
    return figure(axis, qps_axis(words, of_machine=of_machine), traces, strip)


def qps_against_ttft(
    rows: Sequence[TrialRow], slos: Sequence[Slo], winner: Candidate | None, words: Words, *, of_machine: bool = False
) -> go.Figure:
    """Draw one mark per start: QPS and P99 TTFT of the level that stands for it."""
    strip = Strip(words("no-figures"))
    traces: list[Trace] = []
    for outcome, look in OUTCOMES.items():
        mine = [row for row in rows if row.outcome is outcome]
        name = f"{words(f'outcome-{outcome}')} ({len(mine)})"
        if drawn := [Point(row.qps, row.p99_ttft_ms, _about(row, words)) for row in mine if row.has_figures]:
            traces.append(marks(drawn, name, look))
        if apart := [Point(row.trial, None, _about(row, words)) for row in mine if not row.has_figures]:
            traces.append(strip_marks(apart, name, look, strip))
    traces += _star([Point(r.qps, r.p99_ttft_ms) for r in rows if r.candidate == winner and r.has_figures], words)
    traces += _limits(slos, traces)
    return figure(qps_axis(words, of_machine=of_machine), Axis(words("axis-p99"), "log"), traces, strip)


class Curve(NamedTuple):
    """The load levels of a candidate under a name such as "winner"."""

    name: str
    rows: Sequence[LevelRow]
    look: Style


def load_curve(
    curves: Sequence[Curve],
    slos: Sequence[Slo],
    words: Words,
    *,
    of: Metric | None = None,
    of_machine: bool = False,
) -> go.Figure:
    """Draw QPS, or P99 TTFT with its 95 % bounds, over the offered load. Each start is a line."""
    latency = of is Metric.TTFT
    traces: list[Trace] = []
    for curve in curves:
        by_start: dict[int, list[LevelRow]] = {}
        for row in curve.rows:
            by_start.setdefault(row.trial, []).append(row)
        for index, rows in enumerate(by_start.values()):
            made = line(
                [Point(r.level, r.p99_ttft_ms if latency else r.qps, _about_level(curve.name, r, words)) for r in rows],
                curve.name,
                curve.look,
                symbols=[OUTCOMES[row.outcome].shape for row in rows],
                bounds=[(row.p99_low_ms, row.p99_high_ms) for row in rows] if latency else (),
                legend=index == 0,
            )
            traces.append(made)
    traces += _limits(slos, traces) if latency else []
    y = Axis(words("axis-p99"), "log") if latency else qps_axis(words, of_machine=of_machine)
    return figure(Axis(words("axis-load-machine" if of_machine else "axis-load")), y, traces)


def weights(rows: Sequence[WeightRow], words: Words) -> go.Figure:
    """Draw a bar per flag: the share of the variance of QPS ranks that it explains."""
    points = []
    for row in reversed(rows):
        name = plain(_axis_name(row.flag, words))
        trend = "" if row.trend is None else f"<br>{plain(words('trend'))} {row.trend:+.2f}"
        about = f"{name}: {formatting.share(row.explained)}, {row.trials} {plain(words('trials'))}{trend}"
        points.append(Point(row.explained * 100, name, about))
    axis = Axis(words("axis-explained"), high=105)
    return figure(axis, Axis("", "category"), [bars(points, "", WINNER.colour)])


def layouts(rows: Sequence[LayoutRow], words: Words) -> go.Figure:
    """Draw the QPS of each layout's default and of its best as two bars."""
    started = [row for row in reversed(rows) if row.starts]
    traces: list[Trace] = []
    for key, colour, values in (
        ("layout-best-qps", WINNER.colour, [row.best_qps for row in started]),
        ("layout-default-qps", DEFAULT.colour, [row.default_qps for row in started]),
    ):
        texts = list(map(formatting.significant, values))
        names = [str(row.layout) for row in started]
        points = [
            Point(value, name, plain(f"{name}: {words(key)} {text}"))
            for value, name, text in zip(values, names, texts, strict=True)
        ]
        traces.append(bars(points, words(key), colour, width=0.36).update(text=texts, textposition="inside"))
    made = figure(qps_axis(words, of_machine=True), Axis("", "category"), traces)
    # The legend lists the bars from the top.
    made.update_layout(barmode="group", legend_traceorder="reversed")
    return made


def slice_of(
    parameter: Parameter, rows: Sequence[SliceRow], winner: Value | None, words: Words, *, of_machine: bool = False
) -> go.Figure:
    """Draw QPS over the values of one flag, of feasible measured trials only."""
    axis = _axis_name(parameter.flag, words)
    numeric = parameter.kind in (Kind.LOG_INT, Kind.INT, Kind.FLOAT)

    def said(value: Value) -> str:
        return words("on" if value else "off") if isinstance(value, bool) else str(value)

    def place(value: Value) -> float | str:
        return float(value) if numeric and not isinstance(value, str) else plain(said(value))

    points = []
    for row in rows:
        lines = (f"{words('trial')} {row.trial}", f"{axis} = {said(row.value)}", formatting.qps(row.qps))
        points.append(Point(place(row.value), row.qps, "<br>".join(map(plain, lines))))
    look = OUTCOMES[TrialOutcome.FEASIBLE]
    traces: list[Trace] = [marks(points, words("outcome-feasible"), look, size=7, legend=False)]
    best = max((row.qps for row in rows if row.value == winner), default=None)
    if winner is not None and best is not None:
        traces.append(marks([Point(place(winner), best)], words("winner"), STAR, size=15, legend=False))
    kind = "category" if not numeric else "log" if parameter.kind is Kind.LOG_INT else "linear"
    order = () if numeric else tuple(map(said, parameter.choices or (False, True)))
    x = Axis(axis, kind, from_zero=False, order=order)
    return figure(x, qps_axis(words, of_machine=of_machine), traces)


def _axis_name(flag: str, words: Words) -> str:
    return words("layout") if flag == LAYOUT else flag


def timeline(rows: Sequence[PhaseRow], units: Sequence[str], words: Words) -> go.Figure:
    """Draw a bar for every phase of every start, a row per GPU or worker. Idle time is the gap between bars."""
    axis, scale = _time_axis(max((row.began_h + row.length_h for row in rows), default=0.0), words)
    traces: list[Trace] = []
    for phase, (colour, width) in PHASES.items():
        mine = [row for row in rows if row.phase is phase]
        points = []
        for row in mine:
            outcome = f"<br>{plain(words(f'outcome-{row.outcome}'))}" if row.outcome else ""
            spent = f"{plain(words(f'phase-{phase}'))}, {formatting.duration(row.length_h * 3600)}"
            about = f"{plain(words('trial'))} {row.trial}: {spent}{outcome}"
            points.append(Point(row.length_h * scale, plain(row.unit), about))
        bases = [row.began_h * scale for row in mine]
        traces.append(bars(points, words(f"phase-{phase}"), colour, bases=bases, width=width))
    return figure(axis, Axis("", "category", order=tuple(reversed(units))), traces)


class Line(NamedTuple):
    """One telemetry channel of one server of a candidate."""

    name: str
    series: Series
    look: Style


def telemetry(lines: Sequence[Line], unit: str, words: Words) -> go.Figure:
    """Draw one telemetry channel over the seconds of a start, a line per candidate and server."""
    traces: list[Trace] = []
    for name in dict.fromkeys(one.name for one in lines):
        mine = [one for one in lines if one.name == name]
        title = name if len(mine) == 1 else words("name-servers", name=name, n=len(mine))
        for index, one in enumerate(mine):
            points = [Point(s, v) for s, v in zip(one.series.seconds, one.series.values, strict=True)]
            drawn = line(points, title, one.look, width=1.5, legend=index == 0)
            if len(mine) > 1:
                drawn.update(hovertext=plain(words("name-server", name=name, n=one.series.server)), hoverinfo="text")
            traces.append(drawn)
    return figure(Axis(words("axis-seconds")), Axis(unit), traces)


def qps_axis(words: Words, *, of_machine: bool) -> Axis:
    """Title the QPS axis. It says that figures are the whole machine's where that has several servers."""
    return Axis(words("axis-qps-machine" if of_machine else "axis-qps"))


def _time_axis(end_h: float, words: Words) -> tuple[Axis, float]:
    """Choose hours or, for a study of at most two, minutes; the factor scales hours to it."""
    return (Axis(words("axis-hours")), 1) if end_h > 2 else (Axis(words("axis-minutes")), 60)


def _star(points: Sequence[Point], words: Words) -> list[Trace]:
    return [marks(points, words("winner"), STAR, size=15)] if points else []


def _limits(slos: Sequence[Slo], across: Sequence[Trace]) -> list[Trace]:
    return [
        limit(slo.limit_ms, f"P99 TTFT ≤ {formatting.ms(slo.limit_ms)}", LIMIT, across)
        for slo in slos
        if slo.metric is Metric.TTFT and slo.quantile == 0.99
    ]


def _about(row: TrialRow, words: Words) -> str:
    lines = [f"{words('trial')} {row.trial}: {words(f'outcome-{row.outcome}')}"]
    if row.has_figures:
        load = words.load(row.load, row.record.replicas)
        lines.append(f"{formatting.qps(row.qps)} ({load}), P99 TTFT {formatting.ms(row.p99_ttft_ms)}")
    lines += [said[:160]] if (said := remark(row, words)) else []
    layout, flags = split_layout(row.candidate.as_dict())
    lines += [f"{words('layout')} {layout}"] if layout is not None else []
    lines += [f"{flag} = {value}" for flag, value in flags.items()] or [words("vllm-default")]
    return "<br>".join(map(plain, lines))


def _about_level(name: str, row: LevelRow, words: Words) -> str:
    lines = (
        f"{name}, {words('trial')} {row.trial}: {words(f'outcome-{row.outcome}')}",
        f"{formatting.qps(row.qps)}, P99 TTFT {formatting.ms(row.p99_ttft_ms)}",
        f"{words('preemptions')}: {formatting.count(row.preemptions)}",
    )
    return "<br>".join(map(plain, lines))
