"""Levels that say nothing of the server, on a session whose loads and looks at the machine are scripted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import psutil
import pytest

from tests.study.builders import level
from tests.study.open_server import open_level
from tuner.bench.capacity_search import Stop
from tuner.bench.level import Level, LevelRun
from tuner.bench.measured import Cut, InvalidLoadError, LoadCutError
from tuner.bench.quiet import LOOK_S, LOUDER_SHARE, PATIENCE_S, DoubtKind, Surroundings
from tuner.bench.session import LiveSession
from tuner.load.drive import ClientFigures, Samples
from tuner.load.early_end import EarlyEnd, EarlyEndKind
from tuner.load.prompts import Prompts
from tuner.load.stream import Target
from tuner.measurement import Attainment, Caution, CautionKind, ClientLoad
from tuner.slo import parse_slo
from tuner.telemetry.cautions import Observation, Sign
from tuner.telemetry.sampler import Sampler, Telemetry
from tuner.verdict import Outcome, Reason, ReasonKind, judge

SLOS = (parse_slo("p99 ttft <= 500ms"),)
RATE = 12.7
CORES = psutil.cpu_count() or 1
LOUD = (LOUDER_SHARE + 0.1) * CORES


def others(cores: float) -> Caution:
    return Caution(CautionKind.HOST_BUSY, (Observation(Sign.FOREIGN_CORES, cores),))


def throttled(reason: str) -> Caution:
    return Caution(CautionKind.THROTTLED, (Observation(Sign.THROTTLE_REASON, reason, 0),))


FOREIGN_PROCESS = Caution(CautionKind.FOREIGN_PROCESS, (Observation(Sign.PROCESS_ID, 4711.0, 0),))


def seen(
    p99_ms: float = 300.0,
    *cautions: Caution,
    rate: float = RATE,
    lag_ms: float = 1.0,
    cpu: float = 0.1,
    failed: tuple[tuple[str, int], ...] = (),
    preemptions: int = 0,
    aborted: EarlyEnd | None = None,
) -> Level:
    """A level of an open loop, judged as any other."""
    made = replace(
        open_level(rate, p99_ms, preemptions).measurement,
        client=ClientLoad(cpu, lag_ms, lag_ms),
        cautions=cautions,
        failed=failed,
        aborted=aborted,
        planned_s=120.0,
        attainments=(Attainment(SLOS[0], 1000, (20 if p99_ms > 500 else 0) + sum(n for _, n in failed), p99_ms),),
    )
    return Level(made, judge(made, SLOS))


PASSED = seen(300.0)
REJECTED = seen(700.0)
LATE = seen(700.0, lag_ms=145.0)
LOUDER = seen(700.0, others(LOUD))
FLAKY = seen(300.0, failed=(("http-503", 1),))
FROZEN = seen(700.0, failed=(("timeout", 8),), aborted=EarlyEnd(EarlyEndKind.CLIENT_FROZEN, seconds=120.0))
BUSY = seen(700.0, cpu=0.95)
STARVED = seen(700.0, failed=(("connect", 182),), aborted=EarlyEnd(EarlyEndKind.NO_DESCRIPTORS))


@dataclass
class Scripted(LiveSession):
    """Session whose probes show `script` in turn, and whose looks at the machine `looks`; then all is quiet."""

    script: Sequence[Level] = ()
    looks: Sequence[bool] = ()
    asked: list[tuple[float, str]] = field(default_factory=list)
    looked: int = 0

    def _open(self, rate: float, seconds: float, trace: str, stop: Stop) -> LevelRun:
        self.asked.append((rate, trace))
        shown = self.script[len(self.asked) - 1]
        samples = Samples((), 0, 0, round(seconds * 1e9), seconds, 0.0, ClientFigures(0.1, 0.5, 0.3))
        return LevelRun(shown.measurement, shown.verdict, samples, Telemetry((), None, None))

    def _is_quiet(self) -> bool:
        self.looked += 1
        if self.should_stop():
            raise LoadCutError(Cut.INTERRUPTED)
        return self.looks[self.looked - 1] if self.looked <= len(self.looks) else True


def session(*script: Level, looks: Sequence[bool] = (), stop: bool = False) -> tuple[Scripted, list[str]]:
    said: list[str] = []
    made = Scripted(
        Target("http://127.0.0.1:1", "m"), cast(Prompts, None), SLOS, Sampler(), lambda: stop, lambda run: None, 0.0,
        script=script, looks=looks, on_wait=lambda reasons: said.append("; ".join(map(str, reasons))),
    )  # fmt: skip
    return made, said


def outcomes(made: Scripted) -> list[Outcome]:
    return [level.verdict.outcome for level in made.levels]


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (LATE, "the load generator was 145 ms late at P99"),
        (FROZEN, "ended early: the load generator stood still for 120 s"),
        (seen(700.0, others(LOUD), cpu=0.95), "used 95% of its core"),
    ],
    ids=["late", "frozen", "busy in a loud machine"],
)
def test_an_invalid_level_waits_for_quiet_and_is_repeated_on_its_own_trace(first: Level, why: str) -> None:
    made, said = session(first, PASSED, looks=[False, False, True])
    result = made.probe(RATE, 120.0, "claim-0-0", Stop.AT_REJECTION)
    assert result.passed and made.asked == [(RATE, "claim-0-0")] * 2
    assert made.looked == 3 and why in said[0] and said[1:] == [""]
    assert outcomes(made) == [Outcome.INVALID, Outcome.FEASIBLE]


@pytest.mark.parametrize("level", [LATE, FROZEN], ids=["late", "frozen"])
def test_a_level_that_stays_invalid_is_no_verdict(level: Level) -> None:
    made, _ = session(level, level, looks=[False] * 1000)
    with pytest.raises(InvalidLoadError) as caught:
        made.probe(RATE, 120.0, "search", Stop.AT_END)
    assert caught.value.verdict.outcome is Outcome.INVALID and len(made.asked) == 2
    assert made.looked == PATIENCE_S / LOOK_S


def test_all_waits_of_a_session_together_are_bounded() -> None:
    made, _ = session(*[LATE, PASSED] * 4, looks=[False] * 1000)
    for _ in range(4):
        assert made.probe(RATE, 120.0, "search", Stop.AT_END).passed
    assert made.looked == PATIENCE_S / LOOK_S + 3
    assert made.waited_s == made.looked * LOOK_S


@pytest.mark.parametrize("level", [BUSY, STARVED], ids=["busy", "no descriptors"])
def test_a_client_that_is_itself_the_bottleneck_is_not_waited_for(level: Level) -> None:
    made, said = session(level)
    with pytest.raises(InvalidLoadError) as caught:
        made.probe(RATE, 20.0, "search", Stop.AT_END)
    assert made.looked == 0 and said == [] and str(caught.value)


@pytest.mark.parametrize(
    "caution", [others(LOUD), throttled("hardware thermal slowdown"), FOREIGN_PROCESS], ids=lambda c: c.kind
)
def test_a_rejection_while_the_machine_is_louder_than_before_is_repeated(caution: Caution) -> None:
    made, said = session(PASSED, seen(700.0, caution), PASSED)
    made.probe(RATE, 120.0, "claim-0-0", Stop.AT_REJECTION)
    assert made.probe(RATE, 120.0, "claim-0-1", Stop.AT_REJECTION).passed
    assert [trace for _, trace in made.asked] == ["claim-0-0", "claim-0-1", "claim-0-1"]
    assert outcomes(made) == [Outcome.FEASIBLE, Outcome.INVALID, Outcome.FEASIBLE]
    assert "it was measured again" in said[0]


def test_a_machine_that_stays_louder_gets_its_verdict_and_is_not_doubted_again() -> None:
    made, _ = session(PASSED, LOUDER, LOUDER, LOUDER, looks=[False] * 1000)
    made.probe(RATE, 120.0, "a", Stop.AT_END)
    assert [made.probe(RATE, 120.0, trace, Stop.AT_END).passed for trace in "bc"] == [False, False]
    assert [trace for _, trace in made.asked] == list("abbc")
    assert outcomes(made)[1:] == [Outcome.INVALID, Outcome.INFEASIBLE, Outcome.INFEASIBLE]


@pytest.mark.parametrize("first", [LOUDER, seen(300.0, others(LOUD))], ids=["rejected", "passed"])
def test_a_machine_that_is_always_loud_gets_verdicts_at_once(first: Level) -> None:
    made, said = session(first, LOUDER, seen(300.0, others(LOUD)), seen(700.0, others(LOUD + LOUDER_SHARE * CORES / 2)))
    passed = [made.probe(RATE, 120.0, "search", Stop.AT_END).passed for _ in range(4)]
    assert passed[1:] == [False, True, False]
    assert len(made.asked) == 4 and said == []


@pytest.mark.parametrize("caution", [others(0.9 * LOUDER_SHARE * CORES), throttled("power cap")], ids=lambda c: c.kind)
def test_what_comes_and_goes_on_any_machine_is_not_loud(caution: Caution) -> None:
    made, _ = session(PASSED, seen(700.0, caution))
    assert [made.probe(RATE, 20.0, "search", Stop.AT_END).passed for _ in range(2)] == [True, False]


@pytest.mark.parametrize("kind", ["http-503", "broken-stream", "connect", "error-chunk", "timeout"])
def test_a_load_that_failed_by_failed_requests_alone_is_repeated_once_before_it_counts(kind: str) -> None:
    flaky = seen(300.0, failed=((kind, 1),), aborted=EarlyEnd(EarlyEndKind.REQUEST_FAILED))
    made, said = session(flaky, PASSED, flaky, flaky)
    assert made.probe(RATE, 20.0, "search", Stop.AT_END).passed
    assert not made.probe(RATE, 20.0, "search", Stop.AT_END).passed
    assert outcomes(made) == [Outcome.INVALID, Outcome.FEASIBLE, Outcome.INVALID, Outcome.INFEASIBLE]
    assert said == [], "nobody waits for a server's fault to pass"


@pytest.mark.parametrize(
    "level",
    [seen(700.0, failed=(("http-503", 1),)), seen(300.0, failed=(("http-503", 1),), preemptions=2), REJECTED],
    ids=["limit broken too", "preempted too", "limit broken"],
)
def test_a_level_with_more_against_it_counts_at_once(level: Level) -> None:
    made, _ = session(level)
    assert not made.probe(RATE, 20.0, "search", Stop.AT_END).passed
    assert outcomes(made) == [Outcome.INFEASIBLE]


def test_each_kind_of_doubt_repeats_a_level_once() -> None:
    made, _ = session(PASSED, FLAKY, LATE, LOUDER, FLAKY)
    made.probe(RATE, 20.0, "a", Stop.AT_END)
    assert not made.probe(RATE, 20.0, "b", Stop.AT_END).passed
    assert [trace for _, trace in made.asked] == list("abbbb")


def test_an_interrupt_ends_the_wait() -> None:
    made, _ = session(LATE, PASSED, stop=True)
    with pytest.raises(LoadCutError) as caught:
        made.probe(RATE, 20.0, "search", Stop.AT_END)
    assert caught.value.cut is Cut.INTERRUPTED


def test_a_saturating_loop_is_doubted_for_the_clients_faults_alone() -> None:
    """Its limits are broken and requests are preempted by design."""
    full = level(20.0, 9000.0, preemptions=7, concurrency=320).measurement
    around = Surroundings()
    assert around.spoilt(full, ()) is None
    late = around.spoilt(full, (Reason(ReasonKind.CLIENT_LATE, 145.0),))
    assert late is not None and late.kind is DoubtKind.SPOILT


@pytest.mark.parametrize(
    ("cautions", "lag_ms", "quiet"),
    [((), 1.0, True), ((), 60.0, False), ((others(LOUD),), 1.0, False), ((FOREIGN_PROCESS,), 1.0, False)],
)
def test_quiet_is_what_the_quietest_level_was(cautions: tuple[Caution, ...], lag_ms: float, quiet: bool) -> None:
    around = Surroundings()
    assert around.is_quiet(cautions, lag_ms, SLOS) is quiet
    around.counts(seen(300.0, *cautions).measurement, again=False)
    assert around.is_quiet(cautions, lag_ms, SLOS) is (lag_ms < 20)
