"""Load over real sockets, against a server with known times and bytes."""

from __future__ import annotations

import socket
import ssl
import time
from dataclasses import replace

import pytest

from tests.load.scripted_server import (
    CLOSING,
    DONE,
    HEAD,
    LAST_CHUNK,
    Close,
    Reset,
    Send,
    Step,
    answer,
    chunked,
    event,
    finish,
    role,
    serving,
    token,
    usage,
)
from tuner.errors import UsageError
from tuner.load.drive import LevelProgress, Samples, drive_closed, drive_open
from tuner.load.early_end import INTERRUPTED, EarlyEnd
from tuner.load.prompts import Request
from tuner.load.stream import Failure, RequestSample, Target

SLACK_MS = 2000.0
"""Time that a busy machine may add. A measured time is never less than the truth."""


def requests(count: int, max_tokens: int = 5) -> list[Request]:
    return [Request((("user", f"hello {i}"),), 2, max_tokens, {"ignore_eos": True}) for i in range(count)]


def one(*scripts: list[Step], max_tokens: int = 5, drain_s: float = 5.0) -> RequestSample:
    with serving(*scripts) as server:
        samples = drive_open(Target(server.url, "m"), requests(1, max_tokens), [0.0], 0.1, drain_s=drain_s)
    (sample,) = samples.requests
    return sample


def test_ttft_runs_to_the_first_token_and_every_chunk_is_stamped_on_arrival() -> None:
    script: list[Step] = [
        Send(HEAD + chunked(role()), 0.02),
        Send(chunked(token()), 0.08),
        Send(chunked(token()) + chunked(token()), 0.05),
        Send(chunked(finish()), 0.03),
        Send(chunked(usage(9, 4)) + chunked(DONE) + LAST_CHUNK),
    ]
    with serving(script) as server:
        samples = drive_open(Target(server.url, "m"), requests(1, 4), [0.0], 0.1)
    (sample,), (served,) = samples.requests, server.served
    true_ns = [served.sent_ns[1], served.sent_ns[2], served.sent_ns[2], served.sent_ns[3]]
    late_ms = [(seen - true) / 1e6 for seen, true in zip(sample.token_ns, true_ns, strict=True)]
    assert all(0 <= ms < SLACK_MS for ms in late_ms)
    assert sample.first_ns == sample.token_ns[0] and sample.last_ns == sample.token_ns[-1]
    assert 0 <= (served.received_ns - sample.sent_ns) / 1e6 < SLACK_MS
    assert (sample.prompt_tokens, sample.output_tokens, sample.failure, sample.status) == (9, 4, None, 200)


def test_what_is_sent_is_what_was_asked() -> None:
    with serving(answer(5, 0, 0)) as server:
        drive_closed(Target(server.url, "m"), requests(1), 1, 1)
    body = server.served[0].body
    assert body == {
        "model": "m",
        "messages": [{"role": "user", "content": "hello 0"}],
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }


@pytest.mark.parametrize(
    ("script", "failure"),
    [
        (answer(4, 0, 0), Failure.SHORTENED),
        ([Send(HEAD + chunked(token()) + chunked(DONE) + LAST_CHUNK)], Failure.NO_USAGE),
        ([Send(HEAD + chunked(role()) + chunked(usage(1, 5)) + chunked(DONE) + LAST_CHUNK)], Failure.NO_TOKEN),
        ([Close()], Failure.BROKEN_STREAM),
    ],
    ids=["shortened", "without usage", "without a token", "closed before its first byte"],
)
def test_an_answer_that_lacks_something_is_a_failure(script: list[Step], failure: Failure) -> None:
    assert one(script, max_tokens=5).failure is failure


def test_an_error_chunk_inside_a_200_is_a_failure() -> None:
    broken = event({"error": {"message": "engine died"}})
    sample = one([Send(HEAD + chunked(role()) + chunked(token())), Send(chunked(broken) + chunked(DONE) + LAST_CHUNK)])
    assert (sample.failure, sample.error) == (Failure.ERROR_CHUNK, "engine died")


def test_an_http_error_is_a_failure_with_its_status() -> None:
    sample = one([Send(b'HTTP/1.1 503 Service Unavailable\r\ncontent-length: 28\r\n\r\n{"error":{"message":"full"}}')])
    assert (sample.failure, sample.status, sample.failure_kind) == (Failure.HTTP, 503, "http-503")
    assert sample.error == "full"


