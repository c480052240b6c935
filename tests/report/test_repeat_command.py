"""The command that the page gives plans the same study: options → plan → command → the same plan."""

from __future__ import annotations

import shlex
import shutil
import stat
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.study.builders import plan
from tuner.cli.options import with_search_options
from tuner.config import Machine, SearchOptions, plan_study
from tuner.environment import Gpu
from tuner.layout import Layout, PlacedLayout, parse_layouts
from tuner.placement import GpuGroup
from tuner.report.conditions import repeat_command
from tuner.report.tables import StudyFiles
from tuner.study.earlier import BeginsWith, Rechecked
from tuner.study.plan import StudyPlan

NOW = datetime(2026, 11, 21, 22, 0, tzinfo=UTC)
FLAGS = (
    "max-num-seqs max-num-batched-tokens gpu-memory-utilization tensor-parallel-size max-model-len data-parallel-size"
)
SPACE = "parameters:\n  max-num-seqs: {log-int: [16, 256]}\n"
MACHINES = {
    0: Machine(),
    4: Machine(tuple(Gpu(i, "NVIDIA H100 80GB HBM3", 79.6, f"GPU-{i}") for i in range(4)), (0, 0, 1, 1)),
}

seconds = st.floats(1, 90_000, allow_nan=False).map(lambda s: round(s, 4))
OPTIONS: dict[str, st.SearchStrategy[object]] = {
    "gpus": st.sampled_from([None, "0", "0-3", "1,3", "0,2,3"]),
    "slos": st.sampled_from([("p99 ttft <= 500ms",), ("p95 ttft <= 1.25s", "p99 tpot <= 33.5ms"), ("p50 e2e <= 9s",)]),
    "workload": st.sampled_from(["chat", "short-qa", "random:32-96,32-64", "prefix:512,100-200,50"]),
    "space": st.sampled_from(["default", "demo", "SPACE FILE"]),
    "max_model_len": st.sampled_from([None, "2048", "3k", "4K"]),
    "trials": st.integers(1, 500),
    "confirm": st.sampled_from([0, 2, 4, 7]),
    "time_budget": st.one_of(st.just("none"), seconds.map(lambda s: f"{s}s"), st.just("1h30m")),
    "patience": st.one_of(st.none(), st.integers(1, 99)),
    "layouts": st.sampled_from(["auto", "4x1,2x2", "1x4", "2x1,1x1x2", "1x2", "1x1"]),
    "tensor_parallel_size": st.sampled_from([None, 1, 2]),
    "door": st.sampled_from(["auto", "both", "vllm", "nginx"]),
    "workers": st.sampled_from([None, 1, 2]),
    "seed": st.integers(0, 2**31),
    "storage": st.sampled_from([None, "postgresql://db/optuna?x='a b'"]),
    "load": st.sampled_from([None, "open", "closed"]),
    "levels": st.sampled_from([None, "1", "4,8,300"]),
    "level_seconds": seconds,
    "probe_seconds": st.one_of(st.none(), seconds),
    "burstiness": st.one_of(st.none(), st.sampled_from([0.3, 1.0, 2.5])),
    "natural_stops": st.booleans(),
    "extra_body": st.sampled_from([None, "{}", '{"top_k": 20, "b": null}', '{"t": {"x": [1, "it\'s"]}, "é": "ü"}']),
    "warm_up_seconds": seconds,
    "start_limit_seconds": seconds,
    "extra": st.sampled_from(
        [
            (),
            ("-tp", "1"),
            ("--pipeline-parallel-size=1", "--block-size", "32"),
            ("--kv-cache-dtype", "fp8", "--served-model-name", "it's mine"),
        ]
    ),
}


@pytest.fixture(scope="module")
def plan_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[SearchOptions], StudyPlan]:
    """Plan options, with the model, the vLLM and the space file of a temporary folder where they are left open."""
    folder = tmp_path_factory.mktemp("repeat")
    (folder / "config.json").write_text('{"max_position_embeddings": 16384}')
    space, vllm = folder / "my space.yaml", folder / "fake vllm"
    space.write_text(SPACE)
    lines = "\n".join(f"  --{flag} X" for flag in FLAGS.split())
    vllm.write_text(f"#!/bin/sh\ncase \"$*\" in *--version*) echo 0.32.0;; *) cat <<'E'\n{lines}\nE\n;; esac\n")
    vllm.chmod(vllm.stat().st_mode | stat.S_IXUSR)

    def plan_options(options: SearchOptions) -> StudyPlan:
        options = replace(options, studies=folder / "studies", model=options.model or str(folder))
        if options.vllm == "vllm serve":
            options = replace(options, vllm=shlex.join([str(vllm), "serve"]))
        if options.space == "SPACE FILE":
            options = replace(options, space=str(space))
        return plan_study(options, MACHINES[4 if options.gpus else 0], NOW, folder / "cache", lambda _: None)[0]

    return plan_options


