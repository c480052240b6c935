"""Studies for notebooks, as pandas tables and plotly figures. See docs/api.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from tuner import formatting
from tuner.bench.level import Level
from tuner.errors import UsageError
from tuner.measurement import ClientLoad, Distribution, GpuLoad, Measurement, ServerLoad
from tuner.report.gallery import gallery
from tuner.report.quote import production, shell_lines
from tuner.report.tables import StudyFiles, read_study, shown_level, trial_rows
from tuner.report.translations import Language, Words
from tuner.study.plan import StudyPlan
from tuner.study.record import TrialRecord
from tuner.study.result import Figures, Gain
from tuner.vllm.facts import StartFacts

Cells = dict[str, object]


def load_study(folder: str | Path) -> Study:
    """Read a study's folder, such as "studies/example". Torn files are left out. Raises UsageError if the folder
    holds no study."""
    return Study(read_study(Path(folder)))


@dataclass(frozen=True, slots=True)
class Study:
    """Study as it was on disk when loaded, finished or not."""

    files: StudyFiles

    def __repr__(self) -> str:
        return f"<Study {self.files.plan.study}: {len(self.files.records)} trials>"

    @property
    def sentence(self) -> str:
        """Return the study in one sentence. Empty before the first trial has finished."""
        return formatting.one_line(self.files.result.sentence) if self.files.result else ""

    @property
    def best(self) -> Figures | None:
        """Return the winner: `candidate` (its flags), `qps`, `p99_ttft_ms`, `trials`, `fresh`. None if nothing won.
        `fresh` is True if confirmation runs measured the figures."""
        return self.files.winner

    @property
    def gain(self) -> Gain | None:
        """Return the best candidate's gain over the default: `low`, `middle`, `high` (a 95 % interval, as shares) and
        `pairs`. None before the first pair of confirmation runs."""
        return self.files.result.gain if self.files.result else None

    @property
    def command(self) -> str | None:
        """Return the winner's launch, one shell line a server. None if nothing won."""
        record = self.files.quoted(self.files.winner)
        return "\n".join(shell_lines(production(record, self.files.plan).specs)) if record else None

    @property
    def trials(self) -> pd.DataFrame:
        """Return one row per trial, indexed by its number. docs/api.md lists the columns with their units. Figures
        are those of the level that stands for the trial. Each flag of the search space has a column."""
        rows = trial_rows(self.files)
        cells = [
            {
                **_trial_cells(self.files.plan, record),
                "qps": row.qps,
                "preemptions": row.preemptions,
                **_flag_cells(self.files, record),
            }
            for row, record in zip(rows, self.files.records, strict=True)
        ]
        return pd.DataFrame(cells).set_index("trial") if cells else pd.DataFrame()

    @property
    def levels(self) -> pd.DataFrame:
        """Return one row per measured level, in the order of measurement. docs/api.md lists columns and units."""
        cells = [
            {"trial": record.trial, **_level_cells(level, counts=index == record.best)}
            for record in self.files.records
            for index, level in enumerate(record.levels)
        ]
        return pd.DataFrame(cells)

    def requests(self, trial: int) -> pd.DataFrame:
        """Return requests.parquet of a trial with `ttft_ms`, `e2e_ms` and `tpot_ms`. Raises UsageError without one."""
        frame = self._read(trial, "requests.parquet")
        tokens = frame["output_tokens"].where(frame["output_tokens"] > 1) - 1
        return frame.assign(
            ttft_ms=(frame["first_ns"] - frame["due_ns"]) / 1e6,
            e2e_ms=(frame["last_ns"] - frame["due_ns"]) / 1e6,
            tpot_ms=(frame["last_ns"] - frame["first_ns"]) / 1e6 / tokens,
        )

    def telemetry(self, trial: int) -> pd.DataFrame:
        """Return telemetry.parquet of a trial with `seconds` since its first sample. Raises UsageError without one."""
        frame = self._read(trial, "telemetry.parquet")
        frame.insert(0, "seconds", (frame["at_ns"] - frame["at_ns"].min()) / 1e9)
        return frame

    def figures(self, language: str = "en") -> dict[str, go.Figure]:
        """Return the report's figures by name, such as "best-so-far". `language` is "en" or "zh"."""
        drawn = gallery(self.files, Words(Language(language)))
        return {drawing.name: drawing.figure for drawings in drawn.values() for drawing in drawings}

    def _read(self, trial: int, name: str) -> pd.DataFrame:
        if trial not in {record.trial for record in self.files.records}:
            raise UsageError(f"{self.files.folder} has no trial {trial}", hint="`study.trials` lists those there are")
        path = self.files.folder / "trials" / f"{trial:04d}" / name
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
            hint = "a trial that measured nothing has none, and a copy of a study may lack it"
            missing = isinstance(error, FileNotFoundError)
            why = "is not there" if missing else f"cannot be read: {formatting.one_line(str(error))}"
            raise UsageError(f"{path} {why}", hint=hint) from error


