"""A study's files → rows of the page, before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

from tuner import jsonfile
from tuner.bench.level import Level, asked
from tuner.candidate import Candidate
from tuner.environment import Environment
from tuner.errors import UsageError
from tuner.formatting import one_line
from tuner.jsonfile import NewerFileError, TornFileError
from tuner.measurement import Load, Measurement
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import Figures, StudyResult
from tuner.study.unread import settled
from tuner.study.upgrade import read_plan, read_record, read_result

T = TypeVar("T")

FAILED = (TrialOutcome.REFUSED, TrialOutcome.DIED, TrialOutcome.INFRASTRUCTURE, TrialOutcome.INTERRUPTED)

WITHOUT_FIGURES = (*FAILED, TrialOutcome.BEHIND)


class Unread(NamedTuple):
    """File of the study that could not be read, with the reason."""

    file: str
    why: str


@dataclass(frozen=True, slots=True)
class StudyFiles:
    """Content of a study's folder. `environment` and `result` are None if the file is missing or torn."""

    folder: Path
    plan: StudyPlan
    environment: Environment | None
    result: StudyResult | None
    records: tuple[TrialRecord, ...]
    unread: tuple[Unread, ...] = ()

    @property
    def winner(self) -> Figures | None:
        return self.result.winner if self.result else None

    @property
    def default(self) -> Figures | None:
        """Return the default's figures: those of its best level if it never kept the limits."""
        return (self.result.default or self.result.default_seen) if self.result else None

    @property
    def default_won(self) -> bool:
        return self.winner is not None and self.winner.candidate == self.plan.baseline

    @property
    def has_replicas(self) -> bool:
        """Return True if a layout has several servers, so that figures are the machine's and not one server's."""
        return any(placed.layout.replicas > 1 for placed in self.plan.layouts)

    def starts_of(self, candidate: Candidate) -> tuple[TrialRecord, ...]:
        """Return the trials of a candidate, without checks and experiments."""
        return tuple(r for r in self.records if r.candidate == candidate and r.role.measures)

    def quoted(self, figures: Figures | None) -> TrialRecord | None:
        """Return the trial that stands for a candidate: the first one behind its figures."""
        if figures is None:
            return None
        wanted = [r for r in self.starts_of(figures.candidate) if r.trial in figures.trials]
        return next(iter(wanted or self.starts_of(figures.candidate)), None)


def read_study(folder: Path) -> StudyFiles:
    """Read plan, environment, result and every record. Torn files are left out and named in `unread`. Raises
    UsageError if the folder holds no readable plan."""
    try:
        plan = read_plan(folder / "plan.json")
    except FileNotFoundError as error:
        raise UsageError(
            f"{folder} holds no study", hint="name the folder that holds its plan.json, such as studies/NAME"
        ) from error
    except TornFileError as error:
        hint = "update tuner" if isinstance(error, NewerFileError) else "the file was cut short or edited"
        raise UsageError(f"the plan cannot be read: {error}", hint=hint) from error
    unread: list[Unread] = []
    environment = _read(folder, folder / "environment.json", lambda path: jsonfile.load(path, Environment), unread)
    result = _read(folder, folder / "result.json", read_result, unread, optional=True)
    paths = sorted((folder / "trials").glob("*/record.json"))
    records = [_read(folder, path, read_record, unread) for path in paths]
    return StudyFiles(
        folder=folder,
        plan=plan,
        environment=environment,
        result=result,
        records=settled(plan, sorted((r for r in records if r is not None), key=lambda r: r.trial)),
        unread=tuple(unread),
    )


def _read(
    folder: Path, path: Path, read: Callable[[Path], T], unread: list[Unread], *, optional: bool = False
) -> T | None:
    try:
        return read(path)
    except (OSError, TornFileError) as error:
        if not (optional and isinstance(error, FileNotFoundError)):
            unread.append(Unread(str(path.relative_to(folder)), one_line(str(error).removeprefix(f"{path}: "))))
        return None


