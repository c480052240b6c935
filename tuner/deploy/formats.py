"""Forms of a recorded launch, by name."""

from __future__ import annotations

from collections.abc import Callable

from tuner.deploy.compose import compose_yaml
from tuner.deploy.config_yaml import config_yaml, plain_arguments
from tuner.deploy.kubernetes import kubernetes_yaml
from tuner.deploy.nginx import nginx_conf
from tuner.deploy.recorded import Recorded
from tuner.deploy.start import start_script
from tuner.deploy.summary_json import best_json
from tuner.deploy.systemd import TEMPLATE_UNIT, systemd_unit
from tuner.errors import UsageError

_TEXT: dict[str, tuple[str, Callable[[Recorded], str]]] = {
    "sh": ("start.sh", start_script),
    "compose": ("compose.yaml", compose_yaml),
    "systemd": ("vllm.service", systemd_unit),
    "k8s": ("kubernetes.yaml", kubernetes_yaml),
    "nginx": ("nginx.conf", nginx_conf),
    "yaml": ("vllm.yaml", config_yaml),
    "args": ("args.txt", plain_arguments),
    "json": ("best.json", best_json),
}
FORMATS = tuple(_TEXT)


def file_name(format: str, recorded: Recorded) -> str:
    """Return the usual file name of a format: `compose` → compose.yaml. Raises UsageError if it is unknown."""
    is_template = format == "systemd" and len(recorded.launches) > 1
    return TEMPLATE_UNIT if is_template else _known(format)[0]


def render(format: str, recorded: Recorded, *, gpu_price: float | None = None, replicas: int | None = None) -> str:
    """Render one format. `gpu_price` (per GPU-hour) counts for json, `replicas` for nginx and k8s. Raises UsageError
    if the format is unknown."""
    if format == "json":
        return best_json(recorded, gpu_price)
    if format == "nginx":
        return nginx_conf(recorded, replicas)
    if format == "k8s":
        return kubernetes_yaml(recorded, replicas)
    return _known(format)[1](recorded)


def _known(format: str) -> tuple[str, Callable[[Recorded], str]]:
    if format not in _TEXT:
        raise UsageError(f"there is no format {format!r}", hint=f"formats: {', '.join(FORMATS)}")
    return _TEXT[format]
