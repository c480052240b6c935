"""The closed-loop ladder against a server of known speed and a counter of known preemptions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.load.scripted_server import Reset, ScriptedServer, Step, answer, serving
from tuner.bench.level import LevelRun
from tuner.bench.measured import Cut, Measured
from tuner.bench.session import LiveSession
from tuner.bench.task import RunLadder
from tuner.load.early_end import EarlyEnd, EarlyEndKind
from tuner.load.prompts import Prompts
from tuner.load.requests_log import RequestLog
from tuner.load.stream import Target
from tuner.load.workload import workload
from tuner.measurement import Measurement
from tuner.slo import Slo, parse_slo
from tuner.telemetry.sampler import Sampler, Watched
from tuner.verdict import Outcome, Reason, ReasonKind, Verdict

SLO = parse_slo("p99 ttft <= 4s")
"""Far off: a busy machine may add its own tenth of a second."""

LATE = answer(5, 2.5, 0.005)
FAST = answer(5, 0.02, 0.005)
STEADY = answer(5, 0.06, 0.01)
"""0.1 s an answer: slow enough that a busy machine keeps up with 16 at once."""


@contextmanager
def metrics(preemptions: Callable[[], int]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(
                b'vllm:num_preemptions_total{engine="0"} %d\nvllm:num_requests_running 0\n' % preemptions()
            )

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()
        thread.join()


@dataclass
class Ladder:
    """What was called back, besides what was returned."""

    runs: list[LevelRun] = field(default_factory=list)
    stop: bool = False

    def on_level(self, run: LevelRun) -> None:
        self.runs.append(run)

    def run(
        self,
        server: ScriptedServer,
        metrics_url: str,
        model: str,
        levels: tuple[int, ...],
        slos: tuple[Slo, ...] = (SLO,),
        level_s: float = 1.5,
        on_level: Callable[[LevelRun], None] | None = None,
    ) -> Measured:
        prompts = Prompts.for_model(workload("random:10,5"), model, 0, None)
        sampler = Sampler(Watched(metrics_url), interval_s=0.1)
        session = LiveSession(
            Target(server.url, "m"), prompts, slos, sampler, lambda: self.stop, on_level or self.on_level, 0.3
        )
        return session.run(RunLadder(levels, level_s))

    def climb(self, *args: Any, **more: Any) -> list[tuple[Measurement, Verdict]]:
        return [(level.measurement, level.verdict) for level in self.run(*args, **more).levels]


def test_it_climbs_while_the_throughput_rises(tiny_model: str) -> None:
    with serving(STEADY) as server, metrics(lambda: 0) as url:
        levels = Ladder().climb(server, url, tiny_model, (4, 8, 16), level_s=3.2)
    assert [m.load.level for m, _ in levels] == [4, 8, 16]
    assert [v.outcome for _, v in levels] == [Outcome.FEASIBLE] * 3
    for measured, _ in levels:
        # Each answer takes 0.1 s whatever the load: the throughput is known by Little's law.
        assert measured.qps == pytest.approx(measured.load.level / 0.1, rel=0.3)
        assert measured.server.preemptions == 0


def test_every_level_and_the_warm_up_have_prompts_of_their_own(tiny_model: str) -> None:
    with serving(FAST) as server, metrics(lambda: 0) as url:
        Ladder().climb(server, url, tiny_model, (4, 8), level_s=0.8)
    prompts = [str(served.body["messages"]) for served in server.served]
    assert len(set(prompts)) == len(prompts) > 50


def test_a_server_whose_first_answers_outlast_the_warm_up_gets_enough_requests(tiny_model: str) -> None:
    first = [answer(5, 1.5, 0.005)] * 4
    with serving(*first, FAST) as server, metrics(lambda: 0) as url:
        ((measured, _),) = Ladder().climb(server, url, tiny_model, (4,), level_s=3)
    assert measured.completed > 100  # of 4 / 0.04 s × 3 s; the pace of the first answers would prepare 24


def test_a_broken_limit_ends_the_ladder_early(tiny_model: str) -> None:
    ladder = Ladder()
    with serving(LATE) as server, metrics(lambda: 0) as url:
        levels = ladder.climb(server, url, tiny_model, (4, 8), (parse_slo("p99 ttft <= 2s"),), level_s=9)
    ((measured, verdict),) = levels
    assert verdict.outcome is Outcome.INFEASIBLE
    assert measured.aborted is not None and measured.aborted.kind is EarlyEndKind.LIMIT_EXCEEDED
    assert measured.aborted.late is not None and measured.aborted.late > 1
    assert measured.aborted.limit == parse_slo("p99 ttft <= 2s")
    assert ladder.runs[0].samples.drained_ns - ladder.runs[0].samples.started_ns < 6e9


def test_a_preemption_ends_the_ladder(tiny_model: str) -> None:
    seen = {"count": 0}

    def preemptions() -> int:
        seen["count"] += 1
        return 3 if seen["count"] > 4 else 0

    with serving(FAST) as server, metrics(preemptions) as url:
        ((measured, verdict),) = Ladder().climb(server, url, tiny_model, (4, 8))
    assert measured.server.preemptions == 3
    assert verdict.outcome is Outcome.INFEASIBLE and verdict.reasons == (Reason(ReasonKind.PREEMPTIONS, 3.0),)


def test_a_server_that_goes_away_leaves_the_levels_before(tiny_model: str) -> None:
    ladder = Ladder()
    with serving(FAST) as server, metrics(lambda: 0) as url:

        def gone(run: LevelRun) -> None:
            ladder.runs.append(run)
            server.refuse()

        measured = ladder.run(server, url, tiny_model, (4, 8), level_s=1.0, on_level=gone)
    assert [level.measurement.load.level for level in measured.levels] == [4]
    assert measured.cut is Cut.SERVER_LOST


def test_stopped_it_returns_what_it_has(tiny_model: str) -> None:
    ladder = Ladder()
    script: list[Step] = FAST
    with serving(script) as server, metrics(lambda: 0) as url:

        def stop(run: LevelRun) -> None:
            ladder.stop = True

        measured = ladder.run(server, url, tiny_model, (4, 8), level_s=1.0, on_level=stop)
    assert len(measured.levels) == 1 and measured.cut is Cut.INTERRUPTED


def test_failures_end_the_level_at_once_and_the_ladder_when_they_come_again(tiny_model: str) -> None:
    with serving(*[FAST] * 150, [Reset()]) as server, metrics(lambda: 0) as url:
        levels = Ladder().climb(server, url, tiny_model, (4, 8), level_s=5)
    assert [(m.load.level, v.outcome) for m, v in levels] == [(4, Outcome.INVALID), (4, Outcome.INFEASIBLE)]
    assert [m.aborted for m, _ in levels] == [EarlyEnd(EarlyEndKind.REQUEST_FAILED)] * 2


def test_every_request_is_a_row(tmp_path: Path, tiny_model: str) -> None:
    ladder = Ladder()
    with serving(FAST) as server, metrics(lambda: 0) as url:
        ladder.climb(server, url, tiny_model, (4, 8), level_s=0.8)
    log = RequestLog(tmp_path / "requests.parquet")
    for run in ladder.runs:
        log.add(run.measurement.load.level, run.samples)
    table = pq.read_table(tmp_path / "requests.parquet").to_pylist()
    assert len(table) == sum(run.measurement.sent for run in ladder.runs)
    assert {row["level"] for row in table} == {4.0, 8.0}
    first = ladder.runs[0].samples.requests[0]
    assert table[0]["first_ns"] == first.first_ns and table[0]["chunks"] == 5
    assert table[0]["max_gap_ns"] == max(b - a for a, b in zip(first.token_ns, first.token_ns[1:], strict=False))
