"""One figure as plotly's JSON: points, lines, bars and limits. Text and grid colours come from the page (page.js)."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tuner.formatting import compact, one_line

Coordinate = float | str | None


def plain(text: str) -> str:
    """Text from outside as a label: plotly reads tags and entities in labels."""
    return html.escape(one_line(text), quote=False)


class Look(NamedTuple):
    """A colour (3:1 on white and on the dark page) with a shape: plotly's symbol for points, dash for lines."""

    colour: str
    shape: str


class Point(NamedTuple):
    """`text` appears when the pointer is over it; lines of it are joined with <br>, everything else is escaped."""

    x: Coordinate
    y: Coordinate
    text: str = ""


@dataclass(frozen=True, slots=True)
class Axis:
    """`kind` is plotly's: linear, log or category; `order` is that of a category axis."""

    title: str
    kind: str = "linear"
    from_zero: bool = True
    high: float | None = None
    order: tuple[str, ...] = ()


@dataclass
class Figure:
    """`floor` is the label of a strip on top for what has no figures, None without one.

    `floor_shares_x` puts the strip's points on the figure's own x axis.
    """

    x: Axis
    y: Axis
    floor: str | None = None
    floor_shares_x: bool = False
    traces: list[dict[str, object]] = field(default_factory=list)

    def points(self, points: Sequence[Point], name: str, look: Look, *, size: float = 9, legend: bool = True) -> None:
        self._add(points, name, legend, mode="markers", marker=_marker(look.colour, look.shape, size))

    def on_floor(self, points: Sequence[Point], name: str, look: Look) -> None:
        placed = [Point(point.x, 0, point.text) for point in points]
        marker = _marker(look.colour, look.shape, 9)
        self._add(placed, name, True, mode="markers", marker=marker, cliponaxis=False)
        self.traces[-1] |= {"yaxis": "y2"} if self.floor_shares_x else {"xaxis": "x2", "yaxis": "y2"}

    def line(
        self,
        points: Sequence[Point],
        name: str,
        look: Look,
        *,
        symbols: Sequence[str] = (),
        bounds: Sequence[tuple[float | None, float | None]] = (),
        steps: bool = False,
        legend: bool = True,
        width: float = 2,
    ) -> None:
        """`symbols` marks each point, `bounds` draws each point's low and high; a missing y is a gap."""
        mode = "markers" if symbols and len(points) == 1 else "lines+markers" if symbols else "lines"
        line = {"color": look.colour, "dash": look.shape, "width": width, "shape": "hv" if steps else "linear"}
        self._add(points, name, legend, mode=mode, line=line, legendgroup=name)
        if symbols:
            self.traces[-1]["marker"] = _marker(look.colour, list(symbols), 9)
        if bounds:
            self.traces[-1]["error_y"] = _error_bars([point.y for point in points], bounds)

    def bars(
        self, points: Sequence[Point], name: str, colour: str, *, bases: Sequence[float] = (), width: float = 0.7
    ) -> None:
        """Horizontal bars: x is the length, from `bases` where given."""
        self._add(points, name, bool(name), type="bar", orientation="h", width=width)
        self.traces[-1] |= {"marker": {"color": colour, "line": {"width": 0}}}
        if bases:
            self.traces[-1]["base"] = list(bases)

    def limit(self, y: float, name: str, colour: str) -> None:
        """A dashed line across everything that is drawn so far."""
        end = max(self._values("x"), default=1.0) * 1.05
        self.line([Point(0, y), Point(end, y)], name, Look(colour, "dash"), width=1.5)

    def json(self) -> str:
        layout: dict[str, object] = {
            "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
            "hovermode": "closest",
            "barmode": "overlay",
            "xaxis": _axis(self.x, self._values("x")),
            "yaxis": _axis(self.y, self._values("y")),
        }
        if self.floor is not None:
            layout["yaxis"] = {**_axis(self.y, self._values("y")), "domain": [0, 0.86]}
            strip = {"tickvals": [0], "ticktext": [plain(self.floor)], "range": [-1, 1], "showgrid": False}
            strip |= {"ticklabelstandoff": 8}  # a mark at 0 reaches beyond the axis
            layout["yaxis2"] = {**strip, "domain": [0.91, 1], "zeroline": False, "fixedrange": True, "automargin": True}
            layout["xaxis2"] = {"anchor": "y2", "visible": False, "fixedrange": True}
        return json.dumps({"data": self.traces, "layout": layout}, allow_nan=False)

    def _values(self, axis: str) -> list[float]:
        """Numbers on the figure's own axis, those of the floor left out."""
        return [v for trace in self.traces if "yaxis" not in trace for v in _numbers(trace[axis])]

    def _add(self, points: Sequence[Point], name: str, legend: bool, **rest: object) -> None:
        texts = [point.text for point in points]
        self.traces.append(
            {
                "type": "scatter",
                "x": [point.x for point in points],
                "y": [point.y for point in points],
                "name": plain(name),
                "showlegend": legend,
                "hovertext": texts,
                "hoverinfo": "text" if any(texts) else "skip",
                **rest,
            }
        )


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
    """1, 2, 5, 10, … around positive values: plotly writes 500 as a small 5."""
    if not values:
        return []
    low, high = min(values) / 2, max(values) * 2
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in (1, 2, 5) if low <= step * 10.0**power <= high]


def _numbers(values: object) -> list[float]:
    return [v for v in values if isinstance(v, (int, float))] if isinstance(values, list) else []
