"""Open-loop probes against a server of known speed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bench.test_ladder import metrics
from tests.load.scripted_server import Reset, answer, serving
from tests.load.test_recorded import timed
from tuner.bench.capacity_search import Stop
from tuner.bench.level import LevelRun
from tuner.bench.session import LiveSession, Pace
from tuner.bench.task import SearchCapacity
from tuner.load.arrivals import chosen_arrivals
from tuner.load.prompts import Prompts
from tuner.load.stream import Target
from tuner.load.workload import workload
from tuner.measurement import Load, LoadKind
from tuner.slo import parse_slo
from tuner.telemetry.sampler import Sampler, Watched
from tuner.verdict import Outcome

FAST = answer(5, 0.05, 0.005)
LATE = answer(5, 2.5, 0.005)
"""Half a second over a limit of 2 s: more than a busy machine adds of its own."""


def session_of(
    url: str, metrics_url: str, model: str, limit: str, runs: list[LevelRun], text: str = "random:10,5"
) -> LiveSession:
    """A session that is warm: eight clients, whose requests are prepared."""
    session = LiveSession(
        Target(url, "m"),
        Prompts.for_model(workload(text), model, 0, None),
        (parse_slo(limit),),
        Sampler(Watched(metrics_url), interval_s=0.1),
        should_stop=lambda: False,
        on_level=runs.append,
        warm_up_s=0.0,
    )
    session._pace = Pace(8, 500.0, 0.01)
    session.warm_up(SearchCapacity(arrivals=chosen_arrivals(None, workload(text))))
    return session


def test_a_probe_offers_its_rate_and_tells_the_margin(tiny_model: str) -> None:
    runs: list[LevelRun] = []
    with serving(FAST) as server, metrics(lambda: 0) as url:
        result = session_of(server.url, url, tiny_model, "p99 ttft <= 4s", runs).probe(60.0, 3.0, "search", Stop.AT_END)
    assert result.passed
    assert result.log_ratio is not None and result.log_ratio < -1
    # A client that this machine held up says so, and offers its load once more.
    assert [run.verdict.outcome is Outcome.INVALID for run in runs] in ([False], [True, False])
    assert sum(run.measurement.sent for run in runs) == len(server.served)
    assert runs[-1].measurement.sent == pytest.approx(180, abs=45)
    assert runs[-1].measurement.failed == ()


def test_a_rejected_probe_ends_early(tiny_model: str) -> None:
    with serving(LATE) as server, metrics(lambda: 0) as url:
        session = session_of(server.url, url, tiny_model, "p99 ttft <= 2s", [])
        result = session.probe(50.0, 20.0, "search", Stop.AT_REJECTION)
    assert not result.passed
    assert result.log_ratio is None
    assert result.seconds < 8


def test_saturation_is_littles_law(tiny_model: str) -> None:
    with serving(FAST) as server, metrics(lambda: 0) as url:
        found = session_of(server.url, url, tiny_model, "p99 ttft <= 2s", []).saturate(2.0)
    assert found.answer_s >= 0.07
    assert found.rate == pytest.approx(8 / found.answer_s, rel=0.3)


def test_answers_that_take_longer_than_the_closed_loop_tell_its_pace_too(tiny_model: str) -> None:
    """Answers of a second, where the loop sends for less than half of one: not 0 a second, and no guess."""
    runs: list[LevelRun] = []
    with serving(answer(5, 1.0, 0.0)) as server, metrics(lambda: 0) as url:
        found = session_of(server.url, url, tiny_model, "p99 ttft <= 60s", runs).saturate(0.4)
    (run,) = runs
    assert run.measurement.qps == 0 and run.measurement.completed > 0
    assert found.rate == run.measurement.completed / ((run.samples.drained_ns - run.samples.started_ns) / 1e9)
    assert found.answer_s >= 1


def test_without_an_answer_the_closed_loop_tells_how_long_it_waited(tiny_model: str) -> None:
    with serving([Reset(0.2)]) as server, metrics(lambda: 0) as url:
        found = session_of(server.url, url, tiny_model, "p99 ttft <= 60s", []).saturate(0.1)
    assert found.rate == 0 and found.answer_s >= 0.2


def test_the_closed_loop_is_a_level_like_any_other_and_no_limit_ends_it(tiny_model: str) -> None:
    runs: list[LevelRun] = []
    with serving(LATE) as server, metrics(lambda: 0) as url:
        session_of(server.url, url, tiny_model, "p99 ttft <= 1ms", runs).saturate(1.0)
    (run,) = runs
    assert run.measurement.load == Load(LoadKind.CLOSED, 8)
    assert run.measurement.aborted is None and run.measurement.server.preemptions == 0
    assert run.verdict.outcome is Outcome.INFEASIBLE


def test_a_rate_on_the_same_trace_has_the_same_lengths_and_new_words(tiny_model: str) -> None:
    with serving(FAST) as server, metrics(lambda: 0) as url:
        session = session_of(server.url, url, tiny_model, "p99 ttft <= 4s", [])
        session.probe(20.0, 1.0, "search", Stop.AT_END)
        session.probe(22.0, 1.0, "search", Stop.AT_END)
        words = [str(served.body["messages"]) for served in server.served]
    assert len(words) > 20 and len(set(words)) == len(words)


def test_recorded_traffic_is_sent_in_its_order_with_its_own_gaps(tiny_model: str, tmp_path: Path) -> None:
    """Gaps of 1, 2, 3, … at a mean of a twentieth of a second, whatever the recording's own pace."""
    times = [i * (i + 1) / 2 * 60 for i in range(41)]
    text = timed(tmp_path / "own.jsonl", *times)
    runs: list[LevelRun] = []
    with serving(FAST) as server, metrics(lambda: 0) as url:
        session = session_of(server.url, url, tiny_model, "p99 ttft <= 60s", runs, text=text)
        session.probe(20.0, 2.0, "search", Stop.AT_END)
        words = [str(served.body["messages"]) for served in server.served]
    # Forty, or, where this machine held the client up and the load was offered again, the last forty.
    assert sorted(int(re.findall(r"p(\d+)", word)[0]) for word in words[-40:]) == list(range(40))
    due_s = [(r.due_ns - runs[-1].samples.requests[0].due_ns) / 1e9 for r in runs[-1].samples.requests]
    assert due_s == pytest.approx([i * (i + 1) / (39 * 40) * 39 / 20 for i in range(40)], abs=1e-6)
