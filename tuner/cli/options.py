"""Options that several commands share. Only typer is imported, so that --help stays fast."""

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

NaturalStops = Annotated[
    bool, typer.Option("--natural-stops", help="Answers of natural length, for servers without ignore_eos.")
]
ExtraBody = Annotated[
    str | None,
    typer.Option(help="JSON object of further fields for every request; null takes a field out. Default: none."),
]

STUDIES = Path("studies")
VLLM = "vllm serve"


def _names(context: typer.Context, incomplete: str) -> list[str]:
    """Complete the name of a study."""
    studies = context.params.get("studies") or STUDIES
    return sorted(p.parent.name for p in studies.glob("*/plan.json") if p.parent.name.startswith(incomplete))


Name = Annotated[str, typer.Argument(help="Name of the study.", show_default=False, autocompletion=_names)]
Studies = Annotated[Path, typer.Option(help="Folder of all studies.")]
Vllm = Annotated[str, typer.Option(help="Command that starts the server.")]
Workload = Annotated[
    str,
    typer.Option(
        help="Preset, random:IN,OUT, or file of recorded traffic: JSON lines, JSON, CSV or parquet, packed or not "
        "(docs/workload-files.md)."
    ),
]
Gpus = Annotated[str | None, typer.Option(help="GPUs, such as 0-3, 0,2,5 or all. Default: all there are.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON output instead of text.")]
Plain = Annotated[bool, typer.Option("--plain", help="Log of one line an event instead of the live screen.")]
Changed = Annotated[
    bool,
    typer.Option(
        "--allow-changed-environment",
        help="Consent to another vLLM, GPU or model than the study began with.",
    ),
]
GpuPrice = Annotated[
    float | None, typer.Option(help="Price of a GPU-hour, for the cost of requests and tokens. Default: no costs.")
]
Open = Annotated[bool, typer.Option("--open", help="Browser view of the finished page.")]


def search_options(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="Folder or hub name of the model.")],
    gpus: Gpus = None,
    slo: Annotated[
        list[str] | None, typer.Option(help="Latency limit, repeatable. Default: 'p99 ttft <= 500ms'.")
    ] = None,
    workload: Workload = "chat",
    space: Annotated[str, typer.Option(help="Search space, a preset or a YAML file.")] = "default",
    max_model_len: Annotated[
        str | None,
        typer.Option(
            help="Longest request that production must accept, in tokens (8k is 8,000, 8K is 8,192). Default: the "
            "model's own length where the KV cache has room for it, else the workload's need.",
        ),
    ] = None,
    trials: Annotated[int, typer.Option(help="Number of starts that search.")] = 60,
    confirm: Annotated[int, typer.Option(help="Number of confirmation starts of winner and default.")] = 4,
    time_budget: Annotated[
        str, typer.Option(help="Time for search and confirmation, such as 8h, 90m, 1h30m or none.")
    ] = "8h",
    patience: Annotated[
        int | None, typer.Option(help="Number of starts without 1 % more QPS that end the search. Default: no limit.")
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="Name of the study; a known name resumes it. Default: model, workload and time.")
    ] = None,
    studies: Studies = STUDIES,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="Earlier study on such GPUs whose best candidates and rules the search begins with. Default: none.",
            autocompletion=_names,
        ),
    ] = None,
    vllm: Vllm = VLLM,
    layouts: Annotated[
        str,
        typer.Option(help="Servers x GPUs of each, such as 4x1,2x2,1x4 (with pipeline-parallel 2x1x2), or auto."),
    ] = "auto",
    tensor_parallel_size: Annotated[
        int | None, typer.Option(help="Number of GPUs of each server, as the only layout. Default: as --layouts says.")
    ] = None,
    door: Annotated[
        str,
        typer.Option(help="Door of several servers, vllm (its data parallelism), nginx, both (compared) or auto."),
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(help="Number of equal shares of the CPU cores, without GPUs. Default: 1.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the search and of the prompts.")] = 0,
    storage: Annotated[
        str | None, typer.Option(help="Optuna storage URL. Default: SQLite in the study's folder.")
    ] = None,
    load: Annotated[
        str | None, typer.Option(help="Load, open (random arrivals) or closed (a ladder of --levels). Default: open.")
    ] = None,
    probe_seconds: Annotated[
        float | None, typer.Option(help="Open loop: seconds at each rate; claims scale with it. Default: 20.")
    ] = None,
    burstiness: Annotated[
        float | None,
        typer.Option(help="Gamma shape of the arrivals; 1 is Poisson, less is burstier. Default: as recorded, else 1."),
    ] = None,
    natural_stops: NaturalStops = False,
    extra_body: ExtraBody = None,
    levels: Annotated[
        str | None, typer.Option(help="Closed loop: concurrencies. Default: 10,30,64,128,200,256.")
    ] = None,
    level_seconds: Annotated[float, typer.Option(help="Closed loop: seconds at each level.")] = 60.0,
    warm_up_seconds: Annotated[float, typer.Option(help="Seconds of load before the first measurement.")] = 15.0,
    start_limit_seconds: Annotated[float, typer.Option(help="Seconds that a server may take to get ready.")] = 1800.0,
    allow_changed_environment: Changed = False,
) -> SearchOptions:
    from tuner.cli.folders import study_folder
    from tuner.config import DEFAULT_SLOS, ChangedEnvironment, SearchOptions

    _only_after_dashes(context.args)
    return SearchOptions(
        model=model, gpus=gpus, slos=tuple(slo or DEFAULT_SLOS), workload=workload, space=space,
        max_model_len=max_model_len, trials=trials,
        confirm=confirm, time_budget=time_budget, patience=patience, study=study, studies=studies, vllm=vllm,
        layouts=layouts, tensor_parallel_size=tensor_parallel_size, door=door, workers=workers,
        seed=seed, storage=storage, load=load,
        probe_seconds=probe_seconds, burstiness=burstiness, natural_stops=natural_stops, extra_body=extra_body,
        levels=levels,
        level_seconds=level_seconds, warm_up_seconds=warm_up_seconds, start_limit_seconds=start_limit_seconds,
        changed_environment=ChangedEnvironment.ALLOWED if allow_changed_environment else ChangedEnvironment.REFUSED,
        earlier=None if from_ is None else study_folder(studies, from_), extra=tuple(context.args),
        given=frozenset(name.rstrip("_") for name in context.params if _is_given(context, name)),
    )  # fmt: skip


def with_search_options(run: Callable[Concatenate[SearchOptions, P], None]) -> Callable[..., None]:
    """Add every search option to a command `run(options, own, …)`."""
    # typer reads the signature: search_options' own, plus what `run` takes beside its first parameter.
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


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def _only_after_dashes(words: list[str]) -> None:
    given = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    if list(words) != given:
        raise UsageError(f"unexpected word {words[0]!r}", hint="vLLM's own flags go after --")
