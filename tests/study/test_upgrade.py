from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.study.builders import REFUSAL, level, record
from tuner.candidate import Candidate
from tuner.jsonfile import dumps, loads
from tuner.load.early_end import EarlyEnd, EarlyEndKind
from tuner.report.page import write_report
from tuner.report.tables import read_study
from tuner.slo import parse_slo
from tuner.study.store import Store
from tuner.study.upgrade import read_record
from tuner.verdict import Reason, ReasonKind

EXAMPLE = Path(__file__).resolve().parents[2] / "studies" / "example"


def test_a_record_of_schema_1_is_read_as_it_was(tmp_path: Path) -> None:
    made = record(3, Candidate(), (level(10.0),), cause=REFUSAL)
    raw = json.loads(dumps(made))
    path = tmp_path / "record.json"
    path.write_text(json.dumps({**_start_of_before(raw), **raw, "schema": 1}))
    assert read_record(path) == made


OLD_TEXTS = [
    ("interrupted", EarlyEnd(EarlyEndKind.INTERRUPTED)),
    ("the backlog grows without end", EarlyEnd(EarlyEndKind.BACKLOG_GROWS)),
    ("a request failed", EarlyEnd(EarlyEndKind.REQUEST_FAILED)),
    ("a preemption was seen", EarlyEnd(EarlyEndKind.PREEMPTED)),
    (
        "18 requests exceeded the limit of p99 ttft <= 1000ms",
        EarlyEnd(EarlyEndKind.LIMIT_EXCEEDED, 18, parse_slo("p99 ttft <= 1000ms")),
    ),
    (
        "18 requests exceeded the limit of a moon",
        EarlyEnd(EarlyEndKind.RECORDED, recorded="18 requests exceeded the limit of a moon"),
    ),
    ("the disk was full", EarlyEnd(EarlyEndKind.RECORDED, recorded="the disk was full")),
]


@pytest.mark.parametrize(("text", "ended"), OLD_TEXTS)
@pytest.mark.parametrize("schema", [1, 2])
def test_an_early_end_that_was_recorded_as_text_is_read_as_a_value(
    tmp_path: Path, schema: int, text: str, ended: EarlyEnd
) -> None:
    raw = json.loads(dumps(record(3, Candidate(), (level(10.0),))))
    reasons = [{"kind": "ended-early", "subject": text}] if schema == 2 else [f"ended early: {text}"]
    (made,) = raw["levels"]
    made["measurement"]["aborted"], made["verdict"]["reasons"] = text, reasons
    path = tmp_path / "record.json"
    path.write_text(json.dumps(raw if schema == 2 else {**_start_of_before(raw), **raw, "schema": 1}))
    (found,) = read_record(path).levels
    assert found.measurement.aborted == ended == loads(dumps(ended), EarlyEnd)
    assert list(map(str, found.verdict.reasons)) == [f"ended early: {text}"]
    assert schema == 1 or found.verdict.reasons == (Reason(ReasonKind.ENDED_EARLY, ended=ended),)


def test_the_committed_study_is_read_whole_and_reported(tmp_path: Path) -> None:
    folder = tmp_path / "example"
    shutil.copytree(EXAMPLE, folder)
    study, trials = read_study(folder), sorted((EXAMPLE / "trials").glob("*/record.json"))
    assert study.unread == ()
    assert [r.trial for r in study.records] == [int(path.parent.name) for path in trials]
    assert Store(folder).records() == study.records
    assert all(r.start.started_at and r.start.launch.arguments for r in study.records)
    assert study.winner is not None and study.quoted(study.winner) is not None
    assert write_report(folder).is_file()


def test_a_result_of_before_is_read_with_the_starts_that_its_rules_saved(tmp_path: Path) -> None:
    raw = json.loads((EXAMPLE / "result.json").read_text(encoding="utf-8"))
    rule = {"trial": 4, "cause": "oom", "limits": [], "withdrawn_by": None, "spared": 3}
    (tmp_path / "result.json").write_text(json.dumps({**raw, "learnt": [rule]}), encoding="utf-8")
    assert [rule.saved for rule in Store(tmp_path).result().learnt] == [3]


def _start_of_before(raw: dict[str, Any]) -> dict[str, Any]:
    """Take the start out of a record, as the first schema had it."""
    start: dict[str, Any] = raw.pop("start")
    return {key: value for key, value in start.items() if key not in ("others", "door", "vllm_version")}
