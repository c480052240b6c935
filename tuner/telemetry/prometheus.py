"""Reader of vLLM's /metrics. Counters become deltas, old names new ones, engines and servers a sum. None if a metric is
missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tuner.http import control_client
from tuner.vllm.metrics import EXPOSED, FINISHED_REASONS

_WANTED = tuple(name for names in EXPOSED.values() for name in names)
SCRAPE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Scrape:
    """One reading. Counters run since the server's start; `running`, `waiting` and `kv_usage` (0..1) are momentary.

    Engines and servers are summed; `kv_usage` is that of the fullest. `queue_s` and `server_ttft_s` are sums over
    `queued` and `server_ttft_count` requests. `succeeded` counts requests that stopped or reached their length.
    """

    at_ns: int
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    preemptions: float | None = None
    request_preemptions: float | None = None
    succeeded: float | None = None
    prompt_tokens: float | None = None
    generation_tokens: float | None = None
    prefix_queries: float | None = None
    prefix_hits: float | None = None
    queue_s: float | None = None
    queued: float | None = None
    server_ttft_s: float | None = None
    server_ttft_count: float | None = None

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting


COUNTERS = tuple(f.name for f in fields(Scrape) if f.name not in ("at_ns", "running", "waiting", "kv_usage"))


@dataclass(frozen=True, slots=True)
class Deltas:
    """Rise of the counters between two scrapes. None if either lacks the metric."""

    preemptions: int | None
    request_preemptions: int | None
    succeeded: int | None
    prompt_tokens: int | None
    generation_tokens: int | None
    prefix_hit_rate: float | None
    queue_ms_mean: float | None
    server_ttft_ms_mean: float | None


@dataclass(frozen=True, slots=True)
class Page:
    """Text of a server's /metrics, read at a moment."""

    text: str
    at_ns: int


def read_page(metrics_url: str) -> Page | None:
    """Read /metrics. None if the server does not answer."""
    try:
        with control_client(timeout_s=SCRAPE_TIMEOUT_S) as client:
            answer = client.get(metrics_url).raise_for_status()
    except httpx.HTTPError:
        return None
    return Page(answer.text, time.monotonic_ns())


def scrape(metrics_url: str) -> Scrape | None:
    """Read /metrics. None if the server does not answer, or answers without one of vLLM's metrics."""
    return parsed(read_page(metrics_url))


def parsed(page: Page | None) -> Scrape | None:
    """Sum the engines of a page. None without one."""
    return None if page is None else parse(page.text, page.at_ns)


def parse(text: str, at_ns: int) -> Scrape | None:
    """Sum the engines of a page."""
    return _scrape(_samples(text), at_ns)


def engines(text: str, at_ns: int) -> tuple[Scrape, ...]:
    """Read the engines of a page one by one, in their order."""
    by_engine: dict[int, dict[str, list[Sample]]] = {}
    for name, found in _samples(text).items():
        for one in found:
            label = one.labels.get("engine", "0")
            number = int(label) if label.isdecimal() else 0
            by_engine.setdefault(number, {}).setdefault(name, []).append(one)
    scrapes = (_scrape(by_engine[number], at_ns) for number in sorted(by_engine))
    return tuple(one for one in scrapes if one is not None)


def summed(servers: Sequence[Scrape | None]) -> Scrape | None:
    """Sum the readings of several servers. None if one of them did not answer; a metric that one lacks is None."""
    scrapes = [one for one in servers if one is not None]
    if len(scrapes) < len(servers) or not scrapes:
        return None
    values = {name: [getattr(one, name) for one in scrapes] for name in EXPOSED}
    return Scrape(
        max(one.at_ns for one in scrapes),
        **{name: None if None in found else _combine(name)(found) for name, found in values.items()},
    )


def totals(before: Sequence[Scrape | None], after: Sequence[Scrape | None]) -> tuple[Scrape | None, Scrape | None]:
    """Sum the readings of the same servers before and after a load. A counter that a server exposes only afterwards
    rose from 0."""
    known = [
        first if first is None or last is None else _from_zero(first, last)
        for first, last in zip(before, after, strict=True)
    ]
    return summed(known), summed(after)


def _from_zero(first: Scrape, last: Scrape) -> Scrape:
    values = {name: getattr(first, name) for name in EXPOSED}
    appeared = [name for name in COUNTERS if values[name] is None and getattr(last, name) is not None]
    return Scrape(first.at_ns, **{**values, **dict.fromkeys(appeared, 0.0)})


def _samples(text: str) -> dict[str, list[Sample]]:
    """Parse the wanted lines alone. All of them would hold the interpreter, and the load, for 10 ms."""
    wanted = "\n".join(line for line in text.splitlines() if line.startswith(_WANTED))
    samples: dict[str, list[Sample]] = {}
    for family in text_string_to_metric_families(wanted + "\n"):
        for found in family.samples:
            samples.setdefault(found.name, []).append(found)
    return samples


def _scrape(samples: dict[str, list[Sample]], at_ns: int) -> Scrape | None:
    values = {name: _value(name, samples) for name in EXPOSED}
    if all(value is None for value in values.values()):
        return None
    return Scrape(at_ns, **values)


def _value(name: str, samples: dict[str, list[Sample]]) -> float | None:
    for exposed in EXPOSED[name]:
        if found := samples.get(exposed):
            break
    else:
        return None
    if name == "succeeded":
        found = [s for s in found if s.labels.get("finished_reason", "stop") in FINISHED_REASONS]
    return float(_combine(name)([s.value for s in found] or [0.0]))


def _combine(name: str) -> Callable[[list[float]], float]:
    return max if name == "kv_usage" else sum


def deltas(before: Scrape | None, after: Scrape | None) -> Deltas:
    if before is None or after is None:
        return Deltas(None, None, None, None, None, None, None, None)

    def rise(name: str) -> float | None:
        first, last = getattr(before, name), getattr(after, name)
        # A counter without labels yet (no request finished before) is exposed only from its first increment on.
        return None if last is None else last - (first or 0.0)

    def whole(name: str) -> int | None:
        value = rise(name)
        return None if value is None else round(value)

    def ratio(part: str, of: str, scale: float = 1.0) -> float | None:
        numerator, denominator = rise(part), rise(of)
        return scale * numerator / denominator if numerator is not None and denominator else None

    return Deltas(
        preemptions=whole("preemptions"),
        request_preemptions=whole("request_preemptions"),
        succeeded=whole("succeeded"),
        prompt_tokens=whole("prompt_tokens"),
        generation_tokens=whole("generation_tokens"),
        prefix_hit_rate=ratio("prefix_hits", "prefix_queries"),
        queue_ms_mean=ratio("queue_s", "queued", 1000.0),
        server_ttft_ms_mean=ratio("server_ttft_s", "server_ttft_count", 1000.0),
    )
