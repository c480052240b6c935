"""Kubernetes Deployment and Service with the recorded arguments, probes and shared memory."""

from __future__ import annotations

import math
import re

from tuner.deploy.container import SHM_GIB, container
from tuner.deploy.recorded import Recorded, header
from tuner.deploy.yaml_text import Node, comment, document
from tuner.launch import Door
from tuner.report.quote import PORT

PROBE_S = 10


def kubernetes_yaml(recorded: Recorded, replicas: int | None = None) -> str:
    """Render a Deployment of one pod per server. `replicas` None is as many as the recorded deployment has."""
    name = object_name(recorded.plan.study)
    labels: dict[str, Node] = {"app.kubernetes.io/name": "vllm", "app.kubernetes.io/instance": name}
    deployment: dict[str, Node] = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas or len(recorded.launches),
            # The old server holds the GPU until it has ended: a rolling update would wait for a second one.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": _pod(recorded, name)},
        },
    }
    service: dict[str, Node] = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "type": "ClusterIP",
            "selector": labels,
            "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
        },
    }
    notes = [f"note      {note}" for note in container(recorded).notes]
    notes += ["note      a persistent volume claim as `cache` saves the download and the compilation at every start"]
    if recorded.door is Door.NGINX:
        notes += [
            "note      measured behind nginx (least_conn); a Service spreads connections, not requests, by chance"
        ]
    if recorded.launch.secret_env:
        keys = " ".join(f"--from-literal={secret}=..." for secret in recorded.launch.secret_env)
        notes += ["", f"  kubectl create secret generic {name} {keys}"]
    top = comment([*header(recorded, file="kubernetes.yaml"), *notes])
    return f"{top}{document(deployment)}---\n{document(service)}"


def object_name(study: str) -> str:
    """Make a name that Kubernetes accepts: RFC 1123, at most 63 characters, a letter first."""
    slug = re.sub(r"[^a-z0-9]+", "-", study.lower()).strip("-")
    return f"vllm-{slug}"[:63].rstrip("-")


def _pod(recorded: Recorded, name: str) -> Node:
    made = container(recorded)
    mounts: list[Node] = [
        {"name": "shm", "mountPath": "/dev/shm"},
        {"name": "cache", "mountPath": "/root/.cache"},
    ]
    volumes: list[Node] = [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{SHM_GIB}Gi"}},
        {"name": "cache", "emptyDir": {}},
    ]
    if made.model_folder is not None:
        mounts.append({"name": "model", "mountPath": made.model_folder, "readOnly": True})
        volumes.append({"name": "model", "hostPath": {"path": made.model_folder, "type": "Directory"}})
    env: list[Node] = [{"name": n, "value": _literal(v)} for n, v in made.env]
    env += [{"name": s, "valueFrom": {"secretKeyRef": {"name": name, "key": s}}} for s in made.secrets]
    health: dict[str, Node] = {"httpGet": {"path": "/health", "port": "http"}, "timeoutSeconds": 5}
    vllm: dict[str, Node] = {
        "name": "vllm",
        "image": made.image,
        **({"command": list(made.entrypoint)} if made.entrypoint else {}),
        "args": [_literal(word) for word in made.arguments],
        "env": env,
        "ports": [{"name": "http", "containerPort": PORT}],
        **({"resources": {"limits": {"nvidia.com/gpu": len(made.gpus)}}} if made.gpus else {}),
        "startupProbe": {
            **health,
            "periodSeconds": PROBE_S,
            "failureThreshold": math.ceil(recorded.plan.start_limit_s / PROBE_S),
        },
        "readinessProbe": {**health, "periodSeconds": 5},
        "livenessProbe": {**health, "periodSeconds": PROBE_S, "failureThreshold": 3},
        "volumeMounts": mounts,
    }
    # A Service called VLLM_PORT-like would otherwise set VLLM_* variables that vLLM reads as its own.
    return {
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": recorded.stop_s,
        "containers": [vllm],
        "volumes": volumes,
    }


def _literal(text: str) -> str:
    """Escape a value: Kubernetes replaces $(NAME) and leaves $$( as $(."""
    return text.replace("$(", "$$(")
