"""Options that several commands share, declared once. Imports typer only, so that --help stays fast."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Concatenate, ParamSpec

import typer

from tuner.errors import UsageError

if TYPE_CHECKING:
    from tuner.config import SearchOptions

P = ParamSpec("P")

STUDIES = Path("studies")
VLLM = "vllm serve"


def _names(context: typer.Context, incomplete: str) -> list[str]:
    """Studies that a shell may complete to."""
    studies = context.params.get("studies") or STUDIES
    return sorted(p.parent.name for p in studies.glob("*/plan.json") if p.parent.name.startswith(incomplete))


Name = Annotated[str, typer.Argument(help="Name of the study.", show_default=False, autocompletion=_names)]
Studies = Annotated[Path, typer.Option(help="Folder of all studies.")]
Vllm = Annotated[str, typer.Option(help="The command that starts the server.")]
Gpus = Annotated[str | None, typer.Option(help="0-3, or 0,2,5, or all; left out: all there are.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
Plain = Annotated[bool, typer.Option("--plain", help="One line an event instead of the live screen.")]
Changed = Annotated[
    bool,
    typer.Option(
        "--allow-changed-environment",
        help="Go on although vLLM, GPUs or model are not what the study was made with.",
    ),
]
GpuPrice = Annotated[float | None, typer.Option(help="Price of a GPU-hour: adds what requests and tokens cost.")]
Open = Annotated[bool, typer.Option("--open", help="Show it in the browser.")]


def search_options(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Folder or hub name of the model.")],
    gpus: Gpus = None,
    slo: Annotated[list[str] | None, typer.Option(help="Limit, repeatable. Default: 'p99 ttft <= 500ms'.")] = None,
    workload: Annotated[str, typer.Option(help="Preset, random:IN,OUT, or a file of your own traffic.")] = "chat",
    space: Annotated[str, typer.Option(help="Search space: preset or YAML file.")] = "default",
    trials: Annotated[int, typer.Option(help="Starts that search.")] = 60,
    confirm: Annotated[int, typer.Option(help="Starts that confirm winner and default at the end.")] = 4,
    time_budget: Annotated[str, typer.Option(help="8h, 90m, 1h30m, or none. Confirmation is inside it.")] = "8h",
    patience: Annotated[
        int | None, typer.Option(help="End the search after so many starts without 1 % more QPS. Default: never.")
    ] = None,
    study: Annotated[str | None, typer.Option(help="Name; the same name goes on with an earlier study.")] = None,
    studies: Studies = STUDIES,
    vllm: Vllm = VLLM,
    tensor_parallel_size: Annotated[int, typer.Option(help="GPUs of one server.")] = 1,
    workers: Annotated[int | None, typer.Option(help="Servers at once; default: one a GPU group, else 1.")] = None,
    seed: Annotated[int, typer.Option(help="Of the search and of the prompts.")] = 0,
    storage: Annotated[str | None, typer.Option(help="Optuna storage URL instead of the study's SQLite.")] = None,
    load: Annotated[
        str | None, typer.Option(help="open: requests arrive by chance; closed: a ladder of --levels. Default: open.")
    ] = None,
    probe_seconds: Annotated[float | None, typer.Option(help="Time at each rate; claims get longer with it.")] = None,
    burstiness: Annotated[
        float | None,
        typer.Option(help="Gamma shape of the arrivals: 1 is Poisson, below it clumps. Default: as recorded, else 1."),
    ] = None,
    levels: Annotated[str | None, typer.Option(help="Closed: concurrencies. Default: 10,30,64,128,200,256.")] = None,
    level_seconds: Annotated[float, typer.Option(help="Closed: time at each level.")] = 60.0,
    warm_up_seconds: Annotated[float, typer.Option(help="Load before the first measurement, not counted.")] = 15.0,
    start_limit_seconds: Annotated[float, typer.Option(help="How long a server may take to be ready.")] = 1800.0,
    allow_changed_environment: Changed = False,
) -> SearchOptions:
    from tuner.config import DEFAULT_SLOS, ChangedEnvironment, SearchOptions

    _only_after_dashes(context.args)
    return SearchOptions(
        model=model, gpus=gpus, slos=tuple(slo or DEFAULT_SLOS), workload=workload, space=space, trials=trials,
        confirm=confirm, time_budget=time_budget, patience=patience, study=study, studies=studies, vllm=vllm,
        tensor_parallel_size=tensor_parallel_size, workers=workers, seed=seed, storage=storage, load=load,
        probe_seconds=probe_seconds, burstiness=burstiness, levels=levels,
        level_seconds=level_seconds, warm_up_seconds=warm_up_seconds, start_limit_seconds=start_limit_seconds,
        changed_environment=ChangedEnvironment.ALLOWED if allow_changed_environment else ChangedEnvironment.REFUSED,
        extra=tuple(context.args),
    )  # fmt: skip


def with_search_options(run: Callable[Concatenate[SearchOptions, P], None]) -> Callable[..., None]:
    """`run(options, own, …)` → a command that takes every option of a search and its own ones."""
    # typer reads a signature: that of search_options, with what `run` takes beside its first parameter.
    shared = inspect.signature(search_options, eval_str=True, locals={"SearchOptions": object})
    all_of_run = inspect.signature(run, eval_str=True, locals={"SearchOptions": object}).parameters.values()
    own = list(all_of_run)[1:]

    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        mine = {p.name: kwargs.pop(p.name) for p in own}
        run(search_options(*args, **kwargs), **mine)  # type: ignore[arg-type, call-arg]

    command.__name__, command.__doc__ = run.__name__, run.__doc__
    command.__signature__ = shared.replace(  # type: ignore[attr-defined]
        parameters=[*shared.parameters.values(), *own], return_annotation=None
    )
    return command


def _only_after_dashes(words: list[str]) -> None:
    given = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    if list(words) != given:
        raise UsageError(f"unexpected word {words[0]!r}", hint="vLLM's own flags go after --")
