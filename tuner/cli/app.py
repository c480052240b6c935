"""Commands and the one error boundary: message, hint, exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.exceptions import TyperException

from tuner.cli.options import (
    STUDIES,
    VLLM,
    AsJson,
    Changed,
    ExtraBody,
    GpuPrice,
    Gpus,
    Name,
    NaturalStops,
    Open,
    Plain,
    Studies,
    Vllm,
    Workload,
    with_search_options,
)  # fmt: skip
from tuner.errors import TunerError
from tuner.report.translations import Language
from tuner.vllm import knobs

if TYPE_CHECKING:
    from tuner.config import SearchOptions

_Language = Annotated[Language, typer.Option("--lang", help="Language of the page.")]
_WITH_EXTRA = {"allow_extra_args": True}

BUG_ERRNOS = (None, errno.EBADF, errno.EINVAL, errno.EFAULT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTTY)
"""Errors of the system that say tuner asked wrongly. All others are of a disk, a limit or a network."""

_PYTHONS_FORMAT = warnings.formatwarning

app = typer.Typer(
    name="tuner",
    help="Finds the vLLM launch flags with the highest QPS under your latency limits, and writes the start script.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        from tuner.environment import tuner_version

        print(f"tuner {tuner_version()}")
        raise typer.Exit


@app.callback(epilog="Example: tuner check && tuner search --model Qwen/Qwen3-8B --gpus 0-3")
def _tuner(
    version: Annotated[bool, typer.Option("--version", help="Version of tuner.", callback=_version, is_eager=True)]
    = False,
) -> None:  # fmt: skip
    pass


@app.command(
    context_settings=_WITH_EXTRA,
    epilog="Example: tuner search --model Qwen/Qwen3-8B --gpus 0-3 --slo 'p99 ttft <= 500ms' "
    f"-- --{knobs.KV_CACHE_DTYPE} fp8",
)
@with_search_options
def search(options: SearchOptions, plain: Plain = False) -> None:
    """Search overnight; words after -- go to every vLLM server unchanged.

    The search ends with its terminal: over ssh, start it in tmux or with nohup. `tuner resume` goes on with what ended.
    """
    from tuner.cli.progress import Look
    from tuner.cli.search import run_search

    run_search(options, Look.PLAIN if plain else Look.FITTING)


@app.command(epilog="Example: tuner resume qwen3-8b-chat-1121-2200")
def resume(
    study: Name, studies: Studies = STUDIES, plain: Plain = False, allow_changed_environment: Changed = False
) -> None:
    """Resume an interrupted study to its own target."""
    from tuner.cli import search as command
    from tuner.cli.folders import study_folder
    from tuner.cli.progress import Look
    from tuner.config import ChangedEnvironment

    changed = ChangedEnvironment.ALLOWED if allow_changed_environment else ChangedEnvironment.REFUSED
    command.resume(study_folder(studies, study), changed, Look.PLAIN if plain else Look.FITTING)


@app.command(epilog="Example: tuner recheck qwen3-8b-chat-1121-2200 --vllm '/opt/vllm-0.33/bin/vllm serve'")
def recheck(
    study: Name,
    studies: Studies = STUDIES,
    vllm: Annotated[str | None, typer.Option(help="Command that starts the server. Default: the study's own.")] = None,
    plain: Plain = False,
) -> None:
    """Compare a finished study's winner with the default once more, on today's software."""
    from tuner.cli.folders import study_folder
    from tuner.cli.progress import Look
    from tuner.cli.recheck import run_recheck

    run_recheck(study_folder(studies, study), vllm, Look.PLAIN if plain else Look.FITTING)


@app.command(
    context_settings=_WITH_EXTRA,
    epilog="Example: tuner plan --model Qwen/Qwen3-8B --gpus 0-3 --workload rag --trials 40",
)
@with_search_options
def plan(options: SearchOptions, as_json: AsJson = False) -> None:
    """Show the whole plan of a search without starting a server."""
    from tuner.cli.plan import show_plan
    from tuner.cli.tables import Form

    show_plan(options, Form.JSON if as_json else Form.TEXT)


@app.command(epilog="Example: tuner check --gpus 0-3 --vllm '/opt/vllm/bin/vllm serve'")
def check(vllm: Vllm = VLLM, gpus: Gpus = None, studies: Studies = STUDIES, as_json: AsJson = False) -> None:
    """Check this machine before a long search. An error exits with 4."""
    from tuner.cli.check import check_machine
    from tuner.cli.tables import Form

    check_machine(vllm, gpus, studies, Form.JSON if as_json else Form.TEXT)


@app.command(epilog="Example: tuner bench --url http://127.0.0.1:8000 --workload chat --slo 'p99 ttft <= 500ms'")
def bench(
    url: Annotated[str, typer.Option(help="Address of the running server.")] = "http://127.0.0.1:8000",
    model: Annotated[str | None, typer.Option(help="Name of the model as it is served. Default: the only one.")] = None,
    metrics_url: Annotated[
        list[str] | None,
        typer.Option(help="Address of /metrics where --url is a proxy's, repeatable. Default: /metrics of --url."),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Trust in any certificate of an https server, such as its own.")
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="Model folder or tokenizer.json. Default: this machine's, else the server's.")
    ] = None,
    workload: Workload = "chat",
    slo: Annotated[
        list[str] | None, typer.Option(help="Latency limit, repeatable. Default: 'p99 ttft <= 500ms'.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Open loop: requests per second. Default: the rate is searched.")
    ] = None,
    levels: Annotated[
        str | None, typer.Option(help="Closed loop: concurrencies, such as 10,30,64. Default: open loop.")
    ] = None,
    level_seconds: Annotated[
        float | None, typer.Option(help="Seconds at each level or at --rate. Default: 60; with --self-check 5.")
    ] = None,
    probe_seconds: Annotated[
        float | None, typer.Option(help="Seconds at each rate of a search. Default: 20, and a claim's own.")
    ] = None,
    warm_up_seconds: Annotated[float, typer.Option(help="Seconds of load before the first measurement.")] = 15.0,
    seed: Annotated[int, typer.Option(help="Seed of the prompts and of the arrivals.")] = 0,
    burstiness: Annotated[
        float | None,
        typer.Option(help="Gamma shape of the arrivals; 1 is Poisson, less is burstier. Default: as recorded, else 1."),
    ] = None,
    natural_stops: NaturalStops = False,
    extra_body: ExtraBody = None,
    claim: Annotated[bool, typer.Option("--claim", help="Claim test of the search's result on fresh traffic.")] = False,
    self_check: Annotated[
        bool, typer.Option("--self-check", help="Measurement of this machine's load generator instead of a server.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for bench.json and the parquet files. Default: none is written.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure any running OpenAI-compatible server. Without --rate and --levels, search the rate that it sustains."""
    from tuner.cli.tables import Form

    form = Form.JSON if as_json else Form.TEXT
    if self_check:
        from tuner.cli.self_check import SECONDS, check_client

        check_client(form, SECONDS if level_seconds is None else level_seconds)
        return
    from tuner.cli.bench import run_bench
    from tuner.cli.bench_options import BenchOptions, Claiming
    from tuner.cli.bench_result import Stops
    from tuner.config import DEFAULT_SLOS

    options = BenchOptions(
        url=url, slos=tuple(slo or DEFAULT_SLOS), model=model, tokenizer=tokenizer, workload=workload, rate=rate,
        levels=levels, level_seconds=level_seconds, probe_seconds=probe_seconds, warm_up_seconds=warm_up_seconds,
        seed=seed, burstiness=burstiness, extra_body=extra_body, stops=Stops.NATURAL if natural_stops else Stops.EXACT,
        claiming=Claiming.TESTED if claim else Claiming.SKIPPED, out=out, metrics_urls=tuple(metrics_url or ()),
        insecure=insecure,
    )  # fmt: skip
    run_bench(options, form)


