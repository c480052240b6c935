"""Failed starts by cause, with the tightest bounds that their messages name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tuner.report.tables import FAILED
from tuner.server.diagnosis import Bound, Cause
from tuner.study.record import TrialOutcome, TrialRecord


class RefusedRow(NamedTuple):
    """Starts that failed for one reason, with the tightest bounds that their messages name."""

    cause: Cause
    outcome: TrialOutcome
    trials: tuple[int, ...]
    bounds: tuple[Bound, ...]


def refused_rows(records: Iterable[TrialRecord]) -> list[RefusedRow]:
    """Group failed trials by cause, the most frequent first."""
    groups: dict[tuple[str, TrialOutcome], list[TrialRecord]] = {}
    for record in records:
        if record.outcome in FAILED and record.start.cause is not None:
            groups.setdefault((record.start.cause.kind, record.outcome), []).append(record)
    rows = []
    for (_, outcome), members in groups.items():
        causes = [r.start.cause for r in members if r.start.cause is not None]
        learnt = tightest(bound for cause in causes for bound in cause.bounds)
        rows.append(RefusedRow(causes[0], outcome, tuple(r.trial for r in members), learnt))
    return sorted(rows, key=lambda row: (-len(row.trials), row.cause.kind))


def tightest(bounds: Iterable[Bound]) -> tuple[Bound, ...]:
    """Keep one bound per flag and direction: the smallest upper one, the largest lower one."""
    best: dict[tuple[str, str], Bound] = {}
    for bound in bounds:
        key = (bound.flag, bound.relation)
        tighter = min if bound.relation == "<=" else max
        best[key] = tighter(best.get(key, bound), bound, key=lambda b: b.limit)
    return tuple(best[key] for key in sorted(best))
