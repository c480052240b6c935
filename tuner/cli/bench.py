"""Command `tuner bench`: the load that a running server sustains under the limits, whatever engine it is."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from tuner import formatting, jsonfile
from tuner.bench.capacity_search import Capacity, Claim, Ended, SearchSettings
from tuner.bench.ladder import LadderLostError, LevelRun
from tuner.bench.open_probe import InterruptedLoadError, InvalidLoadError
from tuner.bench.session import Bench, kept
from tuner.cli.console import Console, level_line
from tuner.cli.tables import Form, print_json, print_table
from tuner.config import parse_levels
from tuner.errors import (
    EnvironmentFaultError,
    InterruptedSearchError,
    NothingFeasibleError,
    TunerError,
    UsageError,
)
from tuner.load.arrivals import chosen_arrivals
from tuner.load.endpoint import FoundServer, check_answer, check_fit, find_endpoint, tokenizer_source
from tuner.load.prompts import Prompts
from tuner.load.requests_log import RequestLog
from tuner.load.workload import Workload, workload
from tuner.measurement import LoadKind, Measurement
from tuner.slo import parse_slo
from tuner.study.open_loop import untried
from tuner.study.record import Level
from tuner.telemetry.sampler import Sampler, TelemetryLog
from tuner.verdict import Outcome, Verdict
from tuner.vllm import variables

SCHEMA = 1
KEY_VARIABLES = (variables.API_KEY, "OPENAI_API_KEY")
IDLE_LIMIT_S = 30.0
LEVEL_SECONDS = 60.0
MOST_REQUESTS = 1_000_000


class Stops(StrEnum):
    """End of an answer: exactly the workload's length, or the model's own."""

    EXACT = "exact"
    NATURAL = "natural"


class Claiming(StrEnum):
    SKIPPED = "skipped"
    TESTED = "tested"


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """Flags as given. Without `rate` and `levels` it searches. `seconds` None means the load's own default."""

    url: str
    slos: tuple[str, ...]
    model: str | None = None
    tokenizer: str | None = None
    workload: str = "chat"
    rate: float | None = None
    levels: str | None = None
    seconds: float | None = None
    warm_up_seconds: float = 15.0
    seed: int = 0
    burstiness: float | None = None
    stops: Stops = Stops.EXACT
    claiming: Claiming = Claiming.SKIPPED
    out: Path | None = None


@dataclass(frozen=True, slots=True)
class BenchResult:
    """Result of a bench. `sentence` is the answer; `kept` says for each of `levels` if it kept every limit.

    `arrivals` are those of an open loop, in words. `preemptions_observed` is False if the server's /metrics does not
    count them: the limits were then kept as far as a client can see. `capacity` and `claim` are None if none was
    searched.
    """

    schema: int
    url: str
    model: str
    workload: str
    stops: Stops
    slos: tuple[str, ...]
    seed: int
    arrivals: str
    sentence: str
    preemptions_observed: bool
    kept: tuple[bool, ...]
    levels: tuple[Level, ...]
    capacity: Capacity | None = None
    claim: Claim | None = None


def run_bench(options: BenchOptions, form: Form) -> None:
    """Run the bench. It prints and writes what was measured, also if it ends in an error."""
    try:
        _Command(options).run(form)
    except KeyboardInterrupt:
        raise _interrupted() from None


