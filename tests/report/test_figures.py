"""Figures hold what the tables hold."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import plotly.graph_objects as go
import pytest

from tuner.report import figures, parameters, timeline
from tuner.report.drawing import Axis, Point, Style, figure, marks, plain
from tuner.report.gallery import gallery
from tuner.report.tables import StudyFiles, best_so_far, level_rows, trial_rows
from tuner.report.translations import Words
from tuner.slo import Metric
from tuner.study.record import TrialOutcome
from tuner.study.units import machine_units


def every_figure(files: StudyFiles, words: Words) -> Iterator[tuple[str, go.Figure]]:
    rows = trial_rows(files)
    winner = files.winner.candidate if files.winner else None
    yield "best", figures.best_so_far(rows, best_so_far(rows), winner, words)
    yield "against", figures.qps_against_ttft(rows, files.plan.slos, winner, words)
    if winner is not None:
        curves = [figures.Curve("winner", level_rows(files, winner), figures.WINNER)]
        yield "curve-qps", figures.load_curve(curves, files.plan.slos, words)
        yield "curve-ttft", figures.load_curve(curves, files.plan.slos, words, of=Metric.TTFT)
    yield "weights", figures.weights(parameters.weight_rows(files), words)
    for parameter in parameters.searched(files.plan):
        points = parameters.slice_rows(files)[parameter.flag]
        value = parameters.values_of(winner).get(parameter.flag) if winner else None
        yield f"slice-{parameter.flag}", figures.slice_of(parameter, points, value, words)
    yield "timeline", figures.timeline(timeline.phase_rows(files), machine_units(files.plan), words)


def test_every_figure_is_plotlys_own(files: StudyFiles, words: Words) -> None:
    seen = [name for name, made in every_figure(files, words) if isinstance(made, go.Figure) and made.data]
    assert len(seen) == 6 + len(parameters.searched(files.plan))


def test_the_page_and_notebooks_get_the_same_figures(files: StudyFiles, words: Words) -> None:
    drawn = {d.name: d.figure for drawings in gallery(files, words).values() for d in drawings}
    assert {"best-so-far", "qps-against-ttft", "curve-qps", "curve-ttft", "weights", "timeline"} <= set(drawn)
    assert {f"flag-{p.flag}" for p in parameters.searched(files.plan)} <= set(drawn)
    assert sum(name.startswith("telemetry-") for name in drawn) >= 8
    assert dict(every_figure(files, words))["timeline"] == drawn["timeline"]


def test_every_start_is_drawn_once_and_only_measured_ones_have_a_place(files: StudyFiles, words: Words) -> None:
    rows = trial_rows(files)
    for made in (figures.best_so_far(rows, [], None, words), figures.qps_against_ttft(rows, (), None, words)):
        placed = sum(len(t.x) for t in made.data if t.yaxis is None)
        floor = sum(len(t.x) for t in made.data if t.yaxis == "y2")
        refused = sum(row.outcome is TrialOutcome.REFUSED for row in rows)
        assert (placed, floor) == (len(rows) - refused, refused)


def test_a_short_study_is_drawn_in_minutes_and_a_long_one_in_hours(files: StudyFiles, words: Words) -> None:
    rows, phases = trial_rows(files), timeline.phase_rows(files)
    early = [row for row in rows if row.ended_h < 0.5]
    for made, end_h in (
        (figures.best_so_far(rows, best_so_far(rows), None, words), rows[-1].ended_h),
        (figures.timeline(phases, (), words), phases[-1].began_h),
    ):
        assert end_h > 2
        assert made.layout.xaxis.title.text == "hours since the first start"
    short = figures.best_so_far(early, best_so_far(early), None, words)
    assert short.layout.xaxis.title.text == "minutes since the first start"
    assert max(short.data[0].x) == pytest.approx(60 * max(row.ended_h for row in early))


def test_outcomes_differ_in_shape_as_well_as_in_colour() -> None:
    shapes = [look.shape for look in figures.OUTCOMES.values()]
    assert len(set(shapes)) == len(shapes) == len(TrialOutcome)
    assert figures.WINNER.shape != figures.DEFAULT.shape
    widths = {phase: width for phase, (_, width) in figures.PHASES.items()}
    assert widths[timeline.TrialPhase.MEASURE] > widths[timeline.TrialPhase.WARM_UP] > widths[timeline.TrialPhase.START]


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", ["#ffffff", "#14171a"])
def test_colours_stand_out_from_the_page(page: str) -> None:
    looks = [*figures.OUTCOMES.values(), figures.WINNER, figures.DEFAULT, figures.STAR]
    colours = {look.colour for look in looks} | {figures.LIMIT} | {colour for colour, _ in figures.PHASES.values()}
    for colour in colours:
        light, dark = sorted((_luminance(colour), _luminance(page)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, colour


def test_the_limit_is_drawn_where_it_is(files: StudyFiles, words: Words) -> None:
    made = figures.qps_against_ttft(trial_rows(files), files.plan.slos, None, words)
    assert [t.y for t in made.data if t.name == "P99 TTFT ≤ 500 ms"] == [(500.0, 500.0)]


def test_labels_hold_no_markup() -> None:
    assert plain("<b>x</b>\n<a href='x'>") == "&lt;b&gt;x&lt;/b&gt; &lt;a href='x'&gt;"


def test_a_log_axis_has_round_ticks() -> None:
    points = marks([Point(1, 180.0), Point(2, 2100.0)], "n", Style("#000000", "circle"))
    made = figure(Axis("x"), Axis("y", "log"), [points])
    assert made.layout.yaxis.ticktext == ("100", "200", "500", "1,000", "2,000")


def test_a_figure_without_points_is_still_one(words: Words) -> None:
    for made in (figures.best_so_far([], [], None, words), figures.weights([], words), figures.timeline([], (), words)):
        assert not [t for t in made.data if t.x] and made.to_json()


def test_plotly_is_imported_only_when_a_page_is_made() -> None:
    script = "import sys, tuner.cli.app, tuner.cli.search, tuner.cli.status; print('plotly' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "False\n"
