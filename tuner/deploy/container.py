"""The recorded launch inside a container image: what compose and Kubernetes share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from tuner.deploy.recorded import Recorded
from tuner.launch import VISIBLE_GPUS, address_words
from tuner.report.quote import PORT, production_env

GPU_IMAGE = "vllm/vllm-openai"
CPU_IMAGE = "public.ecr.aws/q9t5s3a7/vllm-cpu-release-repo"
SHM_GIB = 16
"""Shared memory of a container. Tensor-parallel workers need more than Docker's 64 MiB (docs/vllm.md)."""
HEALTH = "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=5)"


@dataclass(frozen=True, slots=True)
class Container:
    """Launch in a container. An empty `entrypoint` is the image's own; `env` leaves the GPUs to the runtime.
    `model_folder` is the model's folder on the host, None if the model is a name on a hub."""

    image: str
    entrypoint: tuple[str, ...]
    arguments: tuple[str, ...]
    env: tuple[tuple[str, str], ...]
    secrets: tuple[str, ...]
    gpus: tuple[str, ...]
    model_folder: str | None
    notes: tuple[str, ...]


def container(recorded: Recorded, number: int = 0) -> Container:
    """Return one server's container. Those of the others differ in GPUs and variables."""
    launch = recorded.launches[number]
    notes: list[str] = []
    entrypoint: tuple[str, ...] = ()
    prefixes = dict.fromkeys(f"`{' '.join(one.prefix)}`" for one in recorded.launches if one.prefix)
    if prefixes:
        notes.append(f"measured under {', '.join(prefixes)}: pin CPUs and memory to that node for the same figures")
    if launch.in_container:
        # The last word of `docker run … IMAGE` is the image; its options beyond GPUs and variables stay behind.
        image = launch.command[-1]
        notes.append("options of the recorded `run` command other than variables and GPUs are not carried over")
    else:
        version = recorded.environment.vllm_version.split("+")[0]
        image = f"{GPU_IMAGE if recorded.gpus else CPU_IMAGE}:v{version}"
        entrypoint = (_in_image(launch.command[0]), *launch.command[1:])
        notes.append("measured on a vLLM outside a container: measure again if the image's build differs")
    model = recorded.plan.model
    return Container(
        image=image,
        entrypoint=entrypoint,
        arguments=(*launch.arguments, *address_words("0.0.0.0", PORT)),
        env=tuple((n, v) for n, v in production_env(launch) if n != VISIBLE_GPUS),
        secrets=launch.secret_env,
        gpus=tuple(map(str, launch.gpus)),
        model_folder=model if PurePosixPath(model).is_absolute() else None,
        notes=tuple(notes),
    )


def _in_image(program: str) -> str:
    """Translate a program's path. The host's means nothing in the image, whose interpreter is python3."""
    name = PurePosixPath(program).name
    return "python3" if name.startswith("python") else name
