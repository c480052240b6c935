"""Writer of nginx.conf for several replicas: the least busy gets the next request, streams pass unbuffered."""

from __future__ import annotations

from tuner.deploy.recorded import Recorded, header
from tuner.deploy.yaml_text import comment

LISTEN = "127.0.0.1:8080"


def nginx_conf(recorded: Recorded, replicas: int | None = None, first_port: int = 8000) -> str:
    """Render a file for conf.d with `replicas` servers from `first_port` on; None is one for each GPU group."""
    count = replicas or max(1, len(recorded.plan.groups))
    servers = "\n".join(f"    server 127.0.0.1:{first_port + i} max_fails=1 fail_timeout=10s;" for i in range(count))
    last = first_port + count - 1
    usage = [
        "",
        f"  the replicas: PORT={first_port} to {last}, each with ./start.sh, GPUS=... for other GPUs than the measured",
    ]
    return f"""{comment([*header(recorded, file="nginx.conf"), *usage])}
upstream vllm {{
    least_conn;
{servers}
    keepalive {32 * count};
}}

server {{
    listen {LISTEN};
    client_max_body_size 64m;

    location / {{
        proxy_pass http://vllm;
        proxy_http_version 1.1;
        proxy_set_header Host $host;
        proxy_set_header Connection "";
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;

        # A token that waits in a buffer is a late token.
        proxy_buffering off;
        proxy_request_buffering off;
        proxy_cache off;
        gzip off;

        # The first token of a long queue, and the pause between two tokens, can take this long.
        proxy_connect_timeout 5s;
        proxy_read_timeout 1h;
        proxy_send_timeout 1h;

        # A request that a server has begun to answer is not sent to another one.
        proxy_next_upstream error timeout;
        proxy_next_upstream_tries {min(count, 2)};
    }}
}}
"""