class TrialRow(NamedTuple):
    """One trial. Times are hours since the study's first start; its outcome was known at `ended_h`. `load` and
    `p99_ttft_ms` are those of `level`, which stands for the trial. So is `qps` if the trial has no answer; it is
    always the whole machine's."""

    record: TrialRecord
    level: Level | None
    began_h: float
    ended_h: float
    load: Load | None
    qps: float | None
    p99_ttft_ms: float | None
    preemptions: int | None

    @property
    def trial(self) -> int:
        return self.record.trial

    @property
    def outcome(self) -> TrialOutcome:
        return self.record.outcome

    @property
    def candidate(self) -> Candidate:
        return self.record.candidate

    @property
    def has_figures(self) -> bool:
        return self.outcome not in WITHOUT_FIGURES and self.qps is not None and self.p99_ttft_ms is not None


def trial_rows(study: StudyFiles) -> list[TrialRow]:
    """List the trials in their order."""
    first = min((began(r) for r in study.records), default=None)
    rows = []
    for record in study.records:
        assert first is not None
        begin_h = (began(record) - first).total_seconds() / 3600
        level = shown_level(record)
        measured = level.measurement if level else None
        rows.append(
            TrialRow(
                record=record,
                level=level,
                began_h=begin_h,
                ended_h=begin_h + record.start.phases.spent_s / 3600,
                load=measured.load if measured else None,
                qps=record.qps if record.qps is not None else machine_rate(record, measured),
                p99_ttft_ms=measured.ttft_ms.p99 if measured and measured.ttft_ms else None,
                preemptions=_preemptions(record, measured),
            )
        )
    return rows


def began(record: TrialRecord) -> datetime:
    """Return the time when the trial's server was started."""
    return datetime.fromisoformat(record.start.started_at)


def machine_rate(record: TrialRecord, measured: Measurement | None) -> float | None:
    """Return the whole machine's QPS at a level, None without one."""
    return record.replicas * measured.qps if measured is not None and measured.qps is not None else None


def shown_level(record: TrialRecord) -> Level | None:
    """Return the level that stands for a trial: the one that counts, else the one closest to the limits."""
    if record.best is not None:
        return record.levels[record.best]
    measured = [level for level in asked(record.levels) if level.measurement.qps is not None]
    margins = [
        (level.verdict.slo_margin, i) for i, level in enumerate(measured) if level.verdict.slo_margin is not None
    ]
    return measured[min(margins)[1]] if margins else next(iter(measured), None)


def _preemptions(record: TrialRecord, shown: Measurement | None) -> int | None:
    if shown is None:
        return None
    # A search goes on until something breaks: a feasible trial's preemptions are those at the load that counts.
    return record.preemptions_seen if record.best is None else shown.server.preemptions


class BestRow(NamedTuple):
    """New best of the search: `qps` of `trial`, `hours` after the study's first start."""

    hours: float
    qps: float
    trial: int


def best_so_far(rows: Iterable[TrialRow]) -> list[BestRow]:
    """List every new best of the search. Confirmation runs do not count: they find nothing."""
    best: list[BestRow] = []
    for row in sorted(rows, key=lambda r: r.ended_h):
        found = row.outcome is TrialOutcome.FEASIBLE and row.record.role.searches
        if found and row.qps is not None and (not best or row.qps > best[-1].qps):
            best.append(BestRow(row.ended_h, row.qps, row.trial))
    return best


class LevelRow(NamedTuple):
    """One load level of one trial: load and QPS of the whole machine. The P99's 95 % bounds are None if the sample is
    too small."""

    trial: int
    role: Role
    level: float
    qps: float | None
    p99_ttft_ms: float | None
    p99_low_ms: float | None
    p99_high_ms: float | None
    preemptions: int | None
    outcome: TrialOutcome


def level_rows(study: StudyFiles, candidate: Candidate) -> list[LevelRow]:
    """List the levels of a candidate's trials, by trial and load. Levels of another kind of load are left out."""
    return [
        LevelRow(
            trial=record.trial,
            role=record.role,
            level=record.replicas * m.load.level,
            qps=machine_rate(record, m),
            p99_ttft_ms=m.ttft_ms.p99 if m.ttft_ms else None,
            p99_low_ms=m.ttft_ms.p99_low if m.ttft_ms else None,
            p99_high_ms=m.ttft_ms.p99_high if m.ttft_ms else None,
            preemptions=m.server.preemptions,
            outcome=TrialOutcome(level.verdict.outcome.value),
        )
        for record in study.starts_of(candidate)
        for level in sorted(record.levels, key=lambda level: level.measurement.load.level)
        if (m := level.measurement).load.kind is study.plan.load.kind
    ]
