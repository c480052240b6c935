"""Writer of nginx.conf for several servers: the door that was measured, and one that routes by prefix."""

from __future__ import annotations

from tuner.deploy.recorded import Recorded, header
from tuner.deploy.yaml_text import comment
from tuner.launch import Door
from tuner.report.quote import PORT
from tuner.server.nginx_conf import Routing, site_conf

LISTEN = "127.0.0.1:8080"
"""Address before servers that were recorded one by one."""


def nginx_conf(recorded: Recorded, replicas: int | None = None, first_port: int | None = None) -> str:
    """Render a file for conf.d. None is the deployment's own servers and ports."""
    is_several = recorded.door is Door.NGINX
    count = replicas or (len(recorded.launches) if is_several else _places(recorded))
    first = first_port or (PORT + 1 if is_several else PORT)
    last = first + count - 1
    servers = [f"127.0.0.1:{port}" for port in range(first, last + 1)]
    listen = f"127.0.0.1:{PORT}" if is_several else LISTEN
    usage = f"  the replicas: PORT={first} to {last}, each with ./start.sh, GPUS=... for other GPUs than the measured"
    if is_several:
        usage = (
            f"  for the conf.d of your own nginx, before servers on ports {first} to {last}; start.sh starts its own"
        )
    top = [*header(recorded, file="nginx.conf"), "", usage]
    by_prefix = site_conf(servers, listen, Routing.BY_PREFIX).partition("\nserver {")[0]
    alternative = ["The other way to route, in place of the upstream above:", "", *by_prefix.splitlines()]
    return f"{comment(top)}\n{site_conf(servers, listen)}\n{comment(alternative)}"


def _places(recorded: Recorded) -> int:
    """Return the deployments that the machine has room for. vLLM's own door takes all of it."""
    if recorded.door is Door.VLLM:
        return 1
    return max(1, len(recorded.plan.placed(recorded.plan.layout_of(recorded.record.candidate)).groups))
