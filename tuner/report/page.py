"""One self-contained HTML file from a study's files: no request leaves it, and nothing but its two scripts may run."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from tuner import formatting
from tuner.candidate import Candidate
from tuner.formatting import one_line
from tuner.jsonfile import write_atomically
from tuner.report import bottleneck, conditions, figures, parameters, summary, timeline
from tuner.report.drawing import Look
from tuner.report.quote import shell_line
from tuner.report.refusals import refused_rows
from tuner.report.tables import StudyFiles, TrialRow, best_so_far, level_rows, read_study, trial_rows
from tuner.report.translations import Language, Words
from tuner.slo import Metric
from tuner.study import confirm


class Drawing(NamedTuple):
    """A figure on the page: `json` is plotly's, safe inside a script element; `flat` ones are as high as they need."""

    id: str
    json: Markup
    label: str
    caption: str = ""
    flat: bool = False


def write_report(study_folder: Path, *, language: str = "en", gpu_price: float | None = None) -> Path:
    """Writes `study_folder`/report.html and returns its path. `gpu_price` is per GPU-hour, None leaves cost out."""
    path = study_folder / "report.html"
    write_atomically(path, report(read_study(study_folder), language=language, gpu_price=gpu_price).encode())
    return path


def report(study: StudyFiles, *, language: str = "en", gpu_price: float | None = None) -> str:
    words = Words(Language(language))
    rows = trial_rows(study)
    return render("page.html.j2", words, {**_top(study, words, gpu_price), **_body(study, rows, words)})


def render(template: str, words: Words, values: dict[str, object]) -> str:
    """A page of the frame layout.html.j2. The content security policy names the hashes of the scripts it inlines."""
    scripts = [_plotly_js(), _page_js()]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {hashes}"
    return (
        _templates()
        .get_template(template)
        .render(words=words, policy=policy, plotly_js=Markup(scripts[0]), page_js=Markup(scripts[1]), **values)
    )


