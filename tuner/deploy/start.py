"""start.sh and stop.sh: the recorded servers with their door, and the end of exactly those."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2

from tuner.deploy.recorded import Recorded, header, recorded_in
from tuner.flagwords import given_flags
from tuner.formatting import one_line
from tuner.jsonfile import write_atomically
from tuner.launch import VISIBLE_GPUS, Door
from tuner.report.quote import PORT, shell_word
from tuner.report.tables import read_study
from tuner.server.nginx_conf import site_conf, whole_conf
from tuner.study.own_files import CACHE
from tuner.vllm import knobs

_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("tuner.deploy", "."),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,  # shell, not HTML: every value goes through `quote` or `one_line`
)
_TEMPLATES.filters["quote"] = shell_word


def start_script(recorded: Recorded) -> str:
    """Render bash that starts all recorded servers in sessions of their own, and waits until they are ready.

    Host and port come from HOST and PORT (127.0.0.1:8000 otherwise). The values of `secret_env` are asked for, not
    written. Ends with 1 and the log's last lines when a server dies or is not ready in the study's start limit. Then
    nothing is left of the others.
    """
    launch = recorded.launch
    shared: dict[str, object] = {
        "header": header(recorded, file="start.sh"),
        "cache": None if launch.in_container else CACHE,
        "secrets": launch.secret_env,
        "container": launch.in_container,
        "arguments": argument_lines(launch.arguments),
        "start_s": round(recorded.plan.start_limit_s),
        "stop_s": recorded.stop_s,
    }
    if recorded.door is Door.NGINX:
        return _TEMPLATES.get_template("start_all.sh.j2").render(
            **shared,
            env=recorded.env,
            servers=[_server(recorded, number) for number in range(len(recorded.launches))],
            programs=dict.fromkeys(word for one in recorded.launches for word in (*one.prefix[:1], one.command[0])),
            door=_door(len(recorded.launches)),
            port=PORT,
        )
    return _TEMPLATES.get_template("start.sh.j2").render(
        **shared,
        env=[(n, v) for n, v in recorded.env if not (recorded.gpus and n == VISIBLE_GPUS)],
        # A container gets its variables with -e, in the recorded command itself.
        gpus=() if launch.in_container else recorded.gpus,
        prefix=launch.prefix,
        command=launch.command,
    )


def stop_script(recorded: Recorded) -> str:
    """Render bash that ends what start.sh noted; exit code 1 if anything is left."""
    name = "stop_all.sh.j2" if recorded.door is Door.NGINX else "stop.sh.j2"
    return _TEMPLATES.get_template(name).render(
        version=one_line(recorded.environment.tuner_version),
        study=one_line(recorded.plan.study),
        gpus=recorded.gpus,
        program=recorded.launch.command[0],
        container=recorded.launch.in_container,
        stop_s=recorded.stop_s,
        port=PORT,
    )


def _server(recorded: Recorded, number: int) -> str:
    """Return the shell words of one server before its arguments."""
    launch = recorded.launches[number]
    if launch.in_container:
        # `docker run` gets the variables with -e, in the recorded command itself.
        engine, run, *options = map(shell_word, launch.command)
        return " ".join([engine, run, "--cidfile", f'"$RUN_DIR/server-{number + 1}.container"', *options])
    own = [f"{name}={value}" for name, value in recorded.own_env(launch)]
    return " ".join(map(shell_word, [*(["env", *own] if own else []), *launch.prefix, *launch.command]))


def _door(servers: int) -> str:
    """Return nginx.conf for a here-document of bash, which fills in the address and the ports."""
    text = whole_conf(site_conf([f"127.0.0.1:@{number}@" for number in range(servers)], "@LISTEN@")).rstrip("\n")
    text = re.sub(r"([\\$`])", r"\\\1", text)
    return re.sub(r"@(\d+)@", r"$((BASE_PORT + \1))", text).replace("@LISTEN@", "$listen")


def write_scripts(study_folder: Path, trial: int | None = None) -> Path:
    """Write start.sh and stop.sh of the winner (or of `trial`) into the study's folder; return start.sh's path. Uses
    the study's files alone. Raises UsageError if there is nothing to quote."""
    return write_pair(study_folder, recorded_in(read_study(study_folder), trial))[0]


def write_pair(folder: Path, recorded: Recorded) -> tuple[Path, Path]:
    """Write start.sh and stop.sh, whole and executable."""
    start, stop = folder / "start.sh", folder / "stop.sh"
    for path, text in ((start, start_script(recorded)), (stop, stop_script(recorded))):
        write_atomically(path, text.encode(errors="surrogateescape"), mode=0o777)
    return start, stop


def argument_lines(arguments: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Split arguments into lines of a flag with its values: `("--max-num-seqs", "64")`."""
    return [flag.words for flag in given_flags(arguments, short=knobs.SHORT_OPTIONS)]
