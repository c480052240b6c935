"""Every format of a deployment of several servers: GPUs, ports, door, figures."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.deploy.conftest import assert_clean_bash, on_the_machine, with_launch
from tests.deploy.ports import free_port
from tuner.deploy.formats import FORMATS, file_name, render
from tuner.deploy.nginx import nginx_conf
from tuner.deploy.recorded import Recorded, header, prefixes_text
from tuner.deploy.start import start_script, write_pair
from tuner.launch import Door
from tuner.load.workload import workload
from tuner.placement import GpuGroup
from tuner.study.result import DoorFigures


def started_words(script: str, number: int, env: dict[str, str]) -> list[str]:
    """The words of one server's array in start.sh, as bash reads them."""
    top = script.partition("\n# ── Below")[0]
    shown = subprocess.run(
        ["bash", "-c", f'{top}\nprintf "%s\\0" "${{server_{number}[@]}}" "${{arguments[@]}}"'],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=True,
    )
    return shown.stdout.split("\0")[:-1]


def test_start_gives_each_server_its_gpus_and_its_numa_node(several: Recorded) -> None:
    script = start_script(several)
    for number, launch in enumerate(several.launches, start=1):
        gpus = f"CUDA_VISIBLE_DEVICES={number - 1}"
        words = started_words(script, number, {})
        assert words == ["env", gpus, *launch.prefix, *launch.command, *launch.arguments]
    assert "--data-parallel-size" not in script


def test_every_word_of_several_launches_survives_the_shell(several: Recorded) -> None:
    nasty = ("a b", "$(touch /tmp/pwned)", "`id`", "it's", '"q"', "new\nline", "*", "", "\\", '{"a": "ü"}')
    launches = [
        dataclasses.replace(launch, arguments=nasty, flags=(), env=(*launch.env, ("ODD", f"a'b\n$HOME {number}")))
        for number, launch in enumerate(several.launches)
    ]
    chosen = with_launch(several, launch=launches[0], others=tuple(launches[1:]))
    for number in (1, 2):
        words = started_words(start_script(chosen), number, {})
        assert words[1:3] == [f"CUDA_VISIBLE_DEVICES={number - 1}", f"ODD=a'b\n$HOME {number - 1}"]
        assert tuple(words[-len(nasty) :]) == nasty


def test_containers_are_noted_each_under_its_own_id(several: Recorded) -> None:
    docker = ("docker", "run", "--network", "host", "-e", "CUDA_VISIBLE_DEVICES={}", "vllm/vllm-openai:v0.32.0")
    launches = [
        dataclasses.replace(launch, prefix=(), command=tuple(word.format(number) for word in docker))
        for number, launch in enumerate(several.launches)
    ]
    chosen = with_launch(several, launch=launches[0], others=tuple(launches[1:]))
    words = started_words(start_script(chosen), 2, {"PORT": "9000", "RUN_DIR": "/run dir"})
    assert words[:4] == ["docker", "run", "--cidfile", "/run dir/server-2.container"]
    assert words[4:9] == ["--network", "host", "-e", "CUDA_VISIBLE_DEVICES=1", "vllm/vllm-openai:v0.32.0"]
    exec_start = render("systemd", chosen).partition("ExecStart=")[2]
    assert "-e CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES} vllm/vllm-openai" in exec_start


@pytest.mark.parametrize("kind", ["several", "container", "secretless"])
def test_scripts_of_several_servers_are_clean_bash(several: Recorded, tmp_path: Path, kind: str) -> None:
    changes: dict[str, object] = {}
    if kind == "container":
        changes = {"command": ("docker", "run", "--network", "host", "vllm/vllm-openai:v0.32.0"), "prefix": ()}
    if kind == "secretless":
        changes = {"secret_env": (), "env": (), "gpus": (), "prefix": ()}
    launches = [dataclasses.replace(launch, **changes) for launch in several.launches]  # type: ignore[arg-type]
    assert_clean_bash(*write_pair(tmp_path, with_launch(several, launch=launches[0], others=tuple(launches[1:]))))


