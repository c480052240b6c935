"""Failures that the server's log does not explain, and the experiment that decides whose they are. Pure.

A configuration that ran before is started again on the same GPUs. If it starts, the failure was the candidate's. If it
fails in the same way, it is the machine's or the study's. While nothing has run yet, the next candidate is the
experiment. The decision is in no file: it follows from the records, so that a resumed study goes on in its middle.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tuner.study.plan import StudyPlan
from tuner.study.record import TrialOutcome, TrialRecord
from tuner.study.units import units_at
from tuner.vllm.cause import OF_ONE_LAYOUT, Cause, Fault

FIRST_STARTS = 3
"""Number of first candidates, the default among them, whose refusal in the same words is the study's fault."""

REPEATS = 2
"""Number of failures after which chance has no part in a death under load or a start that took too long."""

_PREFIX = re.compile(r"^(?:\([^)]*\) )?(?:(?:ERROR|CRITICAL|WARNING|INFO) [^\]]*\] )?")
_CHANGING = re.compile(r"0x[0-9a-fA-F]+|\d+")


def is_unread(record: TrialRecord) -> bool:
    """Return True if a trial of the search failed and the log does not say whose fault that is."""
    cause = record.start.cause
    return (
        record.outcome is TrialOutcome.INFRASTRUCTURE
        and record.role.searches
        and record.start.dirty is None
        and cause is not None
        and cause.fault in (Fault.UNKNOWN, Fault.STUDY)  # of a study that runs, the table cannot be right
    )


def questions(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """List the unread failures that an experiment has to decide, oldest first. What the same candidate did later
    answers it too."""
    last: dict[str, TrialRecord] = {}
    by_chance: Counter[str] = Counter()
    for record in sorted(records, key=lambda r: r.trial):
        if not record.role.searches or record.outcome is TrialOutcome.INTERRUPTED:
            continue
        last.pop(record.candidate.id, None)
        if is_unread(record):
            last[record.candidate.id] = record
            by_chance[record.candidate.id] += _may_be_chance(record)
    return [r for r in last.values() if not _may_be_chance(r) or by_chance[r.candidate.id] >= REPEATS]


def _may_be_chance(record: TrialRecord) -> bool:
    cause = record.start.cause
    return record.start.got_ready or (cause is not None and cause.kind == "start-limit")


def settled(plan: StudyPlan, records: Iterable[TrialRecord]) -> tuple[TrialRecord, ...]:
    """Return the records, with each unread failure as the candidate's own if another configuration started later on
    its GPUs."""
    records = tuple(records)
    own = {r.trial for r in questions(records) if started_since(plan, records, r) is not None}
    return tuple(replace(r, outcome=_own(r)) if r.trial in own else r for r in records)


def _own(record: TrialRecord) -> TrialOutcome:
    return TrialOutcome.DIED if record.start.got_ready else TrialOutcome.REFUSED


def started_since(plan: StudyPlan, records: Iterable[TrialRecord], question: TrialRecord) -> TrialRecord | None:
    """Return the first start of another configuration after a failure, on one of its GPUs. None if there is none."""
    place = set(units_at(plan, question.start.group))
    later = (r for r in records if r.trial > question.trial and r.candidate != question.candidate)
    return next((r for r in later if r.start.got_ready and place & set(units_at(plan, r.start.group))), None)


def ran_before(records: Iterable[TrialRecord], question: TrialRecord) -> list[TrialRecord]:
    """List what was started with success and is not the failed candidate, newest first."""
    ready = [r for r in records if r.start.got_ready and r.candidate != question.candidate]
    return sorted(ready, key=lambda r: -r.trial)


def fails_alike(records: Iterable[TrialRecord], experiment: TrialRecord) -> TrialRecord | None:
    """Return the open question that fails in the same way as its experiment. None if the experiment decides nothing,
    or starts."""
    cause = experiment.start.cause
    if cause is None or experiment.start.got_ready or experiment.outcome is TrialOutcome.INTERRUPTED:
        return None
    return next((q for q in questions(records) if q.start.cause and _alike(q.start.cause, cause)), None)


def of_every_start(plan: StudyPlan, records: Sequence[TrialRecord]) -> Cause | None:
    """Return the cause that keeps every configuration from starting. None if one has started, or may start yet.

    It takes the default and the first candidates, all refused in the same words, whatever the table of causes says
    of them. A fault that the table calls the study's needs no second start beside the default's.
    """
    tried = [r for r in records if r.role.searches and r.outcome is not TrialOutcome.INTERRUPTED]
    causes = {r.candidate.id: r.start.cause for r in tried if r.start.cause is not None}
    open_starts = len({r.candidate.id for r in tried}) - len(causes)
    if any(r.start.got_ready for r in records) or open_starts or plan.baseline.id not in causes:
        return None
    for cause in causes.values():
        if cause is not None and cause.fault is Fault.STUDY and not _may_be_the_layouts(plan, cause):
            return cause
    found = [cause for cause in causes.values() if cause is not None and cause.fault is not Fault.ENVIRONMENT]
    if len(found) < FIRST_STARTS or len(found) < len(causes):
        return None
    unread = all(cause.fault is Fault.UNKNOWN for cause in found)
    return found[0] if unread or len({_words(cause) for cause in found}) == 1 else None


def _may_be_the_layouts(plan: StudyPlan, cause: Cause) -> bool:
    return plan.searches_layouts and cause.kind in OF_ONE_LAYOUT


def _alike(one: Cause, other: Cause) -> bool:
    """Return True if two failures have the same words, but for numbers: process ids, times, addresses."""
    return _CHANGING.sub("#", _words(one)) == _CHANGING.sub("#", _words(other))


def _words(cause: Cause) -> str:
    return _PREFIX.sub("", cause.line).strip() or cause.kind
