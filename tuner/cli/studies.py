"""Command `tuner studies`: one line a study."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tuner import formatting
from tuner.cli.folders import State, study_names
from tuner.cli.status import picture_of
from tuner.cli.tables import Form, print_json, print_table
from tuner.errors import UsageError
from tuner.study.result import Decision, Gain
from tuner.study.sentence import gain_text


@dataclass(frozen=True, slots=True)
class _Row:
    """Line of one study. `best_qps` and `default_qps` are None if nothing, or not the default, kept the limits. `gain`
    is the winner's, None before it is confirmed. `rechecks` is the study whose winner was compared once more.
    `unreadable` says why its files cannot be read."""

    study: str
    model: str | None = None
    state: State | None = None
    starts: int | None = None
    starts_planned: int | None = None
    best_qps: float | None = None
    default_qps: float | None = None
    gain: Gain | None = None
    created_at: str | None = None
    rechecks: str | None = None
    unreadable: str | None = None


@dataclass(frozen=True, slots=True)
class _Listing:
    studies: tuple[_Row, ...]
    schema: int = 1


def show_studies(studies: Path, form: Form) -> None:
    if not studies.is_dir():
        raise UsageError(f"no folder {studies}", hint="name the folder of the studies with --studies DIR")
    rows = [_row(studies.absolute() / name) for name in study_names(studies)]
    rows.sort(key=lambda row: row.created_at or "", reverse=True)
    if form is Form.JSON:
        print_json(_Listing(tuple(rows)))
    elif not rows:
        print(f"no study in {studies}", file=sys.stderr)
    else:
        heads = ("study", "state", "starts", "best QPS", "gain", "model")
        print_table(heads, [_cells(row) for row in rows], right=("starts", "best QPS", "gain"))


def _row(folder: Path) -> _Row:
    try:
        p = picture_of(folder)
    except UsageError as error:
        return _Row(folder.name, unreadable=error.message)
    return _Row(
        study=folder.name,
        model=p.plan.model,
        state=p.state,
        starts=p.done,
        starts_planned=p.planned,
        best_qps=p.best.qps if p.best else None,
        default_qps=p.default.qps if p.default and p.default_keeps else None,
        gain=p.result.gain if p.result and p.result.decision is Decision.WINNER else None,
        created_at=p.plan.created_at,
        rechecks=p.plan.rechecks.study if p.plan.rechecks else None,
    )


def _cells(row: _Row) -> tuple[str, ...]:
    if row.unreadable is not None:
        return (row.study, "unreadable", "", "", "", row.unreadable)
    return (
        row.study,
        str(row.state),
        f"{row.starts} of {row.starts_planned}",
        formatting.significant(row.best_qps),
        gain_text(row.gain, row.best_qps, row.default_qps),
        (row.model or "") if row.rechecks is None else f"recheck of {row.rechecks}",
    )
