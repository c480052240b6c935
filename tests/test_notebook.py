"""The public API: what README and docs/api.md promise to notebooks."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tuner
from tests.report.studies import build_study
from tuner.errors import UsageError
from tuner.load.requests_log import SCHEMA
from tuner.report.tables import read_study

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuner.Study:
    return tuner.load_study(build_study(tmp_path_factory.mktemp("notebook")).folder)


def test_the_lines_of_the_readme_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in block.splitlines() if line]) == 5
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    exec(block, names)
    study = names["study"]
    assert isinstance(study, tuner.Study)
    assert capsys.readouterr().out == f"{study.sentence}\n{study.command}\n"
    assert isinstance(study.figures()["qps-against-ttft"], go.Figure)


def test_importing_tuner_imports_neither_pandas_nor_plotly() -> None:
    script = "import sys, tuner; print({'pandas', 'plotly', 'numpy'} & set(sys.modules) or 'neither')"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout == "neither\n"
    with pytest.raises(AttributeError, match="nothing"):
        _ = tuner.nothing


def test_trials_hold_what_was_recorded(study: tuner.Study) -> None:
    records = {r.trial: r for r in study.files.records}
    trials = study.trials
    assert list(trials.index) == list(records)
    for number, row in trials.iterrows():
        record = records[int(str(number))]
        assert (row["role"], row["outcome"]) == (record.role, record.outcome)
        if record.best is not None:
            assert row["qps"] == record.qps
        assert row["layout"] == str(study.files.plan.layout_of(record.candidate))
        assert row["door"] == record.start.door
        assert row["start_s"] == record.start.phases.start_s
        assert (row["cause"] == record.start.cause.kind) if record.start.cause else record.start.facts is not None
    assert {p.flag for p in study.files.plan.parameters} <= set(trials.columns)
    assert study.best is not None
    best = trials.loc[list(study.best.trials)]
    assert best["qps"].mean() == pytest.approx(study.best.qps)
    assert set(best["max-num-seqs"]) == {study.best.candidate.as_dict()["max-num-seqs"]}


def test_levels_hold_every_measured_level(study: tuner.Study) -> None:
    levels = study.levels
    assert len(levels) == sum(len(r.levels) for r in study.files.records)
    measured = [level.measurement for r in study.files.records for level in r.levels]
    assert list(levels["qps"]) == [m.qps for m in measured]
    assert list(levels["ttft_p99_ms"]) == [m.ttft_ms.p99 for m in measured if m.ttft_ms]
    assert list(levels["gpu_power_w_mean"]) == [m.gpu.power_w_mean for m in measured if m.gpu]
    assert levels["counts"].sum() == sum(r.best is not None for r in study.files.records)


def test_every_column_is_documented(study: tuner.Study) -> None:
    said = set(re.findall(r"`([\w-]+)`", (ROOT / "docs" / "api.md").read_text(encoding="utf-8")))
    flags = {p.flag for p in study.files.plan.parameters}
    latencies = re.compile(r"^(ttft|tpot|itl|e2e)_")
    columns = {*study.trials.columns, *(latencies.sub("", name) for name in study.levels.columns)} - flags
    assert sorted(columns - said) == []


def test_requests_have_latencies_from_when_they_were_due(study: tuner.Study) -> None:
    assert study.best is not None
    trial = study.best.trials[0]
    row: dict[str, object] = {**dict.fromkeys(SCHEMA.names, 1), "kind": "closed", "failure": None, "output_tokens": 11}
    row |= {"level": 8.0, "due_ns": 0, "first_ns": 50_000_000, "last_ns": 150_000_000}
    path = study.files.folder / "trials" / f"{trial:04d}" / "requests.parquet"
    pq.write_table(pa.Table.from_pylist([row], schema=SCHEMA), path)
    (request,) = study.requests(trial).to_dict("records")
    assert (request["ttft_ms"], request["e2e_ms"], request["tpot_ms"]) == (50, 150, 10)


def test_telemetry_counts_seconds_from_its_first_sample(study: tuner.Study) -> None:
    assert study.best is not None
    frame = study.telemetry(study.best.trials[0])
    assert frame["seconds"].iloc[0] == 0 and frame["seconds"].is_monotonic_increasing
    assert {"kv_usage", "gpu_power_w"} <= set(frame.columns)


def test_figures_are_those_of_the_page_in_either_language(study: tuner.Study) -> None:
    english, chinese = study.figures(), study.figures("zh")
    assert list(english) == list(chinese)
    assert chinese["best-so-far"].layout.xaxis.title.text != english["best-so-far"].layout.xaxis.title.text


def test_what_is_not_there_is_a_usage_error_with_a_hint(study: tuner.Study, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no study") as no_study:
        tuner.load_study(tmp_path)
    with pytest.raises(UsageError, match="has no trial 999") as no_trial:
        study.requests(999)
    refused = next(r.trial for r in study.files.records if r.start.cause)
    with pytest.raises(UsageError, match=r"telemetry\.parquet is not there") as no_file:
        study.telemetry(refused)
    assert all(error.value.hint for error in (no_study, no_trial, no_file))


def test_a_study_without_a_finished_trial_is_empty(tmp_path: Path) -> None:
    study = tuner.load_study(str(build_study(tmp_path, trials=0).folder))
    assert (study.best, study.command, study.sentence) == (None, None, "")
    assert study.trials.empty and study.levels.empty and study.figures() == {}


def test_the_committed_example_is_read_whole() -> None:
    study = tuner.load_study(ROOT / "studies" / "example")
    assert study.files.unread == () and len(study.trials) == len(read_study(study.files.folder).records) == 12
