"""A finished study, the start of its winner, and a `vllm` on PATH that is not vLLM."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.report.studies import Study, build_study
from tuner.deploy.recorded import Recorded
from tuner.launch import Door, deployment
from tuner.layout import Layout, PlacedLayout
from tuner.placement import GpuGroup


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return build_study(tmp_path_factory.mktemp("studies"), telemetry=False)


@pytest.fixture
def recorded(study: Study) -> Recorded:
    """The winner's first fresh start."""
    assert study.result is not None and study.result.winner is not None
    record = study.records[study.result.winner.trials[0]]
    return Recorded(record, study.result, study.plan, study.environment)


@pytest.fixture
def local(recorded: Recorded) -> Recorded:
    """The same on this machine: no GPU, no numactl, no secret, the stand-in for vLLM."""
    env = tuple((n, v) for n, v in recorded.launch.env if n != "CUDA_VISIBLE_DEVICES")
    launch = dataclasses.replace(recorded.launch, prefix=(), secret_env=(), env=env, gpus=())
    return with_launch(recorded, launch=launch)


@pytest.fixture
def several(recorded: Recorded) -> Recorded:
    """The winner's confirmation on both GPUs, behind nginx."""
    return on_the_machine(recorded, Door.NGINX)


@pytest.fixture
def engines(recorded: Recorded) -> Recorded:
    """The same behind vLLM's own door."""
    return on_the_machine(recorded, Door.VLLM)


@pytest.fixture
def one_of_several(several: Recorded, recorded: Recorded) -> Recorded:
    """A search trial of one server that stands for two."""
    record = dataclasses.replace(recorded.record, replicas=2)
    plan = dataclasses.replace(several.plan, doors=(Door.NGINX, Door.VLLM))
    return dataclasses.replace(recorded, record=record, plan=plan)


def on_the_machine(recorded: Recorded, door: Door, groups: tuple[GpuGroup, ...] = ()) -> Recorded:
    """Start the recorded candidate on all groups, in a study whose one layout has a server on each."""
    groups = groups or recorded.plan.groups
    layout = Layout(len(groups))
    fixed = (*recorded.plan.base.fixed, *((k, v) for k, v in layout.flags.items() if v != 1))
    plan = dataclasses.replace(
        recorded.plan,
        base=dataclasses.replace(recorded.plan.base, fixed=fixed),
        layouts=(PlacedLayout(layout, groups),),
        own_layout=layout,
        doors=(door,),
    )
    launch, *others = deployment(plan.base, recorded.record.candidate, groups, door).specs
    started = with_launch(recorded, launch=launch, others=tuple(others), door=door)
    return dataclasses.replace(started, plan=plan)


def with_launch(recorded: Recorded, **changes: object) -> Recorded:
    start = dataclasses.replace(recorded.record.start, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(recorded, record=dataclasses.replace(recorded.record, start=start))


@pytest.fixture
def vllm_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "vllm"
    stand_in = Path(__file__).with_name("stand_in.py")
    program.write_text(f"#!{sys.executable}\nimport runpy\nrunpy.run_path({str(stand_in)!r}, run_name='__main__')\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return program


def assert_clean_bash(*paths: Path) -> None:
    """Assert that scripts are executable and parse, and that shellcheck finds nothing. Skips without shellcheck."""
    for path in paths:
        assert os.access(path, os.X_OK)
        subprocess.run(["bash", "-n", str(path)], check=True)
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("no shellcheck here")
    checked = subprocess.run([shellcheck, *map(str, paths)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
