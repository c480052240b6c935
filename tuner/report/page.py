"""Study files → one self-contained HTML file. It sends no request, and only its two scripts may run."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from tuner import formatting
from tuner.formatting import one_line
from tuner.jsonfile import write_atomically
from tuner.launch import Deployment, Door
from tuner.report import bottleneck, conditions, parameters, summary, timeline
from tuner.report.gallery import gallery
from tuner.report.layouts import door_rows, door_words, layout_rows, layout_words
from tuner.report.phrases import candidate_line, remark, sentence
from tuner.report.quote import PORT, production, server_ports, shell_lines
from tuner.report.refusals import refused_rows
from tuner.report.tables import StudyFiles, read_study, trial_rows
from tuner.report.translations import Language, Words
from tuner.study import confirm
from tuner.study.record import TrialRecord
from tuner.study.units import machine_units


def write_report(study_folder: Path, *, language: str = "en", gpu_price: float | None = None) -> Path:
    """Write report.html into the study's folder and return its path. `gpu_price` is per GPU-hour, None without cost."""
    path = study_folder / "report.html"
    write_atomically(
        path, report(read_study(study_folder), language=language, gpu_price=gpu_price).encode(errors="replace")
    )
    return path


def report(study: StudyFiles, *, language: str = "en", gpu_price: float | None = None) -> str:
    """Render the report of a study as HTML. Cost is left out if `gpu_price` is None."""
    words = Words(Language(language))
    return render("page.html.j2", words, {**_top(study, words, gpu_price), **_body(study, words)})


def render(template: str, words: Words, values: dict[str, object]) -> str:
    """Render a template of the frame layout.html.j2. The content security policy allows its inlined scripts by hash."""
    scripts = [_plotly_js(), _page_js()]
    hashes = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src {hashes}"
    return (
        _templates()
        .get_template(template)
        .render(words=words, policy=policy, plotly_js=Markup(scripts[0]), page_js=Markup(scripts[1]), **values)
    )


@cache
def _plotly_js() -> str:
    """Read plotly.js as the plotly package ships it: the version that its figures are made for."""
    source: str = get_plotlyjs()
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
    machine = production(launched, study.plan) if launched else None
    launches = shell_lines(machine.specs) if machine else ()
    lacking = study.result is not None and study.result.default is None
    lack = confirm.lack(study.records, study.plan.baseline) if lacking else None
    version = study.environment.tuner_version if study.environment else formatting.NOT_OBSERVED
    return {
        "study": study,
        "version": one_line(version),
        "sentence": sentence(study, words),
        "launched": launched,
        "launch": launches[0] if launches else "",
        "other_launches": launches[1:],
        "launch_note": _launch_note(launched, machine, words) if launched and machine else "",
        "accepts": formatting.count(winner.accepts) if winner and winner.accepts else "",
        "flags": _flags(study, words),
        "summary": [
            *summary.summary_rows(first, second, words, gpu_price),
            *summary.gain_rows(study.result.gain if study.result else None, words),
            *summary.length_rows(study, words),
        ]
        if first
        else [],
        "first_name": words("default") if study.default_won or winner is None else words("winner"),
        "second_name": words("default") if second else "",
        "default_lack": words(f"lack-{lack}") if lack is not None and default is not None else "",
        "default_reasons": summary.default_reasons(study, words) or formatting.NOT_OBSERVED,
        "cautions": summary.caution_rows(study, words),
        "environment": conditions.environment_rows(study, words),
        "repeat": conditions.repeat_command(study),
    }


def _launch_note(launched: TrialRecord, machine: Deployment, words: Words) -> str:
    """Say what the commands start, and how to start it with one word."""
    if machine.door is Door.NGINX:
        ports = server_ports(len(machine.specs))
        return words("launch-note-nginx", n=len(ports), first=ports[0], last=ports[-1], port=PORT)
    key = "launch-note-vllm" if machine.door is Door.VLLM else "launch-note"
    return words(key, trial=launched.trial)


def _flags(study: StudyFiles, words: Words) -> list[summary.FlagRow]:
    winner, default = study.quoted(study.winner), study.quoted(study.default)
    if winner is None:
        return []
    beside = (study, default) if default is not None and not study.default_won else None
    return summary.launch_rows((study, winner), beside, words)


def _body(study: StudyFiles, words: Words) -> dict[str, object]:
    spent = timeline.phase_shares(timeline.phase_rows(study))
    slices = parameters.slice_rows(study)
    return {
        "rows": trial_rows(study),
        "layouts": layout_rows(study, words) if study.plan.searches_layouts or study.plan.ruled_out else [],
        "layouts_one": _one_layout(study, words),
        "layout_words": layout_words,
        "doors": door_rows(study, words),
        "door_costs": door_words(study, words),
        "remark": remark,
        "candidate_line": candidate_line,
        "drawn": gallery(study, words),
        **_why(study, words),
        "feasible": max((len(points) for points in slices.values()), default=0),
        "enough": parameters.ENOUGH,
        "refused": refused_rows(study.records),
        "learnt": study.result.learnt if study.result else (),
        "start_times": timeline.start_times(study, words),
        "flat_rem": 8 + 2 * len(machine_units(study.plan)),
        "shares": ", ".join(f"{words(f'phase-{p}')} {formatting.share(s)}" for p, s in spent.items()),
    }


def _one_layout(study: StudyFiles, words: Words) -> str:
    """Say what the only layout of a study is. Empty if there are several, or if it is one server."""
    layout = study.plan.layouts[0].layout
    if study.plan.searches_layouts or layout.replicas == 1:
        return ""
    return words("layouts-one", layout=layout, what=layout_words(layout, words))


def _why(study: StudyFiles, words: Words) -> dict[str, object]:
    levels = bottleneck.levels_of(study, study.winner.candidate) if study.winner is not None else None
    if levels is None:
        return {"why": [], "why_headline": "", "why_levels": ""}
    rows = bottleneck.bottleneck_rows(levels, words)
    binding = bottleneck.binding(rows)
    headline = words("why-binds", limit=words(f"limit-{binding[0]}")) if binding else words("why-none")
    at = words.load(levels.at.load)
    beyond = words.load(levels.beyond.load) if levels.beyond else words("none")
    said = words("why-at", at=at, beyond=beyond)
    if levels.record.replicas > 1:
        said += words("why-one-server", n=levels.record.replicas)
    return {"why": rows, "why_headline": headline, "why_levels": said}
