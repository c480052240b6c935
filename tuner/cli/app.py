"""Commands, and the one error boundary: message, hint, exit code."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from typer.exceptions import TyperException

from tuner.errors import TunerError, UsageError

_CHANGED = "Go on although vLLM, GPUs or model are not what the study was made with."

app = typer.Typer(
    name="tuner",
    help="Finds the vLLM launch flags with the highest QPS under your latency limits, and writes the start script.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _tuner() -> None:
    """A callback keeps `search` a sub-command while it is the only one."""


@app.command(
    context_settings={"allow_extra_args": True},
    epilog="Example: tuner search --model Qwen/Qwen3-8B --gpus 0-3 --slo 'p99 ttft <= 500ms' -- --kv-cache-dtype fp8",
)
def search(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Folder or hub name of the model.")],
    gpus: Annotated[str | None, typer.Option(help="0-3, or 0,2,5, or all; left out: all there are.")] = None,
    slo: Annotated[list[str] | None, typer.Option(help="Limit, repeatable. Default: 'p99 ttft <= 500ms'.")] = None,
    workload: Annotated[str, typer.Option(help="Preset, random:IN,OUT, or a file of your own traffic.")] = "chat",
    space: Annotated[str, typer.Option(help="Search space: preset or YAML file.")] = "default",
    trials: Annotated[int, typer.Option(help="Starts that search.")] = 60,
    confirm: Annotated[int, typer.Option(help="Starts that confirm winner and default at the end.")] = 4,
    time_budget: Annotated[str, typer.Option(help="8h, 90m, 1h30m, or none. Confirmation is inside it.")] = "8h",
    study: Annotated[str | None, typer.Option(help="Name; the same name goes on with an earlier study.")] = None,
    studies: Annotated[Path, typer.Option(help="Folder of all studies.")] = Path("studies"),
    vllm: Annotated[str, typer.Option(help="The command that starts the server.")] = "vllm serve",
    tensor_parallel_size: Annotated[int, typer.Option(help="GPUs of one server.")] = 1,
    workers: Annotated[int | None, typer.Option(help="Servers at once; default: one a GPU group, else 1.")] = None,
    seed: Annotated[int, typer.Option(help="Of the search and of the prompts.")] = 0,
    storage: Annotated[str | None, typer.Option(help="Optuna storage URL instead of the study's SQLite.")] = None,
    levels: Annotated[str | None, typer.Option(help="Concurrencies. Default: 10,30,64,128,200,256.")] = None,
    level_seconds: Annotated[float, typer.Option(help="Time at each level.")] = 60.0,
    warm_up_seconds: Annotated[float, typer.Option(help="Load before the first level, not counted.")] = 15.0,
    start_limit_seconds: Annotated[float, typer.Option(help="How long a server may take to be ready.")] = 1800.0,
    allow_changed_environment: Annotated[bool, typer.Option("--allow-changed-environment", help=_CHANGED)] = False,
) -> None:
    """Search overnight; words after -- go to every vLLM server unchanged."""
    from tuner.cli.search import run_search
    from tuner.config import DEFAULT_SLOS, ChangedEnvironment, SearchOptions

    _only_after_dashes(context.args)
    options = SearchOptions(
        model=model, gpus=gpus, slos=tuple(slo or DEFAULT_SLOS), workload=workload, space=space, trials=trials,
        confirm=confirm, time_budget=time_budget, study=study, studies=studies, vllm=vllm,
        tensor_parallel_size=tensor_parallel_size, workers=workers, seed=seed, storage=storage, levels=levels,
        level_seconds=level_seconds, warm_up_seconds=warm_up_seconds, start_limit_seconds=start_limit_seconds,
        changed_environment=ChangedEnvironment.ALLOWED if allow_changed_environment else ChangedEnvironment.REFUSED,
        extra=tuple(context.args),
    )  # fmt: skip
    run_search(options)


@app.command(epilog="Example: tuner resume qwen3-8b-chat-1121-2200")
def resume(
    study: Annotated[str, typer.Argument(help="Name of the study.")],
    studies: Annotated[Path, typer.Option(help="Folder of all studies.")] = Path("studies"),
    allow_changed_environment: Annotated[bool, typer.Option("--allow-changed-environment", help=_CHANGED)] = False,
) -> None:
    """Go on with an interrupted study to its own target."""
    from tuner.cli import search as command
    from tuner.config import ChangedEnvironment

    changed = ChangedEnvironment.ALLOWED if allow_changed_environment else ChangedEnvironment.REFUSED
    command.resume(studies.absolute() / study, changed)


def _only_after_dashes(words: list[str]) -> None:
    given = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    if list(words) != given:
        raise UsageError(f"unexpected word {words[0]!r}", hint="vLLM's own flags go after --")


def main() -> None:
    try:
        # Without standalone mode click hands back the code of a plain exit (--help) instead of ending the process.
        code = app(standalone_mode=False) or 0
    except TunerError as error:
        code = _fail(error.message, error.hint, error.exit_code)
    except TyperException as error:
        code = _fail(error.format_message(), "tuner --help, or tuner COMMAND --help", 2)
    except (KeyboardInterrupt, typer.Abort):
        code = _fail("interrupted", "go on with: tuner resume STUDY", 130)
    except Exception as error:  # the boundary: a bug of ours must be told apart from a person's mistake
        traceback.print_exc()
        code = _fail(f"this is a bug of tuner: {error!r}", "everything finished is in the study's folder", 1)
    sys.exit(code)


def _fail(message: str, hint: str, code: int) -> int:
    print(f"error: {message}\nhint: {hint}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
