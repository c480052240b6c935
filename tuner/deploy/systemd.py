"""Writer of a systemd unit that runs a recorded launch in front, restarts it and ends its whole control group.

Several servers are instances of one template. What tells them apart is in a file of variables each.
"""

from __future__ import annotations

import shlex

from tuner.deploy.recorded import Recorded, header
from tuner.deploy.start import argument_lines
from tuner.deploy.yaml_text import comment
from tuner.formatting import one_line
from tuner.launch import LaunchSpec, address_words
from tuner.report.quote import PORT, server_ports

TEMPLATE_UNIT = "vllm@.service"
FOLDER = "/etc/vllm"


def systemd_unit(recorded: Recorded) -> str:
    several = len(recorded.launches) > 1
    variables = [*recorded.env, ("HOST", "127.0.0.1"), *([] if several else [("PORT", str(PORT))])]
    environment = [f"Environment={_assignment(name, value)}" for name, value in variables]
    if several:
        environment += ["# PORT and what tells this server from the others", f"EnvironmentFile={FOLDER}/server-%i.env"]
    if secrets := recorded.launch.secret_env:
        names = " ".join(secrets)
        environment += [f"# {names}: NAME=value lines, readable by root only", f"EnvironmentFile={FOLDER}/secrets.env"]
    unit = [
        "[Unit]",
        f"Description=vLLM, {_plain(recorded.plan.model)}" + (", server %i" if several else ""),
        "After=network-online.target",
        "Wants=network-online.target",
        # A configuration that cannot start must not be tried for ever.
        "StartLimitIntervalSec=1h",
        "StartLimitBurst=5",
        "",
        "[Service]",
        "Type=exec",
        *environment,
        "# the PATH to vllm, and the account that runs it:",
        "#Environment=PATH=/opt/vllm/bin:/usr/local/bin:/usr/bin:/bin",
        "#User=vllm",
        "ExecStart=" + " \\\n    ".join(_exec_lines(recorded)),
        "# vLLM ends with 0 also when its engine dies while serving, so on-failure would leave it down.",
        "Restart=always",
        "RestartSec=10",
        "KillMode=mixed",
        f"TimeoutStopSec={recorded.stop_s}",
        "LimitNOFILE=65536",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    file = TEMPLATE_UNIT if several else "vllm.service"
    usage = _steps(recorded) if several else ["  cp vllm.service /etc/systemd/system/ && systemctl enable --now vllm"]
    return comment([*header(recorded, file=file), "", *usage]) + "\n".join(unit) + "\n"


def _exec_lines(recorded: Recorded) -> list[str]:
    launch = recorded.launch
    if len(recorded.launches) == 1:
        first, *rest = (*launch.prefix, *launch.command)
        # systemd wants an absolute path; /usr/bin/env looks the others up on the unit's PATH.
        words = [*([] if first.startswith("/") else ["/usr/bin/env"]), *map(_word, (first, *rest))]
    else:
        # $PREFIX becomes as many words as it holds, ${NAME} is part of one.
        own = {f"{name}={value}": f"{name}=${{{name}}}" for name, value in recorded.own_env(launch)}
        prefix = ["$PREFIX"] if any(one.prefix for one in recorded.launches) else []
        words = ["/usr/bin/env", *prefix, *(own.get(word) or _word(word) for word in launch.command)]
    lines = [" ".join(words)]
    lines += [" ".join(map(_word, words)) for words in argument_lines(launch.arguments)]
    return [*lines, " ".join(address_words("${HOST}", "${PORT}"))]


def _steps(recorded: Recorded) -> list[str]:
    """Return the commands that install the instances and the door."""
    ports = server_ports(len(recorded.launches))
    files = [
        f"  printf '%s\\n' {shlex.join(_instance(recorded, launch, port))} >{FOLDER}/server-{number}.env"
        for number, (launch, port) in enumerate(zip(recorded.launches, ports, strict=True), start=1)
    ]
    return [
        f"  cp {TEMPLATE_UNIT} /etc/systemd/system/ && mkdir -p {FOLDER}",
        *files,
        f"  systemctl daemon-reload && systemctl enable --now vllm@{{1..{len(ports)}}}",
        f"the door is the system's nginx, on port {PORT}:",
        f"  tuner best {one_line(shlex.quote(recorded.plan.study))} --format nginx >/etc/nginx/conf.d/vllm.conf",
        "  systemctl enable nginx && systemctl reload-or-restart nginx",
    ]


def _instance(recorded: Recorded, launch: LaunchSpec, port: int) -> list[str]:
    """Return the lines of a server's file of variables."""
    prefix = [f"PREFIX={' '.join(launch.prefix)}"] if launch.prefix else []
    return [f"PORT={port}", *(f"{name}={value}" for name, value in recorded.own_env(launch)), *prefix]


def _word(text: str) -> str:
    """Quote one word of ExecStart: % and $ doubled, C escapes if needed (systemd.service(5))."""
    doubled = text.replace("%", "%%").replace("$", "$$")
    safe = doubled and all(c.isalnum() or c in "-_./:=,+@%$" for c in doubled)
    return doubled if safe else _quoted(doubled)


def _assignment(name: str, value: str) -> str:
    return _quoted(f"{name}={value.replace('%', '%%')}")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
    return f'"{escaped}"'


def _plain(text: str) -> str:
    return " ".join(text.split()).replace("%", "%%")
