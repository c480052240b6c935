"""Reader of /metrics, vLLM's and what others have of it. Counters become deltas, old names new ones, engines and
servers a sum. None if a metric is missing, malformed or no number."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import httpx

from tuner.http import control_client
from tuner.vllm.metrics import EXPOSED, FINISHED_REASONS

OTHERS: Mapping[str, tuple[str, ...]] = {
    "running": ("sglang:num_running_reqs", "llamacpp:requests_processing"),
    "waiting": ("sglang:num_queue_reqs", "llamacpp:requests_deferred"),
    "kv_usage": ("sglang:token_usage", "llamacpp:kv_cache_usage_ratio"),
    "prompt_tokens": ("sglang:prompt_tokens_total", "llamacpp:prompt_tokens_total"),
    "generation_tokens": ("sglang:generation_tokens_total", "llamacpp:tokens_predicted_total"),
}
"""Our name of a metric → its names in other engines. They count no preemptions."""

_NAMES = {name: (*names, *OTHERS.get(name, ())) for name, names in EXPOSED.items()}
_WANTED = tuple(name for names in _NAMES.values() for name in names)
_LINE = re.compile(r'([a-zA-Z_:][\w:]*)(?:\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?\s*')
_LABEL = re.compile(r'(\w+)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"')

SCRAPE_TIMEOUT_S = 5.0
TRIES = 3
"""Number of times that a page is asked for where no other reading can stand for it."""

RETRY_S = 0.5


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of a page."""

    name: str
    labels: Mapping[str, str]
    value: float


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


def read_page(metrics_url: str, *, tries: int = 1, api_key: str | None = None, insecure: bool = False) -> Page | None:
    """Read /metrics. None if the server does not answer with a whole page, `tries` times in a row.

    A page that the server does not have, or does not show, is not asked for again.
    """
    with control_client(timeout_s=SCRAPE_TIMEOUT_S, api_key=api_key, insecure=insecure) as client:
        for attempt in range(tries):
            if attempt:
                time.sleep(RETRY_S)
            try:
                answer = client.get(metrics_url)
            except (httpx.HTTPError, httpx.InvalidURL):
                continue
            if answer.is_success and answer.text.endswith("\n"):  # else it was cut off
                return Page(answer.text, time.monotonic_ns())
            if answer.is_client_error or answer.is_redirect:
                return None
    return None


def scrape(metrics_url: str) -> Scrape | None:
    """Read /metrics. None if the server does not answer, or answers without a known metric."""
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
    values = {name: [getattr(one, name) for one in scrapes] for name in _NAMES}
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
    values = {name: getattr(first, name) for name in _NAMES}
    appeared = [name for name in COUNTERS if values[name] is None and getattr(last, name) is not None]
    return Scrape(first.at_ns, **{**values, **dict.fromkeys(appeared, 0.0)})


def _samples(text: str) -> dict[str, list[Sample]]:
    """Parse the wanted lines alone. A metric with a malformed line, or with a value that is no number, is left out."""
    samples: dict[str, list[Sample]] = {}
    spoilt = set()
    for line in text.split("\n"):
        if not line.startswith(_WANTED):
            continue
        match = _LINE.fullmatch(line)
        value = _number(match[3]) if match else None
        if match is None or value is None:
            spoilt.add(re.split(r"[{\s]", line, maxsplit=1)[0])
        elif match[1] in _WANTED:
            samples.setdefault(match[1], []).append(Sample(match[1], dict(_LABEL.findall(match[2] or "")), value))
    return {name: found for name, found in samples.items() if name not in spoilt}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _scrape(samples: dict[str, list[Sample]], at_ns: int) -> Scrape | None:
    values = {name: _value(name, samples) for name in _NAMES}
    if all(value is None for value in values.values()):
        return None
    return Scrape(at_ns, **values)


def _value(name: str, samples: dict[str, list[Sample]]) -> float | None:
    for exposed in _NAMES[name]:
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
        # A counter without labels yet (no request finished before) is exposed only from its first increment on. One
        # that fell is another server's, or half a page's.
        return None if last is None or last < (first or 0.0) else last - (first or 0.0)

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