@app.command(epilog="Example: tuner status qwen3-8b-chat-1121-2200, or: watch --color tuner status NAME")
def status(study: Name, studies: Studies = STUDIES, as_json: AsJson = False) -> None:
    """Show a running or finished study from its files, in any shell."""
    from tuner.cli.status import show_status
    from tuner.cli.tables import Form

    show_status(studies, study, Form.JSON if as_json else Form.TEXT)


@app.command(name="studies", epilog="Example: tuner studies --studies /data/studies")
def list_studies(studies: Studies = STUDIES, as_json: AsJson = False) -> None:
    """List the studies with the best QPS within the limits and the gain over vLLM's default."""
    from tuner.cli.studies import show_studies
    from tuner.cli.tables import Form

    show_studies(studies, Form.JSON if as_json else Form.TEXT)


@app.command(epilog="Example: tuner report qwen3-8b-chat-1121-2200 --lang zh --gpu-price 2.5 --open")
def report(
    study: Name,
    studies: Studies = STUDIES,
    language: _Language = Language.ENGLISH,
    gpu_price: GpuPrice = None,
    open_it: Open = False,
) -> None:
    """Write a study's report.html and print its path."""
    from tuner.cli.report import Then, make_report

    make_report(studies, study, language, gpu_price, Then.OPEN if open_it else Then.SAY)


@app.command(epilog="Example: tuner compare chat-h100 chat-h200 --out h100-against-h200.html")
def compare(
    first: Name,
    second: Name,
    studies: Studies = STUDIES,
    out: Annotated[Path | None, typer.Option(help="File of the page, - for stdout. Default: A-against-B.html.")] = None,
    language: _Language = Language.ENGLISH,
    gpu_price: GpuPrice = None,
    open_it: Open = False,
) -> None:
    """Put two studies side by side on one page."""
    from tuner.cli.compare import compare_studies
    from tuner.cli.report import Then

    compare_studies(studies, (first, second), out, language, gpu_price, Then.OPEN if open_it else Then.SAY)


