"""The file for `vllm serve --config`, and the plain arguments."""

from __future__ import annotations

import json
import shlex

import yaml

from tuner.deploy.recorded import Recorded, header
from tuner.deploy.yaml_text import comment
from tuner.flagwords import given_flags, words_for
from tuner.launch import address_words
from tuner.report.quote import server_ports
from tuner.vllm import knobs

LONG = {f"-{short}": knobs.SHORT_OPTIONS[short] for short in ("tp", "pp", "dp")}


def config_yaml(recorded: Recorded) -> str:
    """Render vLLM's --config file: `key: value` is `--key value`, `key: true` is `--key`. Of a repeated flag the
    last counts, as on the command line. Short options have no key, so the command on top has them."""
    entries: dict[str, str] = {}
    short: list[str] = []
    given_last = {flag.name: flag for flag in given_flags(recorded.launch.arguments, short=knobs.SHORT_OPTIONS)}
    for flag in given_last.values():
        written = flag.words[0].partition("=")[0]
        if not flag.name:
            entries["model"] = _scalar(flag.words[0])
        elif written in LONG or written.startswith("--"):
            values = list(flag.texts)
            entries[LONG.get(written, written[2:])] = _scalar(values[0]) if len(values) == 1 else _many(values)
        else:
            short += flag.words
    environment = [f"export {name}={shlex.quote(value)}" for name, value in recorded.env]
    environment += [f"export {name}=...   # a secret, not recorded" for name in recorded.launch.secret_env]
    commands = [_command(recorded, number, short) for number in range(len(recorded.launches))]
    usage = ["", *(f"  {line}".replace("\n", " ") for line in [*environment, *commands])]
    body = "".join(f"{name}: {value}\n" for name, value in entries.items())
    return comment([*header(recorded, file="vllm.yaml"), *usage]) + body


def _command(recorded: Recorded, number: int, short: list[str]) -> str:
    """Return the shell line that starts one server from the file."""
    launch, port = recorded.launches[number], server_ports(len(recorded.launches))[number]
    serve = [*words_for(knobs.CONFIG, "vllm.yaml"), *short, *address_words("127.0.0.1", port)]
    own = [f"{name}={shlex.quote(value)}" for name, value in recorded.own_env(launch)]
    return " ".join([*own, shlex.join([*launch.prefix, "vllm", "serve", *serve])])


def plain_arguments(recorded: Recorded) -> str:
    """Render the model and every flag as one line of shell words, without program, host, port and environment."""
    return shlex.join(recorded.launch.arguments) + "\n"


def _scalar(text: str) -> str:
    """Write YAML that vLLM reads back as exactly `text`. A number stays bare only if str() of it is the same again."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    bare = isinstance(value, (int, float)) and not isinstance(value, bool) and str(value) == text
    return text if bare else json.dumps(text, ensure_ascii=False)


def _many(values: list[str]) -> str:
    return f"[{', '.join(map(_scalar, values))}]" if values else "true"
