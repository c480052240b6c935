"""Named tuples → figures as plotly's JSON: scatter and bar traces alone, which is all that plotly-basic.min.js draws.

Nothing is told by colour alone: every outcome has its own symbol, every candidate its own dash.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tuner import formatting
from tuner.candidate import Candidate, Value
from tuner.report.drawing import Axis, Figure, Look, Point, plain
from tuner.report.parameters import SliceRow, WeightRow
from tuner.report.tables import BestRow, LevelRow, TrialRow
from tuner.report.timeline import Phase, PhaseRow, Series
from tuner.report.translations import Words
from tuner.slo import Metric, Slo
from tuner.space.parameter import Kind, Parameter
from tuner.study.record import TrialOutcome

WINNER = Look("#2f7fd1", "solid")
DEFAULT = Look("#8a8a8a", "dot")
STAR = Look("#2f7fd1", "star")
LIMIT = "#d9542b"
OUTCOMES = {
    TrialOutcome.FEASIBLE: Look("#16916b", "circle"),
    TrialOutcome.INFEASIBLE: Look("#d9542b", "triangle-up-open"),
    TrialOutcome.UNDECIDED: Look("#b07d00", "diamond-open"),
    TrialOutcome.INVALID: Look("#808080", "square-open"),
    TrialOutcome.BEHIND: Look("#5b7fa3", "triangle-down-open"),
    TrialOutcome.REFUSED: Look("#b455a0", "x"),
    TrialOutcome.DIED: Look("#b455a0", "cross"),
    TrialOutcome.INFRASTRUCTURE: Look("#808080", "hexagon-open"),
    TrialOutcome.INTERRUPTED: Look("#808080", "line-ns-open"),
}
PHASES = {
    Phase.START: ("#b07d00", 0.35),
    Phase.WARM_UP: ("#d9542b", 0.5),
    Phase.MEASURE: ("#16916b", 0.75),
    Phase.STOP: ("#808080", 0.35),
}


def best_so_far(rows: Sequence[TrialRow], best: Sequence[BestRow], winner: Candidate | None, words: Words) -> str:
    end_h = max((row.ended_h for row in rows), default=0.0)
    axis, scale = _time_axis(end_h, words)
    figure = Figure(axis, Axis(words("axis-qps")), words("no-figures"), floor_shares_x=True)
    if best:
        steps = [Point(b.hours * scale, b.qps) for b in best] + [Point(end_h * scale, best[-1].qps)]
        figure.line(steps, words("best-so-far"), WINNER, steps=True)
    for outcome, look in OUTCOMES.items():
        mine = [row for row in rows if row.outcome is outcome]
        name = f"{words(f'outcome-{outcome}')} ({len(mine)})"
        if drawn := [Point(row.ended_h * scale, row.qps, _about(row, words)) for row in mine if row.has_figures]:
            figure.points(drawn, name, look)
        if apart := [Point(row.ended_h * scale, None, _about(row, words)) for row in mine if not row.has_figures]:
            figure.on_floor(apart, name, look)
    _star(figure, [Point(r.ended_h * scale, r.qps) for r in rows if r.candidate == winner and r.has_figures], words)
    return figure.json()


def qps_against_ttft(rows: Sequence[TrialRow], slos: Sequence[Slo], winner: Candidate | None, words: Words) -> str:
    figure = Figure(Axis(words("axis-qps")), Axis(words("axis-p99"), "log"), words("no-figures"))
    for outcome, look in OUTCOMES.items():
        mine = [row for row in rows if row.outcome is outcome]
        name = f"{words(f'outcome-{outcome}')} ({len(mine)})"
        if drawn := [Point(row.qps, row.p99_ttft_ms, _about(row, words)) for row in mine if row.has_figures]:
            figure.points(drawn, name, look)
        if apart := [Point(row.trial, None, _about(row, words)) for row in mine if not row.has_figures]:
            figure.on_floor(apart, name, look)
    _star(figure, [Point(r.qps, r.p99_ttft_ms) for r in rows if r.candidate == winner and r.has_figures], words)
    _limits(figure, slos)
    return figure.json()


class Curve(NamedTuple):
    """A candidate's load levels under a name such as "winner"."""

    name: str
    rows: Sequence[LevelRow]
    look: Look


def load_curve(curves: Sequence[Curve], slos: Sequence[Slo], words: Words, *, of: Metric | None = None) -> str:
    """QPS over the offered load, or P99 TTFT with its 95 % bounds: a line for each start, points for single levels."""
    latency = of is Metric.TTFT
    y = Axis(words("axis-p99"), "log") if latency else Axis(words("axis-qps"))
    figure = Figure(Axis(words("axis-load")), y)
    for curve in curves:
        by_start: dict[int, list[LevelRow]] = {}
        for row in curve.rows:
            by_start.setdefault(row.trial, []).append(row)
        for index, rows in enumerate(by_start.values()):
            figure.line(
                [Point(r.level, r.p99_ttft_ms if latency else r.qps, _about_level(curve.name, r, words)) for r in rows],
                curve.name,
                curve.look,
                symbols=[OUTCOMES[row.outcome].shape for row in rows],
                bounds=[(row.p99_low_ms, row.p99_high_ms) for row in rows] if latency else (),
                legend=index == 0,
            )
    if latency:
        _limits(figure, slos)
    return figure.json()