def embedded(json: str) -> Markup:
    """JSON that cannot end the script element it stands in."""
    return Markup(json.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


@cache
def _plotly_js() -> str:
    """plotly.js's own "basic" bundle (npm's plotly.js-basic-dist-min), unchanged: a quarter of the whole library."""
    source = files("tuner.report").joinpath("plotly-basic.min.js").read_text(encoding="utf-8")
    # A browser hashes what it parsed: newlines normalised.
    return source.replace("\r\n", "\n").replace("</script", "<\\/script")


@cache
def _page_js() -> str:
    return files("tuner.report").joinpath("page.js").read_text(encoding="utf-8")


@cache
def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("tuner.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "line": one_line,
        "ms": formatting.ms,
        "significant": formatting.significant,
        "count_of": formatting.count,
        "bound": lambda limit: f"{limit:g}" if abs(limit) < 1e6 else formatting.count(limit),
    }
    return environment


def _top(study: StudyFiles, words: Words, gpu_price: float | None) -> dict[str, object]:
    winner, default = summary.side(study, study.winner), summary.side(study, study.default)
    first = winner or default
    second = default if winner is not None and not study.default_won else None
    launched = study.quoted(study.winner)
    lacking = study.result is not None and study.result.default is None
    lack = confirm.lack(study.records, study.plan.baseline) if lacking else None
    version = study.environment.tuner_version if study.environment else formatting.NOT_OBSERVED
    return {
        "study": study,
        "version": one_line(version),
        "sentence": summary.sentence(study, words),
        "launched": launched,
        "launch": shell_line(launched.launch) if launched else "",
        "flags": _flags(study, words),
        "summary": summary.summary_rows(first, second, words, gpu_price) if first else [],
        "first_name": words("default") if study.default_won or winner is None else words("winner"),
        "second_name": words("default") if second else "",
        "default_lack": words(f"lack-{lack}") if lack is not None and default is not None else "",
        "default_reasons": summary.default_reasons(study) or formatting.NOT_OBSERVED,
        "cautions": summary.caution_rows(study, words),
        "environment": conditions.environment_rows(study, words),
        "repeat": conditions.repeat_command(study),
    }


def _flags(study: StudyFiles, words: Words) -> list[summary.FlagRow]:
    winner, default = study.quoted(study.winner), study.quoted(study.default)
    if winner is None:
        return []
    beside = default.launch if default is not None and not study.default_won else None
    return summary.flag_rows(winner.launch, beside, words)


def _body(study: StudyFiles, rows: Sequence[TrialRow], words: Words) -> dict[str, object]:
    phases = timeline.phase_rows(study)
    spent = timeline.phase_shares(phases)
    slos = study.plan.slos
    winner = study.winner.candidate if study.winner else None
    best = against = night_drawing = None
    if rows:
        best = _drawing("best", figures.best_so_far(rows, best_so_far(rows), winner, words), words("best-title"))
        against = _drawing("against", figures.qps_against_ttft(rows, slos, winner, words), words("ttft-title"))
        night_drawing = _drawing("night", figures.timeline(phases, words), words("night-title"), flat=True)
    return {
        "rows": rows,
        "best": best,
        "against": against,
        "curves": _curves(study, words),
        **_why(study, winner, words),
        "telemetry": _telemetry(study, words),
        **_parameters(study, winner, words),
        "refused": refused_rows(study.records),
        "learnt": study.result.learnt if study.result else (),
        "night": night_drawing,
        "start_times": timeline.start_times(study, words),
        "flat_rem": 8 + 2 * len(study.plan.groups),
        "shares": ", ".join(f"{words(f'phase-{p}')} {formatting.share(s)}" for p, s in spent.items()),
    }


def _drawing(id: str, json: str, label: str, caption: str = "", *, flat: bool = False) -> Drawing:
    return Drawing(id, embedded(json), label, caption, flat)


def _candidates(study: StudyFiles, words: Words) -> list[tuple[str, Candidate, Look]]:
    """Winner and default by name, one of them where they are the same."""
    pairs = [("default", study.default, figures.DEFAULT)]
    if study.winner is not None and not study.default_won:
        pairs.insert(0, ("winner", study.winner, figures.WINNER))
    return [(words(key), found.candidate, look) for key, found, look in pairs if found is not None]


def _curves(study: StudyFiles, words: Words) -> list[Drawing]:
    named = [(name, level_rows(study, candidate), look) for name, candidate, look in _candidates(study, words)]
    curves = [figures.Curve(name, rows, look) for name, rows, look in named if rows]
    if not curves:
        return []
    drawn = []
    for key, metric in (("curve-qps", None), ("curve-ttft", Metric.TTFT)):
        json = figures.load_curve(curves, study.plan.slos, words, of=metric)
        drawn.append(_drawing(key, json, words(key), words(key)))
    return drawn


def _why(study: StudyFiles, winner: Candidate | None, words: Words) -> dict[str, object]:
    levels = bottleneck.levels_of(study, winner) if winner is not None else None
    if levels is None:
        return {"why": [], "why_headline": "", "why_levels": ""}
    rows = bottleneck.why_rows(levels, words)
    binding = bottleneck.binding(rows)
    headline = words("why-binds", limit=words(f"limit-{binding[0]}")) if binding else words("why-none")
    at = words.load(str(levels.at.load))
    beyond = words.load(str(levels.beyond.load)) if levels.beyond else words("none")
    return {"why": rows, "why_headline": headline, "why_levels": words("why-at", at=at, beyond=beyond)}


def _telemetry(study: StudyFiles, words: Words) -> list[Drawing]:
    lines: dict[str, list[figures.Line]] = {}
    for name, candidate, look in _candidates(study, words):
        starts = study.starts_of(candidate)
        # The start with the most levels shows the most; a fresh start repeats only the level that won.
        for record in sorted(starts, key=lambda r: (-len(r.levels), r.trial)):
            series = timeline.telemetry(study.folder / "trials" / f"{record.trial:04d}" / "telemetry.parquet")
            for one in series:
                lines.setdefault(one.channel, []).append(figures.Line(name, one, look))
            if series:
                break
    drawn = []
    for channel in (c.name for c in timeline.CHANNELS if c.name in lines):
        caption = words(f"channel-{channel}")
        drawn.append(_drawing(f"telemetry-{channel}", figures.telemetry(lines[channel], "", words), caption, caption))
    return drawn


def _parameters(study: StudyFiles, winner: Candidate | None, words: Words) -> dict[str, object]:
    rows = parameters.weight_rows(study)
    slices = parameters.slice_rows(study)
    values = winner.as_dict() if winner else {}
    drawn: list[Drawing] = []
    for parameter in study.plan.parameters:
        if points := slices[parameter.flag]:
            json = figures.slice_of(parameter, points, values.get(parameter.flag), words)
            drawn.append(_drawing(f"slice-{len(drawn)}", json, parameter.flag))
    weights = _drawing("weights", figures.weights(rows, words), words("weights-title"), flat=True) if rows else None
    feasible = max((len(points) for points in slices.values()), default=0)
    return {"weights": weights, "slices": drawn, "feasible": feasible, "enough": parameters.ENOUGH}
