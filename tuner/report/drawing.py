"""Traces, axes and figures of plotly in the report's look. The page (page.js) sets colours of text and grid."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import plotly.graph_objects as go

from tuner.formatting import compact, one_line

Coordinate = float | str | None
Trace: TypeAlias = Any
"""A go.Scatter or go.Bar: plotly publishes no types."""


def plain(text: str) -> str:
    """Escape text for a label: plotly reads tags and entities in labels."""
    return html.escape(one_line(text), quote=False)


class Style(NamedTuple):
    """A colour (3:1 on white and on the dark page) with a shape: plotly's symbol for points, dash for lines."""

    colour: str
    shape: str


class Point(NamedTuple):
    """A place with the text that a pointer over it shows: escaped lines, joined with <br>."""

    x: Coordinate
    y: Coordinate
    text: str = ""


class Strip(NamedTuple):
    """A narrow plot above the figure for points without figures. They may share the figure's x axis."""

    label: str
    shares_x: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of plotly's kind linear, log or category; `order` is that of the categories."""

    title: str
    kind: str = "linear"
    from_zero: bool = True
    high: float | None = None
    order: tuple[str, ...] = ()


def figure(x: Axis, y: Axis, traces: Sequence[Trace], strip: Strip | None = None) -> go.Figure:
    """Make a figure of traces. It carries no template: the page or the notebook decides on the theme."""
    own = [trace for trace in traces if trace.yaxis is None]
    layout: dict[str, object] = {
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "closest",
        "barmode": "overlay",
        "xaxis": _axis(x, [v for trace in own for v in _numbers(trace.x)]),
        "yaxis": _axis(y, [v for trace in own for v in _numbers(trace.y)]),
    }
    made = go.Figure(data=list(traces), layout=layout)
    made.layout.template = None
    if strip is not None:
        made.update_yaxes(domain=[0, 0.86])
        # A mark at 0 reaches beyond the axis: the label stands off from it.
        label = {"tickvals": [0], "ticktext": [plain(strip.label)], "ticklabelstandoff": 8, "automargin": True}
        made.layout.yaxis2 = {**label, "range": [-1, 1], "domain": [0.91, 1], **_BARE}
        made.layout.xaxis2 = {"anchor": "y2", "visible": False, "fixedrange": True}
    return made


_BARE = {"showgrid": False, "zeroline": False, "fixedrange": True}


def marks(points: Sequence[Point], name: str, look: Style, *, size: float = 9, legend: bool = True) -> go.Scatter:
    """Draw one mark per point."""
    return go.Scatter(_common(points, name, legend), mode="markers", marker=_marker(look.colour, look.shape, size))


def strip_marks(points: Sequence[Point], name: str, look: Style, strip: Strip) -> go.Scatter:
    """Draw one mark per point on the strip, whatever its y."""
    trace = marks([Point(point.x, 0, point.text) for point in points], name, look)
    return trace.update(cliponaxis=False, yaxis="y2", xaxis=None if strip.shares_x else "x2")


def line(
    points: Sequence[Point],
    name: str,
    look: Style,
    *,
    symbols: Sequence[str] = (),
    bounds: Sequence[tuple[float | None, float | None]] = (),
    steps: bool = False,
    legend: bool = True,
    width: float = 2,
) -> go.Scatter:
    """Draw a line with a gap where y is missing. `symbols` marks each point, `bounds` gives its low and high."""
    stroke = {"color": look.colour, "dash": look.shape, "width": width, "shape": "hv" if steps else "linear"}
    return go.Scatter(
        _common(points, name, legend),
        mode="markers" if symbols and len(points) == 1 else "lines+markers" if symbols else "lines",
        line=stroke,
        legendgroup=plain(name),
        marker=_marker(look.colour, list(symbols), 9) if symbols else None,
        error_y=_error_bars([point.y for point in points], bounds) if bounds else None,
    )


def limit(y: float, name: str, colour: str, across: Iterable[Trace]) -> go.Scatter:
    """Draw a dashed horizontal line over the width of the traces `across`."""
    end = max((v for trace in across if trace.yaxis is None for v in _numbers(trace.x)), default=1.0) * 1.05
    return line([Point(0, y), Point(end, y)], name, Style(colour, "dash"), width=1.5)


def bars(points: Sequence[Point], name: str, colour: str, *, bases: Sequence[float] = (), width: float = 0.7) -> go.Bar:
    """Draw horizontal bars: x is the length, from `bases` if given."""
    return go.Bar(
        _common(points, name, bool(name)),
        orientation="h",
        width=width,
        marker={"color": colour, "line": {"width": 0}},
        base=list(bases) or None,
    )


def _common(points: Sequence[Point], name: str, legend: bool) -> dict[str, object]:
    texts = [point.text for point in points]
    return {
        "x": [point.x for point in points],
        "y": [point.y for point in points],
        "name": plain(name),
        "showlegend": legend,
        "hovertext": texts,
        "hoverinfo": "text" if any(texts) else "skip",
    }


def _marker(colour: str, symbol: str | list[str], size: float) -> dict[str, object]:
    return {"color": colour, "symbol": symbol, "size": size, "line": {"width": 1.5, "color": colour}}


def _error_bars(values: Sequence[Coordinate], bounds: Sequence[tuple[float | None, float | None]]) -> dict[str, object]:
    def gap(one: Coordinate, other: Coordinate) -> float:
        return abs(one - other) if isinstance(one, (int, float)) and isinstance(other, (int, float)) else 0.0

    return {
        "type": "data",
        "symmetric": False,
        "array": [gap(value, high) for value, (_, high) in zip(values, bounds, strict=True)],
        "arrayminus": [gap(value, low) for value, (low, _) in zip(values, bounds, strict=True)],
        "thickness": 1,
        "width": 3,
    }


def _axis(axis: Axis, values: Sequence[float]) -> dict[str, object]:
    made: dict[str, object] = {"title": {"text": plain(axis.title)}, "type": axis.kind, "automargin": True}
    if axis.kind == "log":
        ticks = _one_two_five([v for v in values if v > 0])
        made |= {"tickvals": ticks, "ticktext": list(map(compact, ticks))}
    elif axis.order:
        made |= {"categoryorder": "array", "categoryarray": [plain(value) for value in axis.order]}
    elif axis.high is not None:
        made |= {"range": [0, axis.high]}
    elif axis.kind == "linear" and axis.from_zero:
        made |= {"rangemode": "tozero"}
    return made


def _one_two_five(values: Sequence[float]) -> list[float]:
    """List 1, 2, 5, 10, … around positive values: plotly's own ticks write 500 as a small 5."""
    if not values:
        return []
    low, high = min(values) / 2, max(values) * 2
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in (1, 2, 5) if low <= step * 10.0**power <= high]


def _numbers(values: Iterable[object] | None) -> list[float]:
    return [v for v in values or () if isinstance(v, (int, float))]