def weights(rows: Sequence[WeightRow], words: Words) -> str:
    figure = Figure(Axis(words("axis-explained"), high=105), Axis("", "category"))
    points = []
    for row in reversed(rows):
        trend = "" if row.trend is None else f"<br>{plain(words('trend'))} {row.trend:+.2f}"
        about = f"{plain(row.flag)}: {formatting.share(row.explained)}, {row.trials} {plain(words('trials'))}{trend}"
        points.append(Point(row.explained * 100, plain(row.flag), about))
    figure.bars(points, "", WINNER.colour)
    return figure.json()


def slice_of(parameter: Parameter, rows: Sequence[SliceRow], winner: Value | None, words: Words) -> str:
    """QPS over one flag's value: feasible measured trials only."""
    numeric = parameter.kind in (Kind.LOG_INT, Kind.INT, Kind.FLOAT)

    def said(value: Value) -> str:
        return words("on" if value else "off") if isinstance(value, bool) else str(value)

    def place(value: Value) -> float | str:
        return float(value) if numeric and not isinstance(value, str) else plain(said(value))

    kind = "category" if not numeric else "log" if parameter.kind is Kind.LOG_INT else "linear"
    order = () if numeric else tuple(map(said, parameter.choices or (False, True)))
    figure = Figure(Axis(parameter.flag, kind, from_zero=False, order=order), Axis(words("axis-qps")))
    points = []
    for row in rows:
        lines = (f"{words('trial')} {row.trial}", f"{row.flag} = {said(row.value)}", formatting.qps(row.qps))
        points.append(Point(place(row.value), row.qps, "<br>".join(map(plain, lines))))
    figure.points(points, words("outcome-feasible"), OUTCOMES[TrialOutcome.FEASIBLE], size=7, legend=False)
    best = max((row.qps for row in rows if row.value == winner), default=None)
    if winner is not None and best is not None:
        figure.points([Point(place(winner), best)], words("winner"), STAR, size=15, legend=False)
    return figure.json()


def timeline(rows: Sequence[PhaseRow], words: Words) -> str:
    """A bar for every phase of every start, a row for each GPU group; idle time is the gap between bars."""
    axis, scale = _time_axis(max((row.began_h + row.length_h for row in rows), default=0.0), words)
    figure = Figure(axis, Axis("", "category"))
    for phase, (colour, width) in PHASES.items():
        mine = [row for row in rows if row.phase is phase]
        points = []
        for row in mine:
            outcome = f"<br>{plain(words(f'outcome-{row.outcome}'))}" if row.outcome else ""
            spent = f"{plain(words(f'phase-{phase}'))}, {formatting.duration(row.length_h * 3600)}"
            about = f"{plain(words('trial'))} {row.trial}: {spent}{outcome}"
            points.append(Point(row.length_h * scale, plain(row.group), about))
        bases = [row.began_h * scale for row in mine]
        figure.bars(points, words(f"phase-{phase}"), colour, bases=bases, width=width)
    return figure.json()


class Line(NamedTuple):
    """One candidate's telemetry of one channel."""

    name: str
    series: Series
    look: Look


def telemetry(lines: Sequence[Line], unit: str, words: Words) -> str:
    figure = Figure(Axis(words("axis-seconds")), Axis(unit))
    for line in lines:
        points = [Point(s, v) for s, v in zip(line.series.seconds, line.series.values, strict=True)]
        figure.line(points, line.name, line.look, width=1.5)
    return figure.json()


def _time_axis(end_h: float, words: Words) -> tuple[Axis, float]:
    """The axis of a night that ends after `end_h` hours, and what an hour is on it: minutes where it is a short one."""
    return (Axis(words("axis-hours")), 1) if end_h > 2 else (Axis(words("axis-minutes")), 60)


def _star(figure: Figure, points: Sequence[Point], words: Words) -> None:
    if points:
        figure.points(points, words("winner"), STAR, size=15)


def _limits(figure: Figure, slos: Sequence[Slo]) -> None:
    for slo in slos:
        if slo.metric is Metric.TTFT and slo.quantile == 0.99:
            figure.limit(slo.limit_ms, f"P99 TTFT ≤ {formatting.ms(slo.limit_ms)}", LIMIT)


def _about(row: TrialRow, words: Words) -> str:
    lines = [f"{words('trial')} {row.trial}: {words(f'outcome-{row.outcome}')}"]
    if row.has_figures:
        lines.append(
            f"{formatting.qps(row.qps)} ({words.load(row.load or '')}), P99 TTFT {formatting.ms(row.p99_ttft_ms)}"
        )
    lines += [row.words[:160]] if row.words else []
    lines += [f"{flag} = {value}" for flag, value in row.candidate.values] or [words("vllm-default")]
    return "<br>".join(map(plain, lines))


def _about_level(name: str, row: LevelRow, words: Words) -> str:
    lines = (
        f"{name}, {words('trial')} {row.trial}: {words(f'outcome-{row.outcome}')}",
        f"{formatting.qps(row.qps)}, P99 TTFT {formatting.ms(row.p99_ttft_ms)}",
        f"{words('preemptions')}: {formatting.count(row.preemptions)}",
    )
    return "<br>".join(map(plain, lines))