def parsed(command: str) -> SearchOptions:
    """Parse a command line as `tuner search` does."""
    found: list[SearchOptions] = []

    def keep(options: SearchOptions) -> None:
        found.append(options)

    app = typer.Typer()
    app.command(context_settings={"allow_extra_args": True})(with_search_options(keep))
    words = shlex.split(command)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", words)
        app(words[2:], standalone_mode=False)
    return found[0]


def comparable(plan: StudyPlan) -> StudyPlan:
    base = replace(plan.base, env=tuple((n, v) for n, v in plan.base.env if n != "VLLM_CACHE_ROOT"))
    # Name, storage in the folder and time of planning belong to the one study.
    storage = "" if plan.storage.startswith("sqlite:///") else plan.storage
    return replace(plan, base=base, study="", storage=storage, created_at="")


def fits(layouts: str, units: int) -> bool:
    return units > 1 and all(
        units // layout.ranks == layout.replicas for layout in parse_layouts(layouts) or (Layout(units),)
    )


@given(chosen=st.fixed_dictionaries(OPTIONS))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_command_on_the_page_plans_the_same_study(
    chosen: dict[str, object], plan_of: Callable[[SearchOptions], StudyPlan]
) -> None:
    possible = dict(chosen)
    if possible["gpus"] is not None:
        possible["workers"] = None
    workers = 2 if possible["workers"] == 2 else 1
    units = {"0": 1, "0-3": 4, "1,3": 2, "0,2,3": 3}.get(str(possible["gpus"]), workers)
    if units == 1 and possible["gpus"] is not None:
        possible["tensor_parallel_size"] = None
    if not fits(str(possible["layouts"]), units) or possible["tensor_parallel_size"]:
        possible["layouts"] = "auto"
    if possible["layouts"] != "auto" or possible["tensor_parallel_size"]:
        possible["extra"] = ()
    if possible["levels"] is not None or possible["load"] == "closed":
        possible |= {"load": "closed", "burstiness": None}
    if shutil.which("nginx") is None:
        possible["door"] = "auto"
    made = plan_of(SearchOptions(model="", study="first", **possible))  # type: ignore[arg-type]
    again = plan_of(parsed(repeat_command(StudyFiles(Path(), made, None, None, ()))))
    assert again.study == "first-again"
    assert comparable(again) == comparable(made)
    assert again.space.file == made.space.file


def test_every_option_that_a_plan_records_is_tried() -> None:
    apart = {"model", "vllm", "study", "studies", "earlier", "changed_environment", "given"}
    assert set(OPTIONS) == set(SearchOptions.__dataclass_fields__) - apart


def test_the_command_of_a_search_that_began_with_an_earlier_study_names_it_and_a_rechecks_is_a_recheck(
    tmp_path: Path,
) -> None:
    made = plan(tmp_path / "s")
    begun = replace(made, begins_with=BeginsWith("first one", "0.32.0"))
    assert " --from 'first one' " in repeat_command(StudyFiles(Path(), begun, None, None, ()))
    then = Rechecked("first one", made.baseline, 9.0, None, "0.32.0", "0.1.0")
    again = replace(made, rechecks=then)
    assert repeat_command(StudyFiles(Path(), again, None, None, ())) == "tuner recheck 'first one'"


def test_a_plan_of_before_layouts_is_repeated_with_its_one_size(tmp_path: Path) -> None:
    groups = (GpuGroup((0, 1)), GpuGroup((2, 3)))
    old = replace(plan(tmp_path), layouts=(PlacedLayout(Layout(1, 2), groups),), own_layout=Layout(1, 2))
    words = repeat_command(StudyFiles(tmp_path, old, None, None, ())).split()
    assert words[words.index("--gpus") + 1] == "0,1,2,3"
    assert words[words.index("--tensor-parallel-size") + 1] == "2"
    assert not {"--layouts", "--workers"} & set(words)
