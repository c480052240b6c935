"""start.sh and stop.sh: the recorded launch, and the end of exactly that server."""

from __future__ import annotations

from pathlib import Path

import jinja2

from tuner.deploy.recorded import Recorded, header, recorded_in
from tuner.environment import Environment
from tuner.flagwords import given_flags
from tuner.formatting import one_line
from tuner.jsonfile import write_atomically
from tuner.launch import VISIBLE_GPUS
from tuner.report.quote import cache_env, shell_word
from tuner.report.tables import read_study
from tuner.study.plan import StudyPlan
from tuner.study.record import TrialRecord
from tuner.study.result import StudyResult
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


def start_script(record: TrialRecord, result: StudyResult, plan: StudyPlan, environment: Environment) -> str:
    """Render bash that starts the recorded launch in its own session and waits until it is ready.

    Host and port come from HOST and PORT (127.0.0.1:8000 otherwise). The values of `secret_env` are asked for, not
    written. Ends with 1 and the log's last lines when the server dies or is not ready in the study's start limit.
    """
    recorded = Recorded(record, result, plan, environment)
    launch = recorded.launch
    return _TEMPLATES.get_template("start.sh.j2").render(
        header=header(recorded, file="start.sh"),
        env=[(n, v) for n, v in recorded.env if not (recorded.gpus and n == VISIBLE_GPUS)],
        caches=cache_env(launch),
        secrets=launch.secret_env,
        # A container gets its variables with -e, in the recorded command itself.
        gpus=() if launch.in_container else recorded.gpus,
        prefix=launch.prefix,
        command=launch.command,
        container=launch.in_container,
        arguments=argument_lines(launch.arguments),
        start_s=round(plan.start_limit_s),
        stop_s=recorded.stop_s,
    )


def stop_script(record: TrialRecord, result: StudyResult, plan: StudyPlan, environment: Environment) -> str:
    """Render bash that ends the server of start.sh's pid file; exit code 1 if anything is left."""
    recorded = Recorded(record, result, plan, environment)
    return _TEMPLATES.get_template("stop.sh.j2").render(
        version=one_line(environment.tuner_version),
        study=one_line(plan.study),
        gpus=recorded.gpus,
        command=recorded.launch.command,
        container=recorded.launch.in_container,
        stop_s=recorded.stop_s,
    )


def write_scripts(study_folder: Path, trial: int | None = None) -> Path:
    """Write start.sh and stop.sh of the winner (or of `trial`) into the study's folder; return start.sh's path. Uses
    the study's files alone. Raises UsageError if there is nothing to quote."""
    return write_pair(study_folder, recorded_in(read_study(study_folder), trial))[0]


def write_pair(folder: Path, recorded: Recorded) -> tuple[Path, Path]:
    """Write start.sh and stop.sh, whole and executable."""
    values = (recorded.record, recorded.result, recorded.plan, recorded.environment)
    start, stop = folder / "start.sh", folder / "stop.sh"
    for path, text in ((start, start_script(*values)), (stop, stop_script(*values))):
        write_atomically(path, text.encode())
        mode = path.stat().st_mode
        path.chmod(mode | (mode & 0o444) >> 2)
    return start, stop


def argument_lines(arguments: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Split arguments into lines of a flag with its values: `("--max-num-seqs", "64")`."""
    return [flag.words for flag in given_flags(arguments, short=knobs.SHORT_OPTIONS)]
