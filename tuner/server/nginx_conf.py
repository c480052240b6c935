"""Text of nginx.conf for several servers behind one address. Pure; the measured door and the deployed one share it."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from enum import StrEnum

PREFIX_HEADER = "X-Prefix-Key"
"""Header by which a client names the prefix that its request shares with others."""

WORKERS = 4
"""Worker processes. One forwards some 50,000 tokens a second."""
WORKER_CONNECTIONS = 8192
"""Connections of one worker. A stream has two, and nginx does not spread them evenly: this is 2,000 and a reserve."""

OPEN_FILES = 2 * WORKER_CONNECTIONS
"""Open files that a worker asks for. Without root it gets the hard limit at most."""


class Routing(StrEnum):
    """Choice of the server for a request."""

    LEAST_BUSY = "least-busy"
    BY_PREFIX = "by-prefix"


def site_conf(servers: Sequence[str], listen: str, routing: Routing = Routing.LEAST_BUSY) -> str:
    """Write a file for conf.d: requests to `listen` go to one of `servers`, both addresses with a port."""
    method = "least_conn;" if routing is Routing.LEAST_BUSY else "hash $prefix_key consistent;"
    named = "\n".join(f"    server {server} max_fails=3 fail_timeout=10s;" for server in servers)
    return f"""{_prefix_key() if routing is Routing.BY_PREFIX else ""}upstream vllm {{
    zone vllm 256k;  # without it every worker process would count its own connections alone
    {method}
{named}
    keepalive {64 * len(servers)};
    keepalive_timeout 4s;  # vLLM closes after 5 s; a request on a connection that it just closed would be lost
    keepalive_requests 1000000;
}}

server {{
    listen {listen} backlog=4096;
    client_max_body_size 64m;
    keepalive_requests 1000000;

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

        # Another server gets a request only if this one could not be reached. A request that was sent is not repeated.
        proxy_next_upstream error timeout;
    }}
}}
"""


def whole_conf(site: str, open_files: int = OPEN_FILES) -> str:
    """Write an nginx.conf around a `site_conf`, for `nginx -p FOLDER -c nginx.conf`. All its files are in FOLDER."""
    temporary = "\n".join(
        f"    {name}_temp_path {name}_temp;" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""worker_processes {WORKERS};
worker_rlimit_nofile {open_files};
pid nginx.pid;
error_log stderr warn;

events {{
    worker_connections {WORKER_CONNECTIONS};
}}

http {{
    access_log off;
    server_tokens off;
{temporary}

{textwrap.indent(site, "    ")}}}
"""


def _prefix_key() -> str:
    """Write the variable to hash. Requests without the header are spread."""
    header = "$http_" + re.sub(r"\W", "_", PREFIX_HEADER.lower())
    return f"""# A prefix always goes to the same server, whose prefix cache then has it.
# Clients name it in the header {PREFIX_HEADER}.
map {header} $prefix_key {{
    "" $request_id;
    default {header};
}}

"""
