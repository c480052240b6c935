"""Writer of compose.yaml: vllm/vllm-openai with the recorded arguments, GPUs, shared memory, caches, health check."""

from __future__ import annotations

from tuner.deploy.container import HEALTH, SHM_GIB, Container, container
from tuner.deploy.recorded import Recorded, header
from tuner.deploy.yaml_text import Block, Merge, Node, Shared, comment, document
from tuner.launch import Door
from tuner.report.quote import PORT
from tuner.server.nginx_conf import site_conf, whole_conf

NGINX_IMAGE = "nginx:stable"
PUBLISHED = f"${{HOST:-127.0.0.1}}:${{PORT:-8000}}:{PORT}"


def compose_yaml(recorded: Recorded) -> str:
    """Render for `docker compose up`. HOST and PORT come from the environment, else 127.0.0.1:8000."""
    notes = [f"note      {note}" for note in container(recorded).notes]
    usage = ["", "  docker compose up --wait                     on 127.0.0.1:8000"]
    usage += ["  HOST=0.0.0.0 PORT=9000 docker compose up -d  elsewhere"]
    top = comment([*header(recorded, file="compose.yaml"), *notes, *usage])
    services = _several(recorded) if recorded.door is Door.NGINX else {"services": {"vllm": _only(recorded)}}
    return top + document({**services, "volumes": {"vllm-cache": {}}})


def _only(recorded: Recorded) -> Node:
    made = container(recorded)
    return {**_server(recorded, made, published=True), **_devices(made)}


def _several(recorded: Recorded) -> dict[str, Node]:
    """Return the servers, which share all but GPUs and variables, and nginx in front of them."""
    containers = [container(recorded, number) for number in range(len(recorded.launches))]
    shared = Shared(_server(recorded, containers[0], published=False))
    servers: dict[str, Node] = {}
    for number, made in enumerate(containers, start=1):
        own: dict[str, Node] = {} if made.env == containers[0].env else {"environment": _environment(made)}
        servers[f"vllm-{number}"] = {Merge(): shared, **own, **_devices(made)}
    conf = whole_conf(site_conf([f"{name}:{PORT}" for name in servers], str(PORT)))
    door: dict[str, Node] = {
        "image": NGINX_IMAGE,
        "command": [
            "sh",
            "-c",
            _literal('printf %s "$NGINX_CONF" >/etc/nginx/nginx.conf; exec nginx -g "daemon off;"'),
        ],
        "environment": {"NGINX_CONF": Block(_literal(conf))},
        "ports": [PUBLISHED],
        "restart": "unless-stopped",
        "depends_on": {name: {"condition": "service_healthy"} for name in servers},
    }
    return {"x-server": shared, "services": {**servers, "door": door}}


def _server(recorded: Recorded, made: Container, *, published: bool) -> dict[str, Node]:
    volumes = ["${HF_HOME:-~/.cache/huggingface}:/root/.cache/huggingface", "vllm-cache:/root/.cache/vllm"]
    if made.model_folder is not None:
        volumes.append(_literal(f"{made.model_folder}:{made.model_folder}:ro"))
    return {
        "image": _literal(made.image),
        **({"entrypoint": [_literal(word) for word in made.entrypoint]} if made.entrypoint else {}),
        "command": [_literal(word) for word in made.arguments],
        "environment": _environment(made),
        **({"ports": [PUBLISHED]} if published else {}),
        "volumes": volumes,
        "shm_size": f"{SHM_GIB}gb",
        "init": True,
        "restart": "unless-stopped",
        "stop_grace_period": f"{recorded.stop_s}s",
        "healthcheck": {
            "test": ["CMD", "python3", "-c", HEALTH],
            "interval": "10s",
            "timeout": "6s",
            "retries": 3,
            "start_period": f"{round(recorded.plan.start_limit_s)}s",
        },
    }


def _environment(made: Container) -> list[Node]:
    # A name without a value takes its value from the environment in which compose runs.
    return [*(_literal(f"{name}={value}") for name, value in made.env), *made.secrets]


def _devices(made: Container) -> dict[str, Node]:
    if not made.gpus:
        return {}
    device: dict[str, Node] = {"driver": "nvidia", "device_ids": list(made.gpus), "capabilities": ["gpu"]}
    return {"deploy": {"resources": {"reservations": {"devices": [device]}}}}


def _literal(text: str) -> str:
    """Escape a value: compose replaces $NAME and reads $$ as a dollar sign."""
    return text.replace("$", "$$")
