"""Command `tuner bench`: the load that a running server sustains."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from tuner import formatting, jsonfile
from tuner.bench.capacity_search import Capacity, Claim, Ended
from tuner.bench.level import Level, LevelRun
from tuner.bench.measured import Cut, Measured, Session
from tuner.bench.phrases import note_text
from tuner.bench.session import LiveSession
from tuner.bench.task import ClaimRate, HoldRate, RunLadder, SearchCapacity
from tuner.cli.bench_options import (
    LEVEL_SECONDS,
    BenchOptions,
    Claiming,
    check_options,
    chosen_settings,
    chosen_workload,
    output_folder,
)
from tuner.cli.bench_result import BenchResult, kept, print_result, sustains
from tuner.cli.console import Console, level_line, waiting
from tuner.cli.tables import Form, print_json
from tuner.config import parse_levels
from tuner.errors import (
    EnvironmentFaultError,
    InterruptedSearchError,
    NothingFeasibleError,
    TunerError,
)
from tuner.load.arrivals import chosen_arrivals
from tuner.load.endpoint import FoundServer, check_answer, check_fit, find_endpoint, tokenizer_source
from tuner.load.fit import fitted
from tuner.load.prompts import Prompts, token_counter
from tuner.load.reading import reading_line
from tuner.load.requests_log import RequestLog
from tuner.load.stream import Target
from tuner.measurement import LoadKind
from tuner.server.interrupts import handled
from tuner.slo import parse_slo
from tuner.telemetry.prometheus import TRIES, parsed
from tuner.telemetry.sampler import Sampler, TelemetryLog, Watched
from tuner.verdict import Outcome, Reason, Verdict
from tuner.vllm import variables

SCHEMA = 1
KEY_VARIABLES = (variables.API_KEY, "OPENAI_API_KEY")
IDLE_LIMIT_S = 30.0


def run_bench(options: BenchOptions, form: Form) -> None:
    """Run the bench. It prints and writes what was measured, also if it ends in an error."""
    try:
        _Command(options).run(form)
    except KeyboardInterrupt:
        raise _interrupted() from None


class _Command:
    """One run of the command: the checks, the load, and what it prints and writes."""

    def __init__(self, options: BenchOptions) -> None:
        self._options = options
        self._slos = tuple(dict.fromkeys(parse_slo(text) for text in options.slos))
        self._workload = chosen_workload(options)
        self._levels = None if options.levels is None else parse_levels(options.levels)
        check_options(options)
        self._arrivals = chosen_arrivals(options.burstiness, self._workload)
        self._settings = chosen_settings(options.probe_seconds)
        self._console = Console()
        self._runs: list[Level] = []
        self._capacity: Capacity | None = None
        self._claim: Claim | None = None

    def run(self, form: Form) -> None:
        options = self._options
        folder = output_folder(options.out)
        endpoint = find_endpoint(options.url, options.model, _api_key(), insecure=options.insecure)
        source = tokenizer_source(endpoint, options.tokenizer)
        target = endpoint.target
        counter = token_counter(source, target.base_url, target.api_key, insecure=target.insecure)
        self._workload = fitted(self._workload, counter, endpoint.max_model_len)
        if self._workload.reading is not None:
            self._console.say(f"read {self._workload.file}: {reading_line(self._workload.reading)}")
        check_fit(endpoint, self._workload)
        prompts = Prompts.for_model(
            self._workload, source, options.seed, target.base_url, target.api_key, insecure=target.insecure
        )
        check_answer(target, prompts)
        sampler = Sampler(*_watched(target, options.metrics_urls))
        if not sampler.wait_until_idle(IDLE_LIMIT_S):
            raise EnvironmentFaultError(
                "the server is busy with requests of others", hint="keep them away: they would count as its load"
            )
        load = self._arrivals.phrase if self._levels is None else "closed loop"
        self._console.say(
            f"{endpoint.target.model} at {endpoint.target.base_url}, workload {self._workload.name}, {load}"
        )
        error: TunerError | None = None
        with _interruptible() as stop:
            session = LiveSession(
                endpoint.target, prompts, self._slos, sampler, stop, self._level_log(folder), options.warm_up_seconds,
                options.seed, on_wait=self._say_wait,
            )  # fmt: skip
            try:
                sentence = self._load(session)
            except TunerError as raised:
                error = raised
        result = self._result(endpoint, error.message if error else sentence)
        if folder is not None:
            jsonfile.dump(folder / "bench.json", result)
        if form is Form.JSON:
            print_json(result)
        elif self._runs:
            print_result(result)
        if error is not None:
            raise error

    def _say_wait(self, reasons: tuple[Reason, ...]) -> None:
        if reasons:
            self._console.say(f"    {waiting(reasons)}")

    def _load(self, session: Session) -> str:
        """Load the server as asked and say what it sustains. Raises a TunerError if it sustains nothing."""
        options = self._options
        seconds = options.level_seconds or LEVEL_SECONDS
        if options.rate is not None:
            _whole(session.run(HoldRate(options.rate, seconds, self._arrivals)))
            return self._of_levels()
        if self._levels is not None:
            _whole(session.run(RunLadder(self._levels, seconds)))
            return self._of_levels()
        return self._search(session)

    def _search(self, session: Session) -> str:
        measured = _whole(session.run(SearchCapacity(self._settings, self._arrivals)))
        self._capacity = capacity = measured.capacity
        assert capacity is not None
        if capacity.ended is Ended.UNTRIED:
            raise NothingFeasibleError(
                "; ".join(map(note_text, measured.notes)),
                hint="see which requests failed; measure longer with --probe-seconds, or shorten the workload",
            )
        if capacity.rate is None:
            raise NothingFeasibleError(
                f"no rate kept {self._limits}; the lowest tried was {formatting.qps(capacity.failed)}",
                hint="see what each level broke; ease the limit, or shorten the workload",
            )
        if self._options.claiming is Claiming.SKIPPED:
            return sustains(capacity, self._limits)
        self._console.say(f"{sustains(capacity, self._limits)}; now on fresh traffic below it")
        task = ClaimRate(capacity.rate, self._settings, self._arrivals)
        self._claim = claim = _whole(session.run(task)).claim
        assert claim is not None
        if claim.rate is None:
            raise NothingFeasibleError(
                f"estimated {formatting.qps(capacity.rate)}, and no rate down to "
                f"{formatting.qps(claim.probes[-1].rate)} held on fresh traffic",
                hint="the server is near its limit there: give a lower --rate and look at its P99",
            )
        return (
            f"holds {formatting.qps(claim.rate)} under {self._limits} on {self._settings.claim_traces} fresh traces "
            f"(the search's estimate was {formatting.qps(capacity.rate)})"
        )

    def _of_levels(self) -> str:
        """Name the best level that kept the limits, or raise the error that says why none did."""
        good = [level for level in self._runs if kept(level)]
        if good:
            best = max(good, key=lambda level: level.measurement.qps or 0.0).measurement
            return f"kept {self._limits} at {best.load}: {formatting.qps(best.qps)}"
        last = self._runs[-1].verdict
        if last.outcome is Outcome.INVALID:
            raise _client_fault(last)
        hint = "ease the limit, offer less, or shorten the workload"
        raise NothingFeasibleError(
            f"nothing kept {self._limits}: {'; '.join(map(str, last.reasons))}",
            hint="measure longer with --level-seconds" if last.outcome is Outcome.UNDECIDED else hint,
        )

    @property
    def _limits(self) -> str:
        return ", ".join(map(str, self._slos))

    def _level_log(self, folder: Path | None) -> _LevelLog:
        return _LevelLog(self._runs, LoadKind.OPEN if self._levels is None else LoadKind.CLOSED, self._console, folder)

    def _result(self, endpoint: FoundServer, sentence: str) -> BenchResult:
        options = self._options
        return BenchResult(
            schema=SCHEMA,
            url=endpoint.target.base_url,
            model=endpoint.target.model,
            workload=self._workload.name,
            reading=self._workload.reading,
            stops=options.stops,
            slos=tuple(map(str, self._slos)),
            seed=options.seed,
            arrivals=str(self._arrivals),
            sentence=sentence,
            preemptions_observed=any(lv.measurement.server.preemptions is not None for lv in self._runs),
            load_observed=any(lv.measurement.server.running_peak is not None for lv in self._runs),
            kept=tuple(kept(level) for level in self._runs),
            levels=tuple(self._runs),
            capacity=self._capacity,
            claim=self._claim,
        )


class _LevelLog:
    """Log of every level as it ends: a line on stderr, and whole files in the folder. `asked` levels have limits to
    keep."""

    def __init__(self, runs: list[Level], asked: LoadKind, console: Console, folder: Path | None) -> None:
        self._runs = runs
        self._asked = asked
        self._console = console
        self._requests = None if folder is None else RequestLog(folder / "requests.parquet")
        self._telemetry = None if folder is None else TelemetryLog(folder / "telemetry.parquet")

    def __call__(self, run: LevelRun) -> None:
        self._runs.append(run.level)
        load = run.measurement.load
        verdict = run.verdict
        if verdict.outcome is Outcome.UNDECIDED and kept(run.level):  # preemptions alone were not observed
            verdict = replace(verdict, outcome=Outcome.FEASIBLE, reasons=())
        self._console.say(f"    {level_line(run.measurement, verdict if load.kind is self._asked else None)}")
        if self._requests is not None and self._telemetry is not None:
            self._requests.add(load.level, run.samples, load.kind)
            self._telemetry.add(load.level, run.telemetry)


def _whole(measured: Measured) -> Measured:
    """Raise the error of a task that was cut off."""
    match measured.cut:
        case None:
            return measured
        case Cut.INTERRUPTED:
            raise _interrupted()
        case Cut.SERVER_LOST:
            raise EnvironmentFaultError("the server stopped listening under load", hint="see the server's log")
        case Cut.NOT_IDLE:
            raise EnvironmentFaultError(
                "the server did not become idle between two loads", hint="keep other requests away from it"
            )
        case Cut.NOT_OFFERED:
            raise _client_fault(measured.levels[-1].verdict)


def _watched(target: Target, metrics_urls: Sequence[str]) -> list[Watched]:
    """Return the servers to scrape. Raises EnvironmentFaultError if one that the user named shows nothing known."""
    own = Watched(f"{target.base_url}/metrics", api_key=target.api_key, insecure=target.insecure)
    named = []
    for url in metrics_urls:
        full = url if urlsplit(url).path.strip("/") else f"{url.rstrip('/')}/metrics"
        is_own = urlsplit(full).netloc == urlsplit(target.base_url).netloc
        found = replace(own, metrics_url=full, api_key=target.api_key if is_own else None)
        if parsed(found.page(TRIES)) is None:
            raise EnvironmentFaultError(
                f"{full} shows no metrics of vLLM, SGLang or llama.cpp",
                hint="give --metrics-url the address of the server itself, behind the proxy",
            )
        named.append(found)
    return named or [own]


def _client_fault(verdict: Verdict) -> EnvironmentFaultError:
    reasons = "; ".join(map(str, verdict.reasons))
    return EnvironmentFaultError(
        f"the load could not be offered undisturbed, which says nothing of the server: {reasons}",
        hint="leave the load generator a core of its own; `tuner bench --self-check` shows what it can do here",
    )


def _interrupted() -> InterruptedSearchError:
    return InterruptedSearchError("interrupted", hint="the server was left as it was; run the same command again")


def _api_key() -> str | None:
    return next((key for name in KEY_VARIABLES if (key := os.environ.get(name))), None)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """End the load at the first SIGINT or SIGTERM and keep what was measured. End at once at the second."""
    stop = threading.Event()

    def handler(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    with handled(handler, (signal.SIGINT, signal.SIGTERM)):
        yield stop.is_set
