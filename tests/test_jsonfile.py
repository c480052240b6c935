from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.report.every_value import EVERY_NOTE
from tests.study.builders import REFUSAL, level, record
from tuner.candidate import Candidate
from tuner.jsonfile import DiskWarning, NewerFileError, TornFileError, dump, dumps, load, loads, write_atomically
from tuner.study.record import TrialRecord


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, slots=True)
class RunLadder:
    levels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ClaimRate:
    rate: float
    colour: Colour = Colour.RED


@dataclass(frozen=True, slots=True)
class Labelled:
    kind: str


@dataclass(frozen=True, slots=True)
class Job:
    task: RunLadder | ClaimRate
    then: RunLadder | ClaimRate | None = None
    pair: tuple[int, str] = (1, "a")
    shares: dict[str, float] | None = None
    more: tuple[RunLadder | ClaimRate, ...] = ()
    sure: bool = True
    value: bool | int | str = "x"
    bad: Labelled | RunLadder | None = None


values = st.dictionaries(
    st.text(min_size=1, max_size=10), st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
)


@given(values)
def test_a_candidate_comes_back_as_it_was_written(point: dict[str, bool | int | float | str]) -> None:
    point = {k: v for k, v in point.items() if not (isinstance(v, float) and v in (float("inf"), float("-inf")))}
    made = record(3, Candidate.of(point), (level(10.0), level(12.5, preemptions=None)), cause=REFUSAL)
    back = loads(dumps(made), TrialRecord)
    assert back == made
    assert [type(v) for _, v in back.candidate.values] == [type(v) for _, v in made.candidate.values]


@given(st.integers(0, 2000))
def test_a_file_cut_short_anywhere_is_torn_never_a_traceback_of_another_kind(cut: int) -> None:
    text = dumps(record(3, Candidate(), (level(10.0),))).rstrip()
    if cut < len(text):
        with pytest.raises(ValueError):
            loads(text[:cut], TrialRecord)


