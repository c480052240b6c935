from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.study.builders import REFUSAL, level, plan, record
from tuner.candidate import Candidate
from tuner.jsonfile import TornFileError, dump, dumps, load, loads
from tuner.study.plan import StudyPlan
from tuner.study.record import TrialRecord

values = st.dictionaries(
    st.text(min_size=1, max_size=10), st.one_of(st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())
)


@given(values)
def test_a_candidate_comes_back_as_it_was_written(point: dict[str, bool | int | float | str]) -> None:
    point = {k: v for k, v in point.items() if not (isinstance(v, float) and v in (float("inf"), float("-inf")))}
    made = replace(record(3, Candidate.of(point), (level(10.0), level(12.5, preemptions=None))), cause=REFUSAL)
    back = loads(dumps(made), TrialRecord)
    assert back == made
    assert [type(v) for _, v in back.candidate.values] == [type(v) for _, v in made.candidate.values]


def test_a_plan_comes_back_as_it_was_written(tmp_path: Path) -> None:
    made = plan(tmp_path / "s")
    dump(tmp_path / "plan.json", made)
    assert load(tmp_path / "plan.json", StudyPlan) == made


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
