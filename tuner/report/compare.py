"""Page of two studies side by side: differences in conditions, figures and flags."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from tuner import formatting
from tuner.formatting import one_line
from tuner.report import conditions, figures, summary
from tuner.report.drawing import Style
from tuner.report.gallery import Drawing, curves_of
from tuner.report.page import render
from tuner.report.phrases import sentence
from tuner.report.tables import StudyFiles, level_rows, read_study
from tuner.report.translations import Language, Words

SIDES = (figures.WINNER, Style("#b07d00", "dash"))


NOT_COMPARED = ("env-created", "env-finished", "env-seed", "env-dropped")
"""Conditions that may differ between studies whose figures can be compared."""


class DifferenceRow(NamedTuple):
    """Condition that is not the same in both studies."""

    label: str
    first: str
    second: str


def compare(folder_a: Path, folder_b: Path, *, language: str = "en", gpu_price: float | None = None) -> str:
    """Render the page as HTML. Raises UsageError if a folder holds no study."""
    words = Words(Language(language))
    first, second = read_study(folder_a), read_study(folder_b)
    names = _names(first, second)
    sides = [summary.side(study, study.winner) for study in (first, second)]
    left, right = sides
    launches = [study.quoted(study.winner) for study in (first, second)]
    a, b = launches
    flags = summary.launch_rows((first, a), (second, b), words) if a is not None and b is not None else []
    versions = {s.environment.tuner_version for s in (first, second) if s.environment is not None}
    return render(
        "compare.html.j2",
        words,
        {
            "names": names,
            "version": one_line(", ".join(sorted(versions)) or formatting.NOT_OBSERVED),
            "sentences": [sentence(study, words) for study in (first, second)],
            "differences": difference_rows(first, second, words),
            "summary": summary.summary_rows(right, left, words, gpu_price) if left and right else [],
            "flags": flags,
            "curves": _curves((first, second), names, words),
        },
    )


def difference_rows(first: StudyFiles, second: StudyFiles, words: Words) -> list[DifferenceRow]:
    """List the conditions that differ, except seed, dates and what was not searched."""
    one, other = (_by_key(study, words) for study in (first, second))
    keys = [key for key in {**one, **other} if key not in NOT_COMPARED and one.get(key) != other.get(key)]
    absent = formatting.NOT_OBSERVED
    return [DifferenceRow(words(key), one.get(key, absent), other.get(key, absent)) for key in keys]


def _by_key(study: StudyFiles, words: Words) -> dict[str, str]:
    """Join the rows of a key: those without one continue the row above."""
    table: dict[str, str] = {}
    last = ""
    for row in conditions.environment_rows(study, words):
        last = row.key or last
        table[last] = f"{table[last]}; {row.text}" if last in table else row.text
    return table


def _names(first: StudyFiles, second: StudyFiles) -> tuple[str, str]:
    """Return the studies' names, numbered if they are the same."""
    a, b = one_line(first.plan.study), one_line(second.plan.study)
    return (a, b) if a != b else (f"{a} (1)", f"{b} (2)")


def _curves(studies: tuple[StudyFiles, StudyFiles], names: tuple[str, str], words: Words) -> list[Drawing]:
    curves = [
        figures.Curve(name, level_rows(study, study.winner.candidate), look)
        for study, name, look in zip(studies, names, SIDES, strict=True)
        if study.winner is not None
    ]
    slos = dict.fromkeys(slo for study in studies for slo in study.plan.slos)
    of_machine = any(study.has_replicas for study in studies)
    return list(curves_of(curves, list(slos), words, of_machine=of_machine))
