"""Builders of samples and telemetry with known numbers."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

from tuner.load.drive import ClientFigures, Samples
from tuner.load.early_end import EarlyEnd
from tuner.load.stream import Failure, RequestSample
from tuner.telemetry.host import HostReading
from tuner.telemetry.prometheus import Scrape
from tuner.telemetry.sampler import Row, Telemetry

MS = 1_000_000
CALM = ClientFigures(cpu_share=0.1, lag_p99_ms=0.5, late_p99_ms=0.3)


def request(
    index: int = 0,
    *,
    due_ms: float = 0.0,
    ttft_ms: float | None = 100.0,
    tpot_ms: float = 10.0,
    tokens: int = 11,
    failure: Failure | None = None,
    end_ms: float | None = None,
    status: int | None = 200,
) -> RequestSample:
    """Build a request that was sent 1 ms after it was due. Without a TTFT it has no answer and ended at `end_ms`."""
    due = round(due_ms * MS)
    times = [] if ttft_ms is None else [round((due_ms + ttft_ms + tpot_ms * i) * MS) for i in range(tokens)]
    last = times[-1] if times else None
    end = round(end_ms * MS) if end_ms is not None else (last if last is not None else due)
    return RequestSample(
        index=index,
        due_ns=due,
        sent_ns=due + MS,
        first_ns=times[0] if times else None,
        last_ns=last,
        end_ns=end,
        asked_tokens=tokens,
        prompt_tokens=7,
        output_tokens=tokens,
        cached_tokens=None,
        status=status,
        failure=failure,
        error=None,
        token_ns=array("q", times),
    )


def level(
    requests: Iterable[RequestSample],
    seconds: float = 10.0,
    *,
    client: ClientFigures = CALM,
    aborted: EarlyEnd | None = None,
    ramp_s: float = 0.0,
) -> Samples:
    rows = tuple(requests)
    ended = round(seconds * 1e9)
    drained = max([ended, *(r.end_ns for r in rows)])
    return Samples(rows, 0, ended, drained, seconds, ramp_s, client, aborted)


HOST = HostReading(cpu_share=0.5, busy_cores=1.0, client_cores=0.2, server_cores=0.8, memory_available_bytes=2**30)


def telemetry(
    *,
    preemptions: float | None = 0,
    rows: Sequence[Row] = (),
    before: float | None = 0,
    server_pids: tuple[int, ...] = (),
) -> Telemetry:
    return Telemetry(tuple(rows), Scrape(0, preemptions=before), Scrape(1, preemptions=preemptions), server_pids)
