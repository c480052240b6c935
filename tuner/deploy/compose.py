"""Writer of compose.yaml: vllm/vllm-openai with the recorded arguments, GPUs, shared memory, caches, health check."""

from __future__ import annotations

from tuner.deploy.container import HEALTH, PORT, SHM_GIB, container
from tuner.deploy.recorded import Recorded, header
from tuner.deploy.yaml_text import Node, comment, document


def compose_yaml(recorded: Recorded) -> str:
    """Render for `docker compose up`. HOST and PORT come from the environment, else 127.0.0.1:8000."""
    made = container(recorded)
    volumes = ["${HF_HOME:-~/.cache/huggingface}:/root/.cache/huggingface", "vllm-cache:/root/.cache/vllm"]
    if made.model_folder is not None:
        volumes.append(_literal(f"{made.model_folder}:{made.model_folder}:ro"))
    # A name without a value takes its value from the environment in which compose runs.
    environment = [*(_literal(f"{name}={value}") for name, value in made.env), *made.secrets]
    service: dict[str, Node] = {
        "image": _literal(made.image),
        **({"entrypoint": [_literal(word) for word in made.entrypoint]} if made.entrypoint else {}),
        "command": [_literal(word) for word in made.arguments],
        "environment": environment,
        "ports": [f"${{HOST:-127.0.0.1}}:${{PORT:-8000}}:{PORT}"],
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
    if made.gpus:
        device: dict[str, Node] = {"driver": "nvidia", "device_ids": list(made.gpus), "capabilities": ["gpu"]}
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    notes = [f"note      {note}" for note in made.notes]
    usage = ["", "  docker compose up --wait                     on 127.0.0.1:8000"]
    usage += ["  HOST=0.0.0.0 PORT=9000 docker compose up -d  elsewhere"]
    top = comment([*header(recorded, file="compose.yaml"), *notes, *usage])
    return top + document({"services": {"vllm": service}, "volumes": {"vllm-cache": {}}})


def _literal(text: str) -> str:
    """Escape a value: compose replaces $NAME and reads $$ as a dollar sign."""
    return text.replace("$", "$$")