@pytest.mark.parametrize(
    ("key", "value"), [("trial", "three"), ("outcome", "splendid"), ("levels", 3), ("novel", 1), ("candidate", [])]
)
def test_a_wrong_value_is_named_by_its_key(tmp_path: Path, key: str, value: object) -> None:
    raw = json.loads(dumps(record(3, Candidate())))
    raw[key] = value
    path = tmp_path / "record.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(TornFileError, match=r"record\.json"):
        load(path, TrialRecord)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    dump(path, record(1, Candidate()))
    before = path.read_bytes()
    with pytest.raises(ValueError, match="nan"):
        dump(path, record(1, Candidate(), (level(float("nan")),)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


JOBS = (
    Job(RunLadder((1, 2))),
    Job(ClaimRate(2.5), RunLadder(()), (7, "ß"), {"a": 0.5}, (ClaimRate(1.0), RunLadder((3,))), False, True),
)


@pytest.mark.parametrize("job", JOBS)
def test_unions_of_dataclasses_come_back_as_the_member_that_was_written(job: Job) -> None:
    assert loads(dumps(job), Job) == job


def test_a_union_writes_the_class_name_in_kebab_case_as_its_kind() -> None:
    raw = json.loads(dumps(JOBS[1]))
    assert raw["task"] == {"kind": "claim-rate", "rate": 2.5, "colour": "red"}
    assert [entry["kind"] for entry in raw["more"]] == ["claim-rate", "run-ladder"]
    assert "kind" not in json.loads(dumps(RunLadder((1,))))


def test_every_note_of_a_record_comes_back() -> None:
    noted = replace(record(3, Candidate()), notes=EVERY_NOTE)
    assert loads(dumps(noted), TrialRecord) == noted


def test_a_member_with_a_field_named_kind_is_not_written() -> None:
    with pytest.raises(AssertionError, match="Labelled"):
        dumps(Job(RunLadder(()), bad=Labelled("x")))


def test_an_integer_is_read_as_a_float_where_a_float_belongs() -> None:
    rate = loads('{"rate": 3}', ClaimRate).rate
    assert (rate, type(rate)) == (3.0, float)


TASK = {"kind": "run-ladder", "levels": [1]}


@pytest.mark.parametrize(
    ("fields", "where", "fault"),
    [
        ({"task": {"levels": [1]}}, "Job.task", "has no kind of run-ladder, claim-rate"),
        ({"task": {"kind": "saturate"}}, "Job.task", "has no kind of"),
        ({"task": None}, "Job.task", "has no kind of"),
        ({"task": {**TASK, "rate": 1.0}}, "Job.task", "unknown key 'rate'"),
        ({"task": {"kind": "run-ladder", "levels": [1, "2"]}}, "Job.task.levels[1]", "'2' is not int"),
        ({"task": {"kind": "run-ladder", "levels": [True]}}, "Job.task.levels[0]", "True is not int"),
        ({"task": {"kind": "run-ladder", "levels": "12"}}, "Job.task.levels", "'12' is not list"),
        ({"task": {"kind": "run-ladder"}}, "Job.task.levels", "missing"),
        ({"task": {"kind": "claim-rate", "rate": "3"}}, "Job.task.rate", "'3' is not float"),
        ({"task": {"kind": "claim-rate", "rate": 1, "colour": "blue"}}, "Job.task.colour", "blue"),
        ({"more": [TASK, {"kind": "run-ladder", "levels": [0.5]}]}, "Job.more[1].levels[0]", "0.5 is not int"),
        ({"pair": [1]}, "Job.pair", ""),
        ({"pair": [1, 2]}, "Job.pair[1]", "2 is not str"),
        ({"shares": {"a": "b"}}, "Job.shares['a']", "'b' is not float"),
        ({"shares": [1.0]}, "Job.shares", "is not dict"),
        ({"sure": 1}, "Job.sure", "1 is not bool"),
        ({"value": 0.5}, "Job.value", "0.5"),
        ({"value": None}, "Job.value", "None"),
        ({"novel": 1}, "Job", "unknown key 'novel'"),
    ],
)
def test_a_fault_is_named_by_its_path(fields: dict[str, object], where: str, fault: str) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(where)}: .*{re.escape(fault)}"):
        loads(json.dumps({"task": TASK, **fields}), Job)


@pytest.mark.parametrize("old", ['{"schema": 1}', '{"schema": 1, "task": 3}', '{"schema": 1, "task": {}}'])
def test_an_edited_file_of_an_older_schema_is_torn(old: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(old)
    with pytest.raises(TornFileError, match=r"record\.json"):
        load(path, Job, lambda raw: {"task": {"kind": "run-ladder", **raw["task"]["levels"]}})


def test_another_json_value_than_an_object_is_no_record() -> None:
    with pytest.raises(ValueError, match="is not dict"):
        loads("[]", Job)


@pytest.mark.parametrize("text", ["caf\udce9", "\ud800", "\udfff\ud800", "ok"])
def test_text_that_utf_8_cannot_write_comes_back(text: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    dump(path, Job(RunLadder(()), pair=(1, text)))
    assert load(path, Job).pair == (1, text)


@dataclass(frozen=True, slots=True)
class Kept:
    trial: int
    schema: int = 2


def test_a_file_of_a_newer_schema_says_so_and_is_not_called_torn(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    path.write_text('{"trial": 1, "schema": 3, "more": []}')
    with pytest.raises(NewerFileError, match=r"kept\.json: made by a newer tuner \(schema 3, this one knows 2\)"):
        load(path, Kept, lambda raw: raw["nothing"])
    path.write_text('{"trial": 1, "schema": 2}')
    assert load(path, Kept) == Kept(1)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ESTALE, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_fsync_costs_a_caution_and_no_file(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.warns(DiskWarning, match="no fsync"):
        dump(tmp_path / "record.json", Kept(1))
    assert load(tmp_path / "record.json", Kept) == Kept(1)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_lost_the_data_is_an_error(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(number))
    with pytest.raises(OSError):
        dump(tmp_path / "record.json", Kept(1))
    assert list(tmp_path.iterdir()) == []


def failing(number: int) -> Callable[[int], None]:
    def fails(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    return fails


def test_a_file_has_the_mode_that_was_asked_for_from_its_beginning(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "start.sh", b"", mode=0o777)
        write_atomically(tmp_path / "secret", b"", mode=0o600)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("start.sh", "secret")]
    assert modes == [0o750, 0o600]