class _Command:
    """Checks first, then the load; `_end` is the one way out that has something to print."""

    def __init__(self, options: BenchOptions) -> None:
        self._options = options
        self._slos = tuple(dict.fromkeys(parse_slo(text) for text in options.slos))
        self._workload = _workload(options)
        self._levels = None if options.levels is None else parse_levels(options.levels)
        _check_numbers(options)
        self._arrivals = chosen_arrivals(options.burstiness, self._workload)
        self._rules = _rules(options.seconds)
        self._console = Console()
        self._runs: list[Level] = []
        self._capacity: Capacity | None = None
        self._claim: Claim | None = None

    def run(self, form: Form) -> None:
        options = self._options
        folder = _made(options.out)
        endpoint = find_endpoint(options.url, options.model, _api_key())
        check_fit(endpoint, self._workload)
        source = tokenizer_source(endpoint, options.tokenizer)
        prompts = Prompts.for_model(self._workload, source, options.seed, endpoint.target.base_url)
        check_answer(endpoint.target, prompts.requests("first", 1)[0])
        sampler = Sampler(f"{endpoint.target.base_url}/metrics")
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
            bench = Bench(
                endpoint.target, prompts, self._slos, sampler, stop, self._level_log(folder), options.warm_up_seconds,
                options.seed, self._arrivals,
            )  # fmt: skip
            try:
                sentence = self._load(bench)
            except InvalidLoadError as invalid:
                error = _client_fault(str(invalid))
            except InterruptedLoadError:
                error = _interrupted()
            except LadderLostError:
                error = EnvironmentFaultError("the server stopped listening under load", hint="see the server's log")
            except TunerError as told:
                error = told
        result = self._result(endpoint, error.message if error else sentence)
        if folder is not None:
            jsonfile.dump(folder / "bench.json", result)
        if form is Form.JSON:
            print_json(result)
        elif self._runs:
            _print(result)
        if error is not None:
            raise error

    def _load(self, bench: Bench) -> str:
        options = self._options
        if options.rate is not None:
            bench.at_rate(options.rate, options.seconds or LEVEL_SECONDS)
            return self._of_levels()
        if self._levels is not None:
            bench.ladder(self._levels, options.seconds or LEVEL_SECONDS)
            return self._of_levels()
        self._capacity = capacity = bench.capacity(self._rules)
        if capacity.ended is Ended.UNTRIED:
            raise NothingFeasibleError(
                untried(capacity),
                hint="see which requests failed; measure longer with --seconds, or shorten the workload",
            )
        if capacity.rate is None:
            raise NothingFeasibleError(
                f"no rate kept {self._limits}; the lowest tried was {formatting.qps(capacity.failed)}",
                hint="see what each level broke; ease the limit, or shorten the workload",
            )
        if options.claiming is Claiming.SKIPPED:
            return _sustains(capacity, self._limits)
        self._console.say(f"{_sustains(capacity, self._limits)}; now on fresh traffic below it")
        self._claim = claim = bench.claim(capacity.rate, self._rules)
        if claim.rate is None:
            raise NothingFeasibleError(
                f"estimated {formatting.qps(capacity.rate)}, and no rate down to "
                f"{formatting.qps(claim.probes[-1].rate)} held on fresh traffic",
                hint="the server is near its limit there: give a lower --rate and look at its P99",
            )
        return (
            f"holds {formatting.qps(claim.rate)} under {self._limits} on {self._rules.claim_traces} fresh traces "
            f"(the search's estimate was {formatting.qps(capacity.rate)})"
        )

    def _of_levels(self) -> str:
        """Name the best level that kept the limits, or raise the error that says why none did."""
        if not self._runs:
            raise EnvironmentFaultError(
                "nothing could be measured: the server did not become idle", hint="keep other requests away from it"
            )
        good = [level for level in self._runs if kept(level.measurement, level.verdict)]
        if good:
            best = max(good, key=lambda level: level.measurement.qps or 0.0).measurement
            return f"kept {self._limits} at {best.load}: {formatting.qps(best.qps)}"
        last = self._runs[-1].verdict
        if last.outcome is Outcome.INVALID:
            raise _client_fault("; ".join(map(str, last.reasons)))
        hint = "ease the limit, offer less, or shorten the workload"
        raise NothingFeasibleError(
            f"nothing kept {self._limits}: {'; '.join(map(str, last.reasons))}",
            hint="measure longer with --seconds" if last.outcome is Outcome.UNDECIDED else hint,
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
            stops=options.stops,
            slos=tuple(map(str, self._slos)),
            seed=options.seed,
            arrivals=str(self._arrivals),
            sentence=sentence,
            preemptions_observed=any(lv.measurement.server.preemptions is not None for lv in self._runs),
            kept=tuple(kept(level.measurement, level.verdict) for level in self._runs),
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
        self._runs.append(Level(run.measurement, run.verdict))
        load = run.measurement.load
        self._console.say(f"    {level_line(run.measurement, run.verdict if load.kind is self._asked else None)}")
        if self._requests is not None and self._telemetry is not None:
            self._requests.add(load.level, run.samples, load.kind)
            self._telemetry.add(load.level, run.telemetry)


def _print(result: BenchResult) -> None:
    heads = (
        "load",
        "QPS",
        "tokens/s",
        "P50 TTFT",
        "P99 TTFT",
        "P99 TPOT",
        "P99 E2E",
        "failed",
        "preemptions",
        "limits",
    )
    # A search first fills the server in a closed loop, which has no limits to keep.
    asked = [lv for lv in result.levels if result.capacity is None or lv.measurement.load.kind is LoadKind.OPEN]
    print_table(heads, [_row(level.measurement, level.verdict) for level in asked], right=heads[:-1])
    print(f"\n{result.sentence}")
    if not result.preemptions_observed:
        print("Preemptions were not observed: this server's /metrics does not count them as vLLM's does.")
    if result.stops is Stops.NATURAL:
        print("Answers ended on their own: these figures compare only with others of --natural-stops.")
    if result.capacity is not None and result.capacity.rate is not None and result.claim is None:
        print("A search of short probes reads high by some 7 to 18 %; --claim tests what holds on fresh traffic.")


def _row(m: Measurement, verdict: Verdict) -> tuple[str, ...]:
    return (
        str(m.load),
        formatting.significant(m.qps),
        formatting.significant(m.output_tokens_per_s),
        formatting.ms(m.ttft_ms.p50 if m.ttft_ms else None),
        formatting.ms(m.ttft_ms.p99 if m.ttft_ms else None),
        formatting.ms(m.tpot_ms.p99 if m.tpot_ms else None),
        formatting.ms(m.e2e_ms.p99 if m.e2e_ms else None),
        formatting.count(m.failed_total),
        formatting.count(m.server.preemptions),
        "kept" if kept(m, verdict) else f"{verdict.outcome}: {'; '.join(map(str, verdict.reasons))}",
    )


def _sustains(capacity: Capacity, limits: str) -> str:
    at_least = "at least " if capacity.ended is Ended.NEVER_FAILED else ""
    return f"sustains {at_least}{formatting.qps(capacity.rate)} under {limits}"


def _client_fault(reasons: str) -> EnvironmentFaultError:
    return EnvironmentFaultError(
        f"the load generator was the bottleneck, which says nothing of the server: {reasons}",
        hint="leave it a core of its own, or run `tuner bench --self-check` to see what it can do here",
    )


def _interrupted() -> InterruptedSearchError:
    return InterruptedSearchError("interrupted", hint="the server was left as it was; run the same command again")


def _api_key() -> str | None:
    return next((key for name in KEY_VARIABLES if (key := os.environ.get(name))), None)


def _workload(options: BenchOptions) -> Workload:
    return replace(workload(options.workload), natural_stops=options.stops is Stops.NATURAL)


def _rules(seconds: float | None) -> SearchSettings:
    """Scale the probes. The claim stays at its two minutes unless more was requested."""
    rules = SearchSettings()
    if seconds is None:
        return rules
    return replace(
        rules,
        saturation_s=min(rules.saturation_s, seconds),
        probe_s=seconds,
        longest_probe_s=max(rules.longest_probe_s, seconds),
    )


def _check_numbers(options: BenchOptions) -> None:
    if options.rate is not None and options.levels is not None:
        raise UsageError("--rate and --levels exclude each other", hint="one open-loop rate, or a closed-loop ladder")
    if options.claiming is Claiming.TESTED and (options.rate is not None or options.levels is not None):
        raise UsageError("--claim belongs to the search", hint="leave out --rate and --levels")
    if options.levels is not None and options.burstiness is not None:
        raise UsageError("--burstiness has no meaning in a closed loop", hint="leave it out, or give --rate")
    for name, value, least in (
        ("--rate", options.rate, 0.001),
        ("--seconds", options.seconds, 1),
        ("--warm-up-seconds", options.warm_up_seconds, 0.1),
        ("--seed", options.seed, 0),
    ):
        if value is not None and not (math.isfinite(value) and value >= least):
            raise UsageError(f"{name} {value:g}", hint=f"at least {least:g}")
    longest_s = max(options.seconds or LEVEL_SECONDS, options.warm_up_seconds)
    if longest_s * (options.rate or 1.0) > MOST_REQUESTS:
        raise UsageError(
            f"that is more than {MOST_REQUESTS:,} requests or seconds at once", hint="give a lower --rate or --seconds"
        )


def _made(out: Path | None) -> Path | None:
    if out is None:
        return None
    if (out / "bench.json").exists():
        raise UsageError(f"{out} holds a measurement already", hint="give --out another folder")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file", hint="give --out a folder")
    out.mkdir(parents=True, exist_ok=True)
    return out


class _Stop:
    """Flag of a signal. The load asks it ten times a second."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        return self.asked


@contextmanager
def _interruptible() -> Iterator[_Stop]:
    """End the load at the first SIGINT or SIGTERM and keep what was measured. End at once at the second."""
    stop = _Stop()

    def handler(number: int, frame: object) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)