def test_vllms_own_door_is_one_server_with_all_gpus(engines: Recorded) -> None:
    script = start_script(engines)
    assert "--data-parallel-size 2" in script
    assert "export CUDA_VISIBLE_DEVICES=${GPUS:-0,1}" in script
    assert "nginx" not in script
    services = yaml.safe_load(render("compose", engines))["services"]
    assert list(services) == ["vllm"]
    assert services["vllm"]["deploy"]["resources"]["reservations"]["devices"][0]["device_ids"] == ["0", "1"]
    deployment = next(yaml.safe_load_all(render("k8s", engines)))["spec"]
    limits = deployment["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (deployment["replicas"], limits) == (1, {"nvidia.com/gpu": 2})
    assert file_name("systemd", engines) == "vllm.service"
    assert nginx_conf(engines).count("\n    server 127.0.0.1:") == 1


def test_compose_has_a_service_for_each_server_and_one_door(several: Recorded) -> None:
    services = yaml.safe_load(render("compose", several))["services"]
    assert list(services) == ["vllm-1", "vllm-2", "door"]
    for number, launch in enumerate(several.launches, start=1):
        service = services[f"vllm-{number}"]
        devices = service["deploy"]["resources"]["reservations"]["devices"]
        assert [device["device_ids"] for device in devices] == [[str(number - 1)]]
        assert tuple(service["command"]) == (*launch.arguments, "--host", "0.0.0.0", "--port", "8000")
        assert "ports" not in service
        assert not [name for name in service["environment"] if name.startswith("CUDA_VISIBLE_DEVICES")]
    door = services["door"]
    assert door["ports"] == ["${HOST:-127.0.0.1}:${PORT:-8000}:8000"]
    assert list(door["depends_on"]) == ["vllm-1", "vllm-2"]
    conf = door["environment"]["NGINX_CONF"].replace("$$", "$")
    assert re.findall(r"server (vllm-\d:\d+)", conf) == ["vllm-1:8000", "vllm-2:8000"]


def test_servers_that_differ_in_a_variable_have_their_own_environment_in_compose(recorded: Recorded) -> None:
    cores = (GpuGroup(workers=(0,), cores=("0",)), GpuGroup(workers=(1,), cores=("1",)))
    services = yaml.safe_load(render("compose", on_the_machine(recorded, Door.NGINX, cores)))["services"]
    for number in (1, 2):
        environment = services[f"vllm-{number}"]["environment"]
        assert f"VLLM_CPU_OMP_THREADS_BIND={number - 1}" in environment
        assert "HF_TOKEN" in environment


def test_nginx_in_the_container_reads_the_conf_of_compose(several: Recorded, tmp_path: Path) -> None:
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        pytest.skip("no nginx here")
    conf = yaml.safe_load(render("compose", several))["services"]["door"]["environment"]["NGINX_CONF"]
    # The names are those of compose's network.
    text = re.sub(r"vllm-\d", "127.0.0.1", conf.replace("$$", "$")).replace("listen 8000", f"listen {free_port()}")
    (tmp_path / "nginx.conf").write_text(text)
    checked = subprocess.run([program, "-t", "-p", tmp_path, "-c", "nginx.conf"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_systemd_has_a_template_and_a_file_of_variables_for_each_instance(several: Recorded, tmp_path: Path) -> None:
    unit = render("systemd", several)
    steps = [line[2:].strip() for line in unit.splitlines() if re.match(r"#   printf", line)]
    assert len(steps) == 2
    for number, step in enumerate(steps, start=1):
        subprocess.run(["bash", "-c", step.replace("/etc/vllm", str(tmp_path))], check=True)
        lines = (tmp_path / f"server-{number}.env").read_text().splitlines()
        node = number - 1
        assert lines == [
            f"PORT={8000 + number}",
            f"CUDA_VISIBLE_DEVICES={node}",
            f"PREFIX=numactl --cpunodebind={node} --membind={node}",
        ]
    assert "EnvironmentFile=/etc/vllm/server-%i.env" in unit
    assert "ExecStart=/usr/bin/env $PREFIX vllm serve \\" in unit
    assert "--host ${HOST} --port ${PORT}" in unit
    assert "systemctl enable --now vllm@{1..2}" in unit


def test_kubernetes_has_a_pod_for_each_server(several: Recorded) -> None:
    deployment, service = yaml.safe_load_all(render("k8s", several))
    assert deployment["spec"]["replicas"] == 2
    limits = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"nvidia.com/gpu": 1}
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert next(yaml.safe_load_all(render("k8s", several, replicas=5)))["spec"]["replicas"] == 5


def test_every_format_has_the_same_ports(several: Recorded) -> None:
    ports = ["8001", "8002"]
    conf = render("nginx", several).partition("\n# The other way")[0]
    assert re.findall(r"\n    server 127\.0\.0\.1:(\d+)", conf) == ports
    assert re.findall(r"--port (\d+)", render("yaml", several)) == ports
    assert re.findall(r"\n    server 127\.0\.0\.1:(\d+)", nginx_conf(several, replicas=1)) == ["8001"]
    assert [command.split()[-1] for command in json.loads(render("json", several))["commands"]] == ports


def test_the_price_is_that_of_all_gpus(several: Recorded, recorded: Recorded) -> None:
    whole = json.loads(render("json", several, gpu_price=3.6))
    one = json.loads(render("json", recorded, gpu_price=3.6))
    assert (whole["gpus"], whole["layout"], whole["door"]) == (2, "2x1", "nginx")
    assert [launch["gpus"] for launch in whole["launches"]] == [[0], [1]]
    for figure in ("cost_per_thousand_requests", "cost_per_million_output_tokens"):
        assert whole["chosen"][figure] == pytest.approx(2 * one["chosen"][figure])


def test_a_trial_of_one_server_becomes_all_of_its_layout_and_says_so(one_of_several: Recorded) -> None:
    assert [launch.gpus for launch in one_of_several.launches] == [(0,), (1,)]
    assert one_of_several.door is Door.NGINX
    lines = header(one_of_several, file="x")
    said = next(line for line in lines if line.startswith("measured"))
    assert said.endswith("2 times one server's figure, not measured as a whole yet")
    assert "layout    2x1: 2 servers of 1 GPU each behind nginx" in lines
    assert "on        2 × NVIDIA H100 80GB HBM3, host gpu-host-3" in lines
    assert json.loads(render("json", one_of_several))["measured_as_a_whole"] is False
    for format in FORMATS:
        assert render(format, one_of_several)


def test_a_trial_of_one_server_gets_the_preferred_door(one_of_several: Recorded) -> None:
    plan = dataclasses.replace(one_of_several.plan, doors=(Door.VLLM, Door.NGINX))
    chosen = dataclasses.replace(one_of_several, plan=plan)
    assert (chosen.door, chosen.launch.gpus) == (Door.VLLM, (0, 1))
    assert chosen.launch.value("data-parallel-size") == 2


def test_what_was_measured_as_a_whole_is_not_doubted(several: Recorded, engines: Recorded) -> None:
    for chosen in (several, engines):
        assert not [line for line in header(chosen, file="x") if "not measured" in line]
    assert "layout    2x1: 2 engines of 1 GPU each behind vLLM's own data-parallel door" in header(engines, file="x")


def test_prefix_routing_is_named_only_where_prefixes_matter(several: Recorded) -> None:
    assert [prefixes_text(workload(text)) for text in ("chat", "prefix:100,1000,50")] == ["", ""]
    assert prefixes_text(workload("prefix:3000,1000,50")).startswith("75 % of a prompt is a prefix")
    plan = dataclasses.replace(several.plan, workload=workload("prefix:3000,1000,50"))
    shared = dataclasses.replace(several, plan=plan)
    for format in ("sh", "nginx", "compose"):
        assert "send X-Prefix-Key" in render(format, shared)
        assert "send X-Prefix-Key" not in render(format, several)


def test_the_header_says_what_each_door_costs(several: Recorded) -> None:
    doors = (
        DoorFigures(Door.VLLM, (1, 2), 9.4, 12.0, 0.118, is_quoted=False),
        DoorFigures(Door.NGINX, (3, 4), 10.9, 13.6, -0.002, is_quoted=True),
    )
    result = dataclasses.replace(several.result, doors=doors)
    lines = header(dataclasses.replace(several, result=result), file="x")
    said = "vLLM's own 9.40 req/s, costs 12 % of the throughput; nginx 10.9 req/s, costs 0 % of the throughput"
    assert f"doors     {said}" in lines
    other = dataclasses.replace(several.record, candidate=several.plan.baseline)
    of_other = header(dataclasses.replace(several, result=result, record=other), file="x")
    assert not [line for line in of_other if "costs" in line]


def test_arguments_are_one_servers(several: Recorded) -> None:
    assert tuple(shlex.split(render("args", several))) == several.launches[1].arguments
