"""Faults of the machine: when to wait, when to give a candidate up, when to end the run."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from tuner.errors import EnvironmentFaultError
from tuner.study import unread
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.store import Store
from tuner.vllm.cause import REQUEST_REFUSED, Cause, Fault

ATTEMPTS = 3
"""Number of starts that a candidate gets in all when the machine is at fault and others start."""

FAULTS_IN_A_ROW = 3
"""Number of consecutive faults of the machine after which the next start has to wait."""

PAUSES_S = (15.0, 45.0, 135.0, 405.0)
"""Seconds of each pause in turn. A network comes back within the first ones, a hub's rate limit within the last."""


def is_given_up(plan: StudyPlan, records: Sequence[TrialRecord], record: TrialRecord) -> bool:
    """Return True if a candidate had its attempts, while others started. The default is never given up: the run ends
    with an EnvironmentFaultError instead."""
    if record.outcome is not TrialOutcome.INFRASTRUCTURE or record.attempt < ATTEMPTS:
        return False
    first = min(r.trial for r in records if r.candidate == record.candidate)
    others_start = any(r.trial > first and r.start.got_ready and r.candidate != record.candidate for r in records)
    if others_start and record.candidate == plan.baseline:
        raise _broken(record, ATTEMPTS)
    return others_start


def next_pause_s(records: Sequence[TrialRecord], pauses: int, elapsed_s: float, budget_s: float | None) -> float | None:
    """Return the seconds to wait after `pauses` earlier pauses. None if the last starts were no faults of the machine.

    Raises EnvironmentFaultError if waiting has not helped, or if the time budget ends before.
    """
    row = faults_in_a_row(records)
    if len(row) < FAULTS_IN_A_ROW:
        return None
    pause_s = next(iter(PAUSES_S[pauses:]), None)
    if pause_s is None or (budget_s is not None and elapsed_s + pause_s >= budget_s):
        raise _broken(row[0], len(row))
    return pause_s


def faults_in_a_row(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """List the latest faults of the machine that no sound start followed, newest first."""
    finished = [r for r in records if r.outcome is not TrialOutcome.INTERRUPTED]
    return list(takewhile(lambda r: r.outcome is TrialOutcome.INFRASTRUCTURE, reversed(finished)))


def raise_if_nothing_starts(plan: StudyPlan, store: Store, records: Sequence[TrialRecord], record: TrialRecord) -> None:
    """Raise EnvironmentFaultError if an experiment fails as its question did, if no configuration starts, or if
    servers refuse the study's requests."""
    cause = record.start.cause
    if cause is not None and cause.kind == REQUEST_REFUSED:
        raise EnvironmentFaultError(cause.explanation, hint=cause.hint)
    if (common := unread.of_every_start(plan, records)) is not None:
        raise _nothing_starts(common)
    question = unread.fails_alike(records, record) if record.role is Role.EXPERIMENT else None
    if question is not None:
        raise EnvironmentFaultError(
            f"trial {question.trial:04d} did not start, and what ran before fails in the same way now "
            f"(trial {record.trial:04d}): {_quoted(cause)}",
            hint=f"the machine or the study has changed: mend what vLLM names, then: {store.resume_command}",
        )


def raise_if_nothing_ran(records: Sequence[TrialRecord]) -> None:
    """Raise EnvironmentFaultError at the end of a search without a single start, for want of time or of candidates."""
    if any(r.start.got_ready for r in records):
        return
    if open_questions := unread.questions(records):
        raise _nothing_starts(open_questions[0].start.cause)
    if row := faults_in_a_row(records):
        raise _broken(row[0], len(row))


def _nothing_starts(cause: Cause | None) -> EnvironmentFaultError:
    """Explain a study of which no configuration starts."""
    if cause is not None and cause.fault is Fault.STUDY:
        return EnvironmentFaultError(
            f"nothing in this study can start: {cause.explanation} {_quoted(cause) if cause.line else ''}".rstrip(),
            hint=cause.hint,
        )
    return EnvironmentFaultError(
        f"default and first candidates fail alike, so nothing in this study can start. {_quoted(cause)}",
        hint="change what every start shares (--model, --vllm, the words after --), or mend what vLLM names",
    )


def _broken(record: TrialRecord, starts: int) -> EnvironmentFaultError:
    cause = record.start.cause
    return EnvironmentFaultError(
        f"{starts} starts failed through no fault of the candidate: {cause.explanation if cause else 'unknown cause'}",
        hint=cause.hint if cause else f"read trials/{record.trial:04d}/server.log in the study's folder",
    )


def _quoted(cause: Cause | None) -> str:
    """Quote the log's own line, else the explanation."""
    return "" if cause is None else f"vLLM says: {cause.line}" if cause.line else cause.explanation
