"""Page /metrics with vLLM's names, labels and buckets. Source: 0.32.0, v1/metrics/loggers.py, buckets.py. Older
names on demand.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0,
    640.0, 2560.0,
)  # fmt: skip
TOKEN_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
)  # fmt: skip
LENGTH_BUCKETS = tuple(float(m * 10**e) for e in range(6) for m in (1, 2, 5))
PREEMPTION_BUCKETS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
FINISHED = ("stop", "length", "abort", "error", "repetition")

OLDER_NAMES = (
    ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    ("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
    ("vllm:prefix_cache_", "vllm:gpu_prefix_cache_"),
)
NEWER_THAN_0_10 = ("vllm:request_num_preemptions", "vllm:num_requests_waiting_by_reason")


ENGINE_LABELS = ("model_name", "engine")


class MetricsPage:
    """Page of one server, with the metrics of all its engines."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry()
        self.model_name = model_name
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._histograms: dict[str, Histogram] = {}

    def gauge(self, name: str, text: str, labels: tuple[str, ...] = ENGINE_LABELS) -> Gauge:
        """Return the gauge of a name, made at its first use."""
        if name not in self._gauges:
            self._gauges[name] = Gauge(f"vllm:{name}", text, labels, registry=self.registry)
        return self._gauges[name]

    def counter(self, name: str, text: str, labels: tuple[str, ...] = ENGINE_LABELS) -> Counter:
        """Return the counter of a name, made at its first use."""
        if name not in self._counters:
            self._counters[name] = Counter(f"vllm:{name}", text, labels, registry=self.registry)
        return self._counters[name]

    def histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        """Return the histogram of a name, made at its first use."""
        if name not in self._histograms:
            text = f"Histogram of {name}."
            self._histograms[name] = Histogram(
                f"vllm:{name}", text, ENGINE_LABELS, buckets=buckets, registry=self.registry
            )
        return self._histograms[name]

    def text(self) -> str:
        return generate_latest(self.registry).decode()

    def older_text(self) -> str:
        """Render the page with the names of vLLM 0.10."""
        text = self.text()
        for name, older in OLDER_NAMES:
            text = text.replace(name, older)
        return "".join(line + "\n" for line in text.splitlines() if not any(new in line for new in NEWER_THAN_0_10))


class Metrics:
    """Counters of one engine. Attributes are ready children: `metrics.preemptions.inc()`."""

    def __init__(self, page: MetricsPage, engine: int = 0) -> None:
        self._page = page
        self._labels = (page.model_name, str(engine))
        self.running = self._gauge("num_requests_running", "Number of requests in model execution batches.")
        self.waiting = self._gauge("num_requests_waiting", "Number of requests waiting to be processed.")
        self.kv_usage = self._gauge("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.")
        self.preemptions = self._counter("num_preemptions", "Cumulative number of preemption from the engine.")
        self.prompt_tokens = self._counter("prompt_tokens", "Number of prefill tokens processed.")
        self.prompt_tokens_cached = self._counter("prompt_tokens_cached", "Number of cached prompt tokens.")
        self.generation_tokens = self._counter("generation_tokens", "Number of generation tokens processed.")
        self.prefix_queries = self._counter("prefix_cache_queries", "Prefix cache queries, in tokens.")
        self.prefix_hits = self._counter("prefix_cache_hits", "Prefix cache hits, in tokens.")
        success = page.counter(
            "request_success", "Count of successfully processed requests.",
            ("model_name", "engine", "finished_reason"),
        )  # fmt: skip
        self.success = {reason: success.labels(*self._labels, reason) for reason in FINISHED}
        self.ttft_s = self._histogram("time_to_first_token_seconds", TTFT_BUCKETS)
        self.itl_s = self._histogram("inter_token_latency_seconds", TOKEN_BUCKETS)
        self.tpot_s = self._histogram("request_time_per_output_token_seconds", TOKEN_BUCKETS)
        self.e2e_s = self._histogram("e2e_request_latency_seconds", REQUEST_BUCKETS)
        self.queue_s = self._histogram("request_queue_time_seconds", REQUEST_BUCKETS)
        self.inference_s = self._histogram("request_inference_time_seconds", REQUEST_BUCKETS)
        self.prefill_s = self._histogram("request_prefill_time_seconds", REQUEST_BUCKETS)
        self.decode_s = self._histogram("request_decode_time_seconds", REQUEST_BUCKETS)
        self.request_preemptions = self._histogram("request_num_preemptions", PREEMPTION_BUCKETS)
        self.request_prompt_tokens = self._histogram("request_prompt_tokens", LENGTH_BUCKETS)
        self.request_generation_tokens = self._histogram("request_generation_tokens", LENGTH_BUCKETS)

    def _gauge(self, name: str, text: str) -> Gauge:
        return self._page.gauge(name, text).labels(*self._labels)

    def _counter(self, name: str, text: str) -> Counter:
        return self._page.counter(name, text).labels(*self._labels)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        return self._page.histogram(name, buckets).labels(*self._labels)

    def set_cache_config(self, values: dict[str, str]) -> None:
        """Set vllm:cache_config_info, whose labels are the configuration."""
        labels = {**values, "engine": self._labels[1]}
        text = "Information of the LLMEngine CacheConfig"
        self._page.gauge("cache_config_info", text, tuple(labels)).labels(**labels).set(1)
