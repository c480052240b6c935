from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.support import STAND_IN, short_search, tuner
from tests.study.builders import REFUSAL, record
from tuner.candidate import Candidate
from tuner.cli.plan import show_plan
from tuner.cli.tables import Form
from tuner.clock import RealClock
from tuner.config import SearchOptions, plan_study
from tuner.environment import cache_folder
from tuner.machine import this_machine
from tuner.placement import own_cores
from tuner.study.record import TrialOutcome
from tuner.study.store import Store


def test_plan_shows_everything_and_leaves_nothing(tiny_model: str, tmp_path: Path) -> None:
    ended = tuner("plan", *short_search(tiny_model, tmp_path / "studies", "planned"), "--patience", "30")
    assert ended.returncode == 0, ended.stderr
    words = {line.split()[0] for line in ended.stdout.splitlines() if line and not line.startswith(" ")}
    assert {"study", "model", "vLLM", "limits", "workload", "load", "searched", "default", "starts", "first"} <= words
    assert "max-num-seqs" in ended.stdout
    assert "patience  the search ends after 30 starts without 1 % more QPS" in ended.stdout
    assert "asking" in ended.stderr
    assert not (tmp_path / "studies").exists()


@pytest.mark.skipif(len(own_cores()) < 2, reason="two workers need two cores")
def test_plan_shows_the_layouts_of_workers_and_how_the_defaults_server_starts(tiny_model: str, tmp_path: Path) -> None:
    ended = tuner("plan", *short_search(tiny_model, tmp_path, "planned"), "--workers", "2", "--door", "vllm")
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("layouts"))
    assert lines[at].split()[:2] == ["layouts", "2x1"] and "cpu0, cpu1" in lines[at]
    assert lines[at + 1].split()[0] == "1x2" and lines[at + 1].endswith("cpu0-1 (the default's)")
    assert lines[at + 2] == "door      vllm"
    (first,) = (line for line in lines if line.startswith("first"))
    assert "VLLM_CPU_OMP_THREADS_BIND='" in first and "|" in first and "--tensor-parallel-size 2" in first


def test_plan_as_json_is_the_plan_that_would_be_saved(tiny_model: str, tmp_path: Path) -> None:
    flags = short_search(tiny_model, tmp_path, "planned")
    ended = tuner("plan", *flags, "--json", "--", "--api-key", "s3cret", "--kv-cache-dtype", "fp8")
    plan = json.loads(ended.stdout)
    assert plan["study"] == "planned"
    assert plan["starts"] == 2
    assert plan["base"]["extra"] == ["--kv-cache-dtype", "fp8"]
    assert "s3cret" not in ended.stdout + ended.stderr


def test_plan_of_a_study_that_was_begun_says_what_its_refused_starts_showed(
    tiny_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = SearchOptions(tiny_model, space="demo", vllm=STAND_IN, study="begun", studies=tmp_path)
    made, environment = plan_study(options, this_machine(), RealClock().wall(), cache_folder(), lambda _: None)
    store = Store(tmp_path / "begun")
    store.create()
    store.save_plan(made, environment)
    little = Candidate.of({p.flag: p.decode(p.axis[0]) for p in made.parameters})
    store.save_record(record(3, little, outcome=TrialOutcome.REFUSED, cause=REFUSAL))
    show_plan(options, Form.TEXT)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("learnt")]
    assert lines == ["learnt    not started any more: kv-cache-memory-bytes ≤ 12,582,912 (kv-too-small, trial 0003)"]
