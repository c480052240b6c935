"""Every format: against golden files, against the tools that read it, and back to the recorded words.

TUNER_WRITE_GOLDEN=1 pytest tests/deploy writes the golden files anew; read the difference before you commit it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.conftest import with_launch
from tests.report.studies import Study
from tuner.deploy.formats import FORMATS, file_name, render
from tuner.deploy.kubernetes import object_name
from tuner.deploy.recorded import STOP_MARGIN_S, Recorded, recorded_in
from tuner.deploy.start import stop_script
from tuner.errors import UsageError
from tuner.launch import LaunchSpec
from tuner.report.conditions import environment_rows
from tuner.report.tables import read_study
from tuner.report.translations import Language, Words
from tuner.study.record import TrialRecord

GOLDEN = Path(__file__).with_name("golden")
NASTY = ("a b", "$HOME $(id) ${X}", "%h", "it's", '"q"', "back\\slash", "*", "", "-1", '{"a": "ü"}', "new\nline", "yes")


def text(recorded: Recorded, format: str, *, gpu_price: float | None = None, replicas: int | None = None) -> str:
    return render(format, recorded, gpu_price=gpu_price, replicas=replicas)


@pytest.fixture
def nasty(recorded: Recorded) -> Recorded:
    """A launch whose every word and value has a meaning somewhere else."""
    words = ("/models/my model", *(w for i, value in enumerate(NASTY) for w in (f"--flag-{i}", value)))
    launch = dataclasses.replace(
        recorded.launch, prefix=(), arguments=words, flags=(), env=(("ODD", "a $b %c 'd' \"e\""),)
    )
    plan = dataclasses.replace(recorded.plan, model="/models/my model")
    return dataclasses.replace(with_launch(recorded, launch=launch), plan=plan)


@pytest.mark.parametrize("format", FORMATS)
def test_formats_are_as_the_golden_files(recorded: Recorded, format: str) -> None:
    as_golden(recorded, format, GOLDEN)


@pytest.mark.parametrize("format", FORMATS)
def test_formats_of_several_servers_are_as_the_golden_files(several: Recorded, format: str) -> None:
    as_golden(several, format, GOLDEN / "several")


def as_golden(recorded: Recorded, format: str, folder: Path) -> None:
    path = folder / file_name(format, recorded)
    made = text(recorded, format, gpu_price=2.5)
    if os.environ.get("TUNER_WRITE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(made, encoding="utf-8")
    assert made == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("format", FORMATS)
def test_no_format_holds_a_secret_or_the_studys_folder(
    recorded: Recorded, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    made = text(recorded, format)
    assert "hf_very_secret" not in made
    if format not in ("sh", "json"):  # start.sh uses the cache while it is there, json is the record itself
        assert "/data/studies" not in made


@pytest.mark.parametrize("format", [f for f in FORMATS if f not in ("args", "json")])
def test_text_from_outside_stays_in_the_comment(recorded: Recorded, format: str) -> None:
    plan = dataclasses.replace(
        recorded.plan,
        study="s\nINJECTED=1",
        workload=dataclasses.replace(recorded.plan.workload, name="w\r\nINJECTED=1\x1b[31m"),
    )
    made = text(dataclasses.replace(recorded, plan=plan), format)
    assert not [line for line in made.splitlines() if line.startswith("INJECTED")]
    assert "\x1b" not in made


def test_arguments_come_back_from_a_shell(recorded: Recorded, nasty: Recorded) -> None:
    for chosen in (recorded, nasty):
        assert tuple(shlex.split(text(chosen, "args"))) == chosen.launch.arguments


def vllm_reads(config: str) -> list[str]:
    """Read a config file as vLLM does: FlexibleArgumentParser.load_config_file of 0.32 in four lines."""
    words: list[str] = []
    for key, value in yaml.safe_load(config).items():
        if value is True:
            words.append(f"--{key}")
        else:
            words += [f"--{key}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return words


def test_vllm_reads_the_recorded_words_back_from_the_config_file(recorded: Recorded, nasty: Recorded) -> None:
    for chosen in (recorded, nasty):
        model, *flags = chosen.launch.arguments
        assert vllm_reads(text(chosen, "yaml")) == ["--model", model, *flags]


def test_short_options_go_to_the_command_line_of_the_config_file(recorded: Recorded) -> None:
    words = ("m", "-tp", "4", "-O3", "--sizes", "1", "2", "--x=1", "--no-y")
    made = text(with_launch(recorded, launch=dataclasses.replace(recorded.launch, arguments=words, flags=())), "yaml")
    entries = yaml.safe_load(made)
    assert entries == {"model": "m", "tensor-parallel-size": 4, "sizes": [1, 2], "x": 1, "no-y": True}
    assert "vllm serve --config vllm.yaml -O3 --host" in made


def test_the_config_file_holds_the_last_of_a_flag_however_it_was_spelt(recorded: Recorded) -> None:
    words = ("m", "--max_num_seqs", "4", "--eager", "--no-eager", "--eager", "--max-num-seqs=8", "-tp", "2", "-tp=4")
    made = text(with_launch(recorded, launch=dataclasses.replace(recorded.launch, arguments=words, flags=())), "yaml")
    assert yaml.safe_load(made) == {"model": "m", "max-num-seqs": 8, "eager": True, "tensor-parallel-size": 4}


def container_words(service: dict[str, list[str]]) -> tuple[str, ...]:
    return tuple(word.replace("$$", "$") for word in service["command"])


def test_compose_runs_the_recorded_arguments(recorded: Recorded, nasty: Recorded) -> None:
    for chosen in (recorded, nasty):
        made = yaml.safe_load(text(chosen, "compose"))
        service = made["services"]["vllm"]
        assert container_words(service) == (*chosen.launch.arguments, "--host", "0.0.0.0", "--port", "8000")
        assert service["image"] == "vllm/vllm-openai:v0.32.0" if chosen.gpus else True
        assert "HF_TOKEN" in service["environment"]
        assert service["ports"] == ["${HOST:-127.0.0.1}:${PORT:-8000}:8000"]
    assert "/models/my model:/models/my model:ro" in service["volumes"]
    devices = yaml.safe_load(text(recorded, "compose"))["services"]["vllm"]["deploy"]["resources"]["reservations"]
    assert devices["devices"][0]["device_ids"] == ["0"]


@pytest.mark.parametrize("changed_after", [0, 1])
def test_files_name_the_vllm_that_the_quoted_runs_used(study: Study, changed_after: int) -> None:
    files = read_study(study.folder)
    assert files.winner is not None and len(files.winner.trials) > 1
    first_new = files.winner.trials[changed_after]

    def with_version(record: TrialRecord) -> TrialRecord:
        version = "0.33.1+cu129" if record.trial >= first_new else "0.32.0"
        return dataclasses.replace(record, start=dataclasses.replace(record.start, vllm_version=version))

    upgraded = dataclasses.replace(files, records=tuple(map(with_version, files.records)))
    recorded = recorded_in(upgraded)
    assert "versions  vLLM 0.33.1+cu129, driver" in text(recorded, "sh")
    assert "vllm/vllm-openai:v0.33.1" in text(recorded, "compose")
    assert json.loads(text(recorded, "json"))["environment"]["vllm_version"] == "0.33.1+cu129"
    early = next(record for record in files.records if record.role.searches and record.qps is not None)
    assert recorded_in(upgraded, early.trial).environment.vllm_version == "0.32.0"
    rows = {row.key: row.text for row in environment_rows(upgraded, Words(Language.ENGLISH))}
    assert rows["env-vllm"] == "0.32.0, 0.33.1+cu129"


def test_a_cpu_build_has_its_own_image_and_no_gpus(local: Recorded) -> None:
    environment = dataclasses.replace(local.environment, vllm_version="0.32.0+cpu", gpus=())
    service = yaml.safe_load(text(dataclasses.replace(local, environment=environment), "compose"))["services"]["vllm"]
    assert service["image"].endswith("vllm-cpu-release-repo:v0.32.0")
    assert "deploy" not in service


def test_a_recorded_container_keeps_its_image(local: Recorded) -> None:
    launch = LaunchSpec((), ("docker", "run", "--gpus", "all", "me/vllm:7"), ("--model", "m"), (("A", "1"),))
    service = yaml.safe_load(text(with_launch(local, launch=launch), "compose"))["services"]["vllm"]
    assert (service["image"], service["command"][:2]) == ("me/vllm:7", ["--model", "m"])
    assert "entrypoint" not in service


def test_a_python_command_runs_in_the_image_too(local: Recorded) -> None:
    command = ("/opt/venv/bin/python3.12", "-m", "vllm.entrypoints.openai.api_server")
    launch = dataclasses.replace(local.launch, command=command)
    service = yaml.safe_load(text(with_launch(local, launch=launch), "compose"))["services"]["vllm"]
    assert service["entrypoint"] == ["python3", "-m", "vllm.entrypoints.openai.api_server"]


def test_compose_accepts_it(recorded: Recorded, nasty: Recorded, several: Recorded, tmp_path: Path) -> None:
    programs = (["docker", "compose"], ["docker-compose"])
    program = next((p for p in programs if _answers([*p, "version"])), None)
    if program is None:
        pytest.skip("no docker compose here")
    for chosen in (recorded, nasty, several):
        (tmp_path / "compose.yaml").write_text(text(chosen, "compose"))
        command = [*program, "-f", "compose.yaml", "config", "--quiet"]
        checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert checked.returncode == 0, checked.stderr


def test_kubernetes_objects_fit_their_schema(recorded: Recorded, nasty: Recorded, several: Recorded) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    for chosen in (recorded, nasty, several):
        objects = list(yaml.safe_load_all(text(chosen, "k8s", replicas=2)))
        assert [o["kind"] for o in objects] == ["Deployment", "Service"]
        for one in objects:
            validate.validate(one, "1.34", strict=True)


def test_kubernetes_runs_the_recorded_arguments(recorded: Recorded, nasty: Recorded) -> None:
    for chosen in (recorded, nasty):
        deployment, service = yaml.safe_load_all(text(chosen, "k8s"))
        pod = deployment["spec"]["template"]["spec"]
        vllm = pod["containers"][0]
        given = tuple(word.replace("$$(", "$(") for word in vllm["args"])
        assert given == (*chosen.launch.arguments, "--host", "0.0.0.0", "--port", "8000")
        assert {p["name"] for p in vllm["ports"]} == {service["spec"]["ports"][0]["targetPort"]}
        assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
        assert {m["name"] for m in vllm["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
        probe = vllm["startupProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] >= chosen.plan.start_limit_s
        assert pod["terminationGracePeriodSeconds"] == chosen.stop_s


@pytest.mark.parametrize(
    ("study", "name"),
    [("qwen3-32b", "vllm-qwen3-32b"), ("A_b.c+9", "vllm-a-b-c-9"), ("x" * 90, "vllm-" + "x" * 58), ("研究", "vllm")],
)
def test_a_studys_name_becomes_a_name_that_kubernetes_takes(study: str, name: str) -> None:
    assert object_name(study) == name


def test_systemd_accepts_the_unit(recorded: Recorded, nasty: Recorded, several: Recorded, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    for chosen in (recorded, nasty, several):
        unit = tmp_path / file_name("systemd", chosen)
        unit.write_text(text(chosen, "systemd"))
        checked = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=60
        )
        complaints = [line for line in checked.stderr.splitlines() if "vllm" in line]
        assert (checked.returncode, complaints) == (0, [])


def test_systemd_quotes_what_it_would_expand(nasty: Recorded) -> None:
    made = text(nasty, "systemd")
    assert '--flag-1 "$$HOME $$(id) $${X}"' in made
    assert "--flag-2 %%h" in made
    assert '--flag-7 ""' in made
    assert '"new\\nline"' in made
    assert 'Environment="ODD=a $b %%c \'d\' \\"e\\""' in made


def test_json_tells_launch_figures_and_cost(recorded: Recorded) -> None:
    made = json.loads(text(recorded, "json", gpu_price=3.6))
    figures = recorded.figures
    assert figures is not None
    assert made["launches"][0]["arguments"] == list(recorded.launch.arguments)
    per_thousand = 3.6 / 3600 / figures.qps * 1000
    assert made["chosen"]["cost_per_thousand_requests"] == pytest.approx(per_thousand)
    assert made["chosen"]["cost_per_million_output_tokens"] == pytest.approx(per_thousand / 203 * 1000)
    assert made["default"]["cost_per_thousand_requests"] > made["chosen"]["cost_per_thousand_requests"]
    assert json.loads(text(recorded, "json"))["chosen"]["cost_per_thousand_requests"] is None


def test_formats_come_from_the_studys_files(study: Study, recorded: Recorded) -> None:
    found = recorded_in(read_study(study.folder))
    for format in FORMATS:
        assert render(format, found) == text(recorded, format)
    with pytest.raises(UsageError, match="no format 'docker'"):
        render("docker", found)
    with pytest.raises(UsageError, match="holds no study"):
        read_study(study.folder / "nowhere")


def _answers(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=30).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "words", [("--shutdown-timeout", "60"), ("--shutdown_timeout", "60"), ("--shutdown_timeout=60",)]
)
def test_every_file_waits_for_the_users_shutdown_timeout(recorded: Recorded, words: tuple[str, ...]) -> None:
    arguments = ("m", "--shutdown-timeout", "10", *words)
    chosen = with_launch(recorded, launch=dataclasses.replace(recorded.launch, arguments=arguments, flags=()))
    wait_s = 60 + STOP_MARGIN_S
    assert f"STOP_TIMEOUT:-{wait_s}" in stop_script(chosen)
    assert f"TimeoutStopSec={wait_s}" in text(chosen, "systemd")
    deployment, _ = yaml.safe_load_all(text(chosen, "k8s"))
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == wait_s
    assert yaml.safe_load(text(chosen, "compose"))["services"]["vllm"]["stop_grace_period"] == f"{wait_s}s"
