"""Writer of a systemd unit that runs the recorded launch in front, restarts it and ends its whole control group."""

from __future__ import annotations

from tuner.deploy.recorded import Recorded, header
from tuner.deploy.start import argument_lines
from tuner.deploy.yaml_text import comment
from tuner.launch import address_words


def systemd_unit(recorded: Recorded) -> str:
    launch = recorded.launch
    first, *rest = (*launch.prefix, *launch.command)
    # systemd wants an absolute path; /usr/bin/env looks the others up on the unit's PATH.
    program = [_word(first)] if first.startswith("/") else ["/usr/bin/env", _word(first)]
    lines = [" ".join([*program, *map(_word, rest)])]
    lines += [" ".join(map(_word, words)) for words in argument_lines(launch.arguments)]
    lines += [" ".join(address_words("${HOST}", "${PORT}"))]
    variables = [*recorded.env, ("HOST", "127.0.0.1"), ("PORT", "8000")]
    environment = [f"Environment={_assignment(name, value)}" for name, value in variables]
    if launch.secret_env:
        names = " ".join(launch.secret_env)
        environment += [f"# {names}: NAME=value lines, readable by root only", "EnvironmentFile=/etc/vllm/secrets.env"]
    unit = [
        "[Unit]",
        f"Description=vLLM, {_plain(recorded.plan.model)}",
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
        "ExecStart=" + " \\\n    ".join(lines),
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
    usage = ["", "  cp vllm.service /etc/systemd/system/ && systemctl enable --now vllm"]
    return comment([*header(recorded, file="vllm.service"), *usage]) + "\n".join(unit) + "\n"


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
