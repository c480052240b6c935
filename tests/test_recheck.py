"""`tuner recheck`: what is planned beside the finished study, what is refused, and a whole recheck on the stand-in."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.cli.support import tuner
from tests.faults.study_run import make_plan
from tests.report.studies import ENVIRONMENT, FOUR_GPUS, build_layouts_study, build_study
from tests.report.surface import LAYOUTS_PLAN, PLAN
from tests.study.builders import landscape
from tests.study.study_run import StudyRun
from tuner import jsonfile
from tuner.candidate import Candidate
from tuner.config import Machine
from tuner.environment import Environment
from tuner.errors import EnvironmentFaultError, TunerError, UsageError
from tuner.launch import Door
from tuner.recheck import plan_recheck
from tuner.secret_words import part_command
from tuner.study.plan import StudyPlan
from tuner.study.result import Decision, StudyResult
from tuner.study.store import Store

NOW = datetime(2026, 12, 3, 9, 0, tzinfo=UTC)
TODAY = Machine(ENVIRONMENT.gpus, (0, 1), driver="580.1")
FLAGS = (
    "enable-chunked-prefill", "gpu-memory-utilization", "long-prefill-token-threshold", "max-num-batched-tokens",
    "max-num-seqs", "max-model-len", "tensor-parallel-size", "data-parallel-size",
)  # fmt: skip


def vllm(folder: Path, flags: tuple[str, ...] = FLAGS, version: str = "0.33.0") -> str:
    """Write a program whose help names these flags. It can start no server."""
    path = folder / "later-vllm"
    lines = "\n".join(f"  --{flag} X" for flag in flags)
    path.write_text(f"#!/bin/sh\ncase \"$*\" in *--version*) echo {version};; *) cat <<'E'\n{lines}\nE\n;; esac\n")
    path.chmod(0o755)
    return f"{path} serve"


def planned(study: Path, command: str, machine: Machine = TODAY) -> tuple[StudyPlan, Environment]:
    return plan_recheck(Store(study), part_command(command), machine, NOW, study.parent / "flags", lambda _: None)


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_TOKEN", "s3cret")
    return build_study(tmp_path / "studies", telemetry=False).folder


def changed(study: Path, **changes: object) -> None:
    path = study / "result.json"
    jsonfile.dump(path, dataclasses.replace(jsonfile.load(path, StudyResult), **changes))  # type: ignore[arg-type]


def test_a_recheck_is_a_study_of_its_own_with_the_winner_the_default_and_todays_software(
    finished: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    plan, environment = planned(finished, vllm(tmp_path))
    won = jsonfile.load(finished / "result.json", StudyResult)
    assert won.winner is not None and plan.rechecks is not None
    assert plan.study == f"{PLAN.study}-recheck-1203"
    assert (plan.rechecks.study, plan.rechecks.candidate) == (PLAN.study, won.winner.candidate)
    assert (plan.rechecks.vllm_version, plan.vllm_version, environment.vllm_version) == ("0.32.0", "0.33.0", "0.33.0")
    assert environment.driver == "580.1"
    assert plan.baseline == PLAN.baseline
    assert (plan.slos, plan.workload, plan.load) == (PLAN.slos, PLAN.workload, PLAN.load)
    assert f"{finished}/" not in plan.storage
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_recheck_of_a_recheck_has_no_ever_longer_name(finished: Path, tmp_path: Path) -> None:
    for suffix in ("-recheck-1121", "-recheck-1121-2"):
        again = finished.rename(finished.parent / f"{PLAN.study}{suffix}")
        assert planned(again, vllm(tmp_path))[0].study == f"{PLAN.study}-recheck-1203"
        finished = again


def without_gpu_1(_: Path) -> Machine:
    return Machine(ENVIRONMENT.gpus[:1], (0,))


def with_another_gpu(_: Path) -> Machine:
    other = dataclasses.replace(ENVIRONMENT.gpus[1], name="NVIDIA L40S")
    return Machine((ENVIRONMENT.gpus[0], other), (0, 1))


def interrupted(study: Path) -> None:
    changed(study, complete=False)


def before_its_first_result(study: Path) -> None:
    (study / "result.json").unlink()


def keeps_the_default(study: Path) -> None:
    changed(study, decision=Decision.KEEP_DEFAULT)


def not_confirmed(study: Path) -> None:
    changed(study, decision=Decision.NOT_CONFIRMED)


def nothing_feasible(study: Path) -> None:
    changed(study, decision=Decision.NOTHING_FEASIBLE, winner=None)


@pytest.mark.parametrize(
    ("spoil", "kind", "says", "hint"),
    [
        (interrupted, UsageError, "is not finished", f"tuner resume {PLAN.study}"),
        (before_its_first_result, UsageError, "is not finished", f"tuner resume {PLAN.study}"),
        (keeps_the_default, UsageError, "no winner to recheck: it kept vLLM's default", "tuner search --from "),
        (not_confirmed, UsageError, "no winner to recheck: nothing was confirmed", "tuner search --from "),
        (nothing_feasible, UsageError, "no winner to recheck: nothing kept the limits", "tuner search --from "),
        (without_gpu_1, EnvironmentFaultError, "GPU 1 is not there", "GPUs of this machine: 0;"),
        (with_another_gpu, EnvironmentFaultError, "GPU 1 was NVIDIA H100 80GB HBM3", "search again"),
    ],
)
def test_what_cannot_be_rechecked_is_refused_before_vllm_is_asked(
    spoil: Callable[[Path], Machine | None], kind: type[TunerError], says: str, hint: str, finished: Path
) -> None:
    machine = spoil(finished) or TODAY
    with pytest.raises(kind) as refused:
        planned(finished, "false serve", machine)
    assert says in refused.value.message
    assert hint in refused.value.hint
    assert [path.name for path in finished.parent.iterdir()] == [PLAN.study]


@pytest.mark.parametrize("lost", ["max-num-batched-tokens", "max-num-seqs", "max-model-len"])
def test_a_flag_of_the_launches_that_this_vllm_lacks_is_named(lost: str, finished: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFaultError) as refused:
        # `--max-num-seqs` is how a vLLM is known.
        kept = tuple(flag for flag in FLAGS if flag != lost) + (("max-num-seqs-x",) if lost == "max-num-seqs" else ())
        planned(finished, vllm(tmp_path, kept))
    assert lost in refused.value.message


def test_a_secret_that_the_servers_need_is_asked_for(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UsageError, match="HF_TOKEN is not set"):
        planned(finished, vllm(tmp_path))


def test_another_model_at_the_same_place_is_refused(finished: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    plan = jsonfile.load(finished / "plan.json", StudyPlan)
    jsonfile.dump(finished / "plan.json", dataclasses.replace(plan, model=str(model)))
    with pytest.raises(UsageError, match=r"config\.json has changed"):
        planned(finished, vllm(tmp_path))


def test_several_servers_need_a_door_that_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "s3cret")
    monkeypatch.setattr("tuner.recheck.nginx_program", lambda: "/usr/sbin/nginx")
    study = build_layouts_study(tmp_path / "studies", telemetry=False).folder
    four = Machine(FOUR_GPUS.gpus, (0, 0, 1, 1))
    plan, _ = planned(study, vllm(tmp_path), four)
    assert plan.doors == (Door.NGINX,) and not plan.compares_doors
    monkeypatch.setattr("tuner.recheck.nginx_program", lambda: None)
    with pytest.raises(EnvironmentFaultError) as refused:
        planned(study, vllm(tmp_path), four)
    assert "nginx is not installed" in refused.value.message
    assert LAYOUTS_PLAN.doors == (Door.NGINX,)


def test_a_whole_recheck_on_the_stand_in_leaves_the_study_alone_and_is_told_from_it(
    tiny_model: str, tmp_path: Path
) -> None:
    made = make_plan(tmp_path / "studies" / "won", tiny_model, starts=2, confirm_starts=2)
    fast = Candidate.of({"max-num-seqs": 64})
    assert StudyRun(made, landscape, [fast]).loop.run().decision is Decision.WINNER
    before = {path: path.read_bytes() for path in (tmp_path / "studies").rglob("*.json")}
    ended = tuner("recheck", "won", "--studies", "studies", "--plain", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("Still +")
    assert " over the default with vLLM 0.32.0+sim; in won it was +" in ended.stdout
    (again,) = (tmp_path / "studies").glob("won-recheck-*")
    assert "rechecks  won: 68.0 req/s, +" in ended.stderr
    assert "vLLM      0.32.0 → 0.32.0+sim" in ended.stderr
    assert {path: path.read_bytes() for path in before} == before
    assert jsonfile.load(again / "result.json", StudyResult).decision is Decision.WINNER
    listed = tuner("studies", "--studies", "studies", cwd=tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in listed if line.endswith("recheck of won")] == [again.name]
    assert "recheck of won" in tuner("status", again.name, "--studies", "studies", cwd=tmp_path).stdout
    page = (again / "report.html").read_text()
    assert "rechecks the winner of" in page and "<span>recheck</span> <span>won</span>" in page