def test_a_reset_in_the_middle_is_a_broken_stream() -> None:
    sample = one([Send(HEAD + chunked(role())), Send(chunked(token())), Reset(0.02)])
    assert sample.failure is Failure.BROKEN_STREAM
    assert sample.first_ns is not None


@pytest.mark.parametrize("head", [HEAD, CLOSING])
def test_a_stream_without_done_is_whole_if_reason_usage_and_body_came(head: bytes) -> None:
    frame = chunked if head is HEAD else bytes
    script: list[Step] = [Send(head + frame(token())), Send(frame(finish()) + frame(usage(1, 5)))]
    last = [Send(LAST_CHUNK)] if head is HEAD else [Close()]
    assert one([*script, *last]).failure is None


@pytest.mark.parametrize("lacking", ["reason", "usage", "end"])
def test_a_stream_without_done_is_broken_if_anything_else_is_missing(lacking: str) -> None:
    parts = [chunked(token())]
    parts += [] if lacking == "reason" else [chunked(finish())]
    parts += [] if lacking == "usage" else [chunked(usage(1, 5))]
    end: list[Step] = [Close()] if lacking == "end" else [Send(LAST_CHUNK)]
    assert one([Send(HEAD + b"".join(parts)), *end]).failure is Failure.BROKEN_STREAM


def test_an_answer_that_never_ends_times_out_after_the_drain() -> None:
    sample = one([Send(HEAD + chunked(role()) + chunked(token())), Send(b"", 60)], drain_s=0.2)
    assert sample.failure is Failure.TIMEOUT


def test_a_last_chunk_split_over_packets_ends_the_answer() -> None:
    script = answer(5, 0, 0)
    last = script[-1]
    assert isinstance(last, Send)
    pieces = [
        Send(last.data[:-6]),
        Send(last.data[-6:-4], 0.01),
        Send(last.data[-4:-1], 0.01),
        Send(last.data[-1:], 0.01),
    ]
    assert one([*script[:-1], *pieces]).failure is None


def test_connections_are_kept_and_reused() -> None:
    with serving(answer(5, 0.002, 0.001)) as server:
        samples = drive_closed(Target(server.url, "m"), requests(100), 4, 5)
    assert len(samples.requests) == len(server.served) == 100
    assert server.connections == 4


def test_a_server_that_closes_after_each_answer_is_connected_to_again() -> None:
    head = HEAD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
    script: list[Step] = [Send(head + chunked(token())), *answer(5, 0, 0)[1:]]
    with serving(script) as server:
        samples = drive_closed(Target(server.url, "m"), requests(10), 2, 5)
    assert [r.failure for r in samples.requests] == [None] * 10
    assert server.connections == 10


@pytest.mark.parametrize("end", [Close(), Close(0.005), Reset(), Reset(0.005)], ids=str)
def test_a_server_that_closes_without_a_word_fails_no_request(end: Step) -> None:
    with serving([*answer(5, 0, 0), end]) as server:
        samples = drive_closed(Target(server.url, "m"), requests(40), 3, 5)
    assert [r.failure for r in samples.requests] == [None] * 40
    assert len(server.served) == 40
    assert all(r.due_ns <= r.sent_ns < r.end_ns for r in samples.requests)


def test_a_request_is_sent_again_once_and_no_more() -> None:
    with serving(answer(5, 0, 0), [Close()]) as server:
        samples = drive_closed(Target(server.url, "m"), requests(2), 1, 5)
    assert [r.failure for r in samples.requests] == [None, Failure.BROKEN_STREAM]
    assert len(server.served) == 3


def test_connections_are_kept_on_although_one_was_closed() -> None:
    with serving(*[answer(5, 0, 0)] * 9, [*answer(5, 0, 0), Close()], answer(5, 0, 0)) as server:
        drive_closed(Target(server.url, "m"), requests(30), 1, 5)
    assert server.connections == 2


def test_an_encrypted_server_is_loaded_like_any_other(own_certificate: ssl.SSLContext) -> None:
    with serving([*answer(5, 0, 0), Close()], tls=own_certificate) as server:
        target = Target(server.url, "m", insecure=True)
        samples = drive_closed(target, requests(8), 2, 5)
        distrusted = drive_closed(replace(target, insecure=False), requests(1), 1, 5)
    assert watched(samples) == [None] * 8
    assert watched(distrusted) == [Failure.CONNECT]


