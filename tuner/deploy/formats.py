"""Forms of a recorded launch, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tuner.deploy.compose import compose_yaml
from tuner.deploy.config_yaml import config_yaml, plain_arguments
from tuner.deploy.kubernetes import kubernetes_yaml
from tuner.deploy.nginx import nginx_conf
from tuner.deploy.recorded import Recorded, recorded_in
from tuner.deploy.start import start_script
from tuner.deploy.summary_json import best_json
from tuner.deploy.systemd import systemd_unit
from tuner.environment import Environment
from tuner.errors import UsageError
from tuner.report.tables import read_study
from tuner.study.plan import StudyPlan
from tuner.study.record import TrialRecord
from tuner.study.result import StudyResult

_TEXT: dict[str, tuple[str, Callable[[Recorded], str]]] = {
    "sh": ("start.sh", lambda r: start_script(r.record, r.result, r.plan, r.environment)),
    "compose": ("compose.yaml", compose_yaml),
    "systemd": ("vllm.service", systemd_unit),
    "k8s": ("kubernetes.yaml", kubernetes_yaml),
    "nginx": ("nginx.conf", nginx_conf),
    "yaml": ("vllm.yaml", config_yaml),
    "args": ("args.txt", plain_arguments),
    "json": ("best.json", best_json),
}
FORMATS = tuple(_TEXT)


def file_name(format: str) -> str:
    """Return the usual file name of a format: `compose` → compose.yaml. Raises UsageError if it is unknown."""
    return _known(format)[0]


def render(
    format: str,
    record: TrialRecord,
    result: StudyResult,
    plan: StudyPlan,
    environment: Environment,
    *,
    gpu_price: float | None = None,
    replicas: int | None = None,
) -> str:
    """Render one format. `gpu_price` (per GPU-hour) counts for json, `replicas` for nginx and k8s."""
    recorded = Recorded(record, result, plan, environment)
    if format == "json":
        return best_json(recorded, gpu_price)
    if format == "nginx":
        return nginx_conf(recorded, replicas)
    if format == "k8s":
        return kubernetes_yaml(recorded, replicas or 1)
    return _known(format)[1](recorded)


def render_study(
    study_folder: Path,
    format: str,
    *,
    trial: int | None = None,
    gpu_price: float | None = None,
    replicas: int | None = None,
) -> str:
    """Render from a study's files: the winner, or the trial with that number."""
    _known(format)
    found = recorded_in(read_study(study_folder), trial)
    return render(
        format, found.record, found.result, found.plan, found.environment, gpu_price=gpu_price, replicas=replicas
    )


def _known(format: str) -> tuple[str, Callable[[Recorded], str]]:
    if format not in _TEXT:
        raise UsageError(f"there is no format {format!r}", hint=f"formats: {', '.join(FORMATS)}")
    return _TEXT[format]