@app.command(epilog="Example: tuner best qwen3-8b-chat-1121-2200 --format compose > compose.yaml")
def best(
    study: Name,
    studies: Studies = STUDIES,
    format: Annotated[str, typer.Option(help="Format: sh, compose, systemd, k8s, nginx, yaml, args or json.")] = "sh",
    out: Annotated[Path | None, typer.Option(help="Folder of the file. Default: stdout.")] = None,
    trial: Annotated[int | None, typer.Option(help="Number of the trial. Default: the winner's.")] = None,
    replicas: Annotated[
        int | None,
        typer.Option(help="Servers behind nginx or in Kubernetes (default: those of the layout)."),
    ] = None,
    gpu_price: GpuPrice = None,
) -> None:
    """Print the winner's launch as a script, a service file, plain arguments or JSON."""
    from tuner.cli.best import show_best

    show_best(studies, study, format, out, trial=trial, replicas=replicas, gpu_price=gpu_price)


def main() -> None:
    _open_streams()
    warnings.formatwarning = _format_warning
    sys.exit(_delivered(_run()))


def _run() -> int:
    """Run the command line. Returns its exit code."""
    try:
        # Without standalone mode click hands back the code of a plain exit (--help) instead of ending the process.
        code = app(args=sys.argv[1:] or ["--help"], prog_name="tuner", standalone_mode=False) or 0
        sys.stdout.flush()
        return int(code)
    except TunerError as error:
        return _fail(error.message, error.hint, error.exit_code)
    except TyperException as error:
        return _fail(error.format_message(), "tuner --help, or tuner COMMAND --help", 2)
    except (BrokenPipeError, SystemExit) as ended:
        if isinstance(ended, SystemExit) and not isinstance(ended.__context__, BrokenPipeError):
            raise  # shell completion ends like this
        return 0  # `tuner studies | head`: the reader has enough. click turns the error into an exit.
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", "go on with: tuner resume STUDY", 130)
    except OSError as error:
        return _system_error(error)
    except MemoryError:
        return _fail("no memory is left", "free some, then go on with: tuner resume STUDY", 4)
    except RuntimeError as error:
        if "start new thread" not in str(error):
            return _bug(error)
        return _fail("no more threads can be started", "raise the limit of processes and threads (ulimit -u)", 4)
    except Exception as error:  # the boundary: a bug must look different from a user's mistake
        return _bug(error)


def _system_error(error: OSError) -> int:
    """Tell the machine's faults from bugs."""
    if error.errno == errno.ENAMETOOLONG:
        return _fail(f"{error.strerror}: {str(error.filename)[:80]}…", "no file can have this name: shorten it", 2)
    if error.errno in BUG_ERRNOS:
        return _bug(error)
    if error.errno == errno.EAGAIN:
        return _fail("no more processes can be started", "raise the limit of processes and threads (ulimit -u)", 4)
    if not error.filename and not _has_folder():
        return _fail("the current folder is gone", "cd to one that is there, then run this again", 4)
    where = f": {error.filename}" if error.filename else ""
    return _fail(f"{error.strerror}{where}", "make room or repair it, then go on with: tuner resume STUDY", 4)


def _has_folder() -> bool:
    try:
        Path.cwd()
    except OSError:
        return False
    return True


def _open_streams() -> None:
    """Make stdin, stdout and stderr usable. A closed one (`>&-`) would give its number to a file of the study."""
    while (lowest := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(lowest, True)
    os.close(lowest)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - until the end
        getattr(sys, name).reconfigure(errors="replace")  # a terminal that is not UTF-8 still works


def _delivered(code: int) -> int:
    """Flush what is still to be written. A reader or terminal that has gone does not change the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            from tuner.cli.console import forget

            forget(stream)
    return code


def _format_warning(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> str:
    """Write a warning of tuner's own as one line, and others as Python does."""
    own = category.__module__.startswith("tuner.")
    return f"caution: {message}\n" if own else _PYTHONS_FORMAT(message, category, *where, **more)


def _bug(error: Exception) -> int:
    _print_error(traceback.format_exc().rstrip())
    return _fail(f"this is a bug of tuner: {error!r}", "everything finished is in the study's folder", 1)


def _fail(message: str, hint: str, code: int) -> int:
    from tuner.formatting import one_line

    _print_error(f"error: {one_line(message)}\nhint: {one_line(hint)}")
    return code


def _print_error(text: str) -> None:
    from tuner.secrecy import mask

    with suppress(OSError):  # the terminal may be gone: the exit code says it too
        print(mask(text), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