def test_closed_loop_never_has_more_in_flight_than_asked() -> None:
    with serving(answer(5, 0.02, 0.005)) as server:
        samples = drive_closed(Target(server.url, "m"), requests(500), 6, 0.6, ramp_s=0.05)
    edges = sorted([(r.sent_ns, 1) for r in samples.requests] + [(r.end_ns, -1) for r in samples.requests])
    in_flight = peak = 0
    for _, step in edges:
        in_flight += step
        peak = max(peak, in_flight)
    assert peak == 6 and in_flight == 0
    assert all(r.failure is None for r in samples.requests)


def test_requests_in_flight_at_the_end_are_drained_not_cut() -> None:
    with serving(answer(5, 0.3, 0.01)) as server:
        samples = drive_closed(Target(server.url, "m"), requests(50), 3, 0.4)
    assert len(samples.requests) == 6
    assert all(r.failure is None for r in samples.requests)
    assert samples.drained_ns > samples.ended_ns


def test_open_loop_sends_on_its_schedule_however_slow_the_server_is() -> None:
    due_s = [0.0, 0.05, 0.05, 0.2, 0.21]
    with serving(answer(5, SLACK_MS / 1000, 0)) as server:
        samples = drive_open(Target(server.url, "m"), requests(5), due_s, 0.3)
    offsets_ms = [(r.due_ns - samples.requests[0].due_ns) / 1e6 for r in samples.requests]
    assert offsets_ms == pytest.approx([1000 * s for s in due_s], abs=1e-3)
    assert all(r.sent_ns >= r.due_ns for r in samples.requests)
    first_answer_ns = min(r.first_ns for r in samples.requests if r.first_ns is not None)
    assert max(r.sent_ns for r in samples.requests) < first_answer_ns, "nobody waited for anybody's answer"


def test_ttft_counts_from_when_the_request_was_due() -> None:
    with serving(answer(5, 0.05, 0)) as server:
        samples = drive_open(Target(server.url, "m"), requests(1), [0.0], 0.1)
    (sample,) = samples.requests
    assert sample.first_ns is not None and sample.ttft_ns == sample.first_ns - sample.due_ns
    assert sample.due_ns <= sample.sent_ns


def watched(samples: Samples) -> list[Failure | None]:
    return [r.failure for r in samples.requests]


def test_a_watch_ends_the_level_at_once_and_cuts_what_is_in_flight() -> None:
    seen: list[LevelProgress] = []

    def watch(progress: LevelProgress) -> EarlyEnd | None:
        seen.append(progress)
        return INTERRUPTED if progress.elapsed_s > 0.3 else None

    began = time.monotonic()
    with serving(answer(5, 30, 0)) as server:
        samples = drive_closed(Target(server.url, "m"), requests(9), 3, 10, watch=watch)
    assert time.monotonic() - began < 3
    assert samples.aborted == INTERRUPTED
    assert watched(samples) == [Failure.CUT] * 3
    assert seen[-1].in_flight == 3 and len(seen[-1].unanswered_ms) == 3


def test_a_watch_sees_answers_and_failures_as_they_come() -> None:
    last: list[LevelProgress] = []

    def watch(progress: LevelProgress) -> EarlyEnd | None:
        last[:] = [progress]
        return None

    failure: list[Step] = [Send(b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n")]
    with serving(answer(5, 0.05, 0), failure, answer(5, 0.05, 0.1)) as server:
        drive_closed(Target(server.url, "m"), requests(6), 1, 3, watch=watch)
    assert last[0].failed == 1
    assert len(last[0].ttft_ms) >= 4
    assert all(50 <= ms < 50 + SLACK_MS for ms in last[0].ttft_ms)


def test_a_server_that_is_gone_is_said_to_be_lost() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    samples = drive_closed(Target(f"http://127.0.0.1:{port}", "m"), requests(50), 4, 5)
    assert samples.server_lost
    assert set(watched(samples)) <= {Failure.CONNECT, Failure.CUT}


def test_requests_that_run_out_end_the_level_early_and_say_so() -> None:
    with serving(answer(5, 0.01, 0)) as server:
        samples = drive_closed(Target(server.url, "m"), requests(4), 2, 30)
    assert samples.exhausted and len(samples.requests) == 4
    assert samples.ended_ns - samples.started_ns < 5e9


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://x", "https:///v1"])
def test_a_target_that_cannot_be_loaded_is_refused_with_a_hint(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        drive_closed(Target(url, "m"), requests(1), 1, 1)
    assert "http://" in caught.value.hint