def _trial_cells(plan: StudyPlan, record: TrialRecord) -> Cells:
    level = shown_level(record)
    measured = level.measurement if level else None
    ttft = measured.ttft_ms if measured else None
    return {
        "trial": record.trial,
        "role": record.role.value,
        "outcome": record.outcome.value,
        "cause": record.start.cause.kind if record.start.cause else None,
        "gpu_group": record.start.group,
        "layout": str(plan.layout_of(record.candidate)),
        "door": record.start.door.value,
        "attempt": record.attempt,
        "started_at": pd.Timestamp(record.start.started_at),
        "start_s": record.start.phases.start_s,
        "warm_up_s": record.start.phases.warm_up_s,
        "measure_s": record.start.phases.measure_s,
        "wait_s": record.start.phases.wait_s,
        "stop_s": record.start.phases.stop_s,
        "load_kind": measured.load.kind.value if measured else None,
        "level": measured.load.level if measured else None,
        "qps": None,
        "saturation_qps": record.saturation,
        "ttft_p50_ms": ttft.p50 if ttft else None,
        "ttft_p99_ms": ttft.p99 if ttft else None,
        "preemptions": None,
        **{name: getattr(record.start.facts, name, None) for name in _FACTS},
    }


_FACTS = tuple(f.name for f in fields(StartFacts) if f.name != "vllm_version")


def _flag_cells(files: StudyFiles, record: TrialRecord) -> Cells:
    values = record.candidate.as_dict()
    return {parameter.flag: values.get(parameter.flag) for parameter in files.plan.parameters}


def _level_cells(level: Level, *, counts: bool) -> Cells:
    m = level.measurement
    return {
        "load_kind": m.load.kind.value,
        "level": m.load.level,
        "outcome": level.verdict.outcome.value,
        "counts": counts,
        "planned_s": m.planned_s,
        "window_s": m.window_s,
        "sent": m.sent,
        "completed": m.completed,
        "failed": m.failed_total,
        "prompt_tokens": m.prompt_tokens,
        "output_tokens": m.output_tokens,
        "qps": m.qps,
        "output_tokens_per_s": m.output_tokens_per_s,
        **dict(_latency_cells(m)),
        **_prefixed("server", ServerLoad, m.server),
        **_prefixed("gpu", GpuLoad, m.gpu),
        **_prefixed("client", ClientLoad, m.client),
        "cautions": ", ".join(caution.kind.value for caution in m.cautions),
    }


def _latency_cells(m: Measurement) -> Iterator[tuple[str, object]]:
    for metric, found in (("ttft", m.ttft_ms), ("tpot", m.tpot_ms), ("itl", m.itl_ms), ("e2e", m.e2e_ms)):
        for field in fields(Distribution):
            name = f"{metric}_count" if field.name == "count" else f"{metric}_{field.name}_ms"
            yield name, getattr(found, field.name, None)


def _prefixed(prefix: str, kind: type[ServerLoad | GpuLoad | ClientLoad], found: object) -> Cells:
    cells = {f"{prefix}_{field.name}": getattr(found, field.name, None) for field in fields(kind)}
    return {name: ", ".join(cell) if isinstance(cell, tuple) else cell for name, cell in cells.items()}
