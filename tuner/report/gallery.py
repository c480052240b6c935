"""Every figure of a study, by name: drawn on the page, and handed to notebooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import plotly.graph_objects as go
from markupsafe import Markup

from tuner.candidate import Candidate
from tuner.report import figures, parameters, timeline
from tuner.report.drawing import Style
from tuner.report.layouts import layout_rows
from tuner.report.tables import StudyFiles, best_so_far, level_rows, trial_rows
from tuner.report.translations import Words
from tuner.slo import Metric, Slo
from tuner.study.units import machine_units


class Section(StrEnum):
    """The part of the page that a figure belongs to."""

    LAYOUTS = "layouts"
    BEST = "best"
    AGAINST = "against"
    CURVES = "curves"
    TELEMETRY = "telemetry"
    WEIGHTS = "weights"
    SLICES = "slices"
    TIMELINE = "timeline"


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure on the page. `name` is its id, `label` its name for screen readers; a `flat` one is a few bars high."""

    name: str
    section: Section
    figure: go.Figure
    label: str
    caption: str = ""
    flat: bool = False

    @property
    def json(self) -> Markup:
        """The figure as JSON that cannot end the script element around it."""
        text = str(self.figure.to_json())
        return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def gallery(study: StudyFiles, words: Words) -> Mapping[Section, Sequence[Drawing]]:
    """Draw every figure that the study has data for, in the order of the page."""
    drawn: dict[Section, list[Drawing]] = {section: [] for section in Section}
    for make in (_layouts, _trials, _curves, _telemetry, _parameters):
        for drawing in make(study, words):
            drawn[drawing.section].append(drawing)
    return drawn


def curves_of(
    named: Sequence[figures.Curve], slos: Sequence[Slo], words: Words, *, of_machine: bool = False
) -> Iterator[Drawing]:
    """Draw QPS and P99 TTFT over the load for the curves that hold levels."""
    curves = [curve for curve in named if curve.rows]
    for name, metric in (("curve-qps", None), ("curve-ttft", Metric.TTFT)) if curves else ():
        made = figures.load_curve(curves, slos, words, of=metric, of_machine=of_machine)
        yield Drawing(name, Section.CURVES, made, words(name), words(name))


def _layouts(study: StudyFiles, words: Words) -> Iterator[Drawing]:
    rows = [row for row in layout_rows(study, words) if row.starts]
    if len(rows) > 1:
        yield Drawing("layouts", Section.LAYOUTS, figures.layouts(rows, words), words("layouts-title"), flat=True)


def _trials(study: StudyFiles, words: Words) -> Iterator[Drawing]:
    rows = trial_rows(study)
    if not rows:
        return
    winner, of_machine = study.winner.candidate if study.winner else None, study.has_replicas
    best = figures.best_so_far(rows, best_so_far(rows), winner, words, of_machine=of_machine)
    yield Drawing("best-so-far", Section.BEST, best, words("best-title"))
    against = figures.qps_against_ttft(rows, study.plan.slos, winner, words, of_machine=of_machine)
    yield Drawing("qps-against-ttft", Section.AGAINST, against, words("ttft-title"))
    phases = figures.timeline(timeline.phase_rows(study), machine_units(study.plan), words)
    yield Drawing("timeline", Section.TIMELINE, phases, words("timeline-title"), flat=True)


def _candidates(study: StudyFiles, words: Words) -> list[tuple[str, Candidate, Style]]:
    """List winner and default with their names, or the one that is both."""
    pairs = [("default", study.default, figures.DEFAULT)]
    if study.winner is not None and not study.default_won:
        pairs.insert(0, ("winner", study.winner, figures.WINNER))
    return [(words(key), found.candidate, look) for key, found, look in pairs if found is not None]


def _curves(study: StudyFiles, words: Words) -> Iterator[Drawing]:
    named = [figures.Curve(name, level_rows(study, who), look) for name, who, look in _candidates(study, words)]
    return curves_of(named, study.plan.slos, words, of_machine=study.has_replicas)


def _telemetry(study: StudyFiles, words: Words) -> Iterator[Drawing]:
    lines: dict[str, list[figures.Line]] = {}
    for name, candidate, look in _candidates(study, words):
        # A start of the whole machine shows all of its servers. Of several starts the one with the most levels shows
        # the most; a fresh start repeats only the level that won.
        for record in sorted(study.starts_of(candidate), key=lambda r: (r.replicas, -len(r.levels), r.trial)):
            series = timeline.telemetry(study.folder / "trials" / f"{record.trial:04d}" / "telemetry.parquet")
            for one in series:
                lines.setdefault(one.channel, []).append(figures.Line(name, one, look))
            if series:
                break
    for channel in (c.name for c in timeline.CHANNELS if c.name in lines):
        caption = words(f"channel-{channel}")
        made = figures.telemetry(lines[channel], "", words)
        yield Drawing(f"telemetry-{channel}", Section.TELEMETRY, made, caption, caption)


def _parameters(study: StudyFiles, words: Words) -> Iterator[Drawing]:
    if rows := parameters.weight_rows(study):
        yield Drawing("weights", Section.WEIGHTS, figures.weights(rows, words), words("weights-title"), flat=True)
    values = parameters.values_of(study.winner.candidate) if study.winner else {}
    slices = parameters.slice_rows(study)
    for parameter in parameters.searched(study.plan):
        if points := slices[parameter.flag]:
            winner = values.get(parameter.flag)
            made = figures.slice_of(parameter, points, winner, words, of_machine=study.has_replicas)
            yield Drawing(f"flag-{parameter.flag}", Section.SLICES, made, parameter.flag)
