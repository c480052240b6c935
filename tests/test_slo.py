from __future__ import annotations

import pytest

from tuner.errors import UsageError
from tuner.slo import Metric, Slo, parse_slo


@pytest.mark.parametrize(
    ("text", "slo"),
    [
        ("p99 ttft <= 500ms", Slo(Metric.TTFT, 0.99, 500)),
        ("P99 TTFT < 0.5 s", Slo(Metric.TTFT, 0.99, 500)),
        ("p99.9 e2e ≤ 30s", Slo(Metric.E2E, 0.999, 30_000)),
        ("  p50   tpot<=25ms ", Slo(Metric.TPOT, 0.5, 25)),
        ("p95 itl <= 100.5ms", Slo(Metric.ITL, 0.95, 100.5)),
    ],
)
def test_limits_parse(text: str, slo: Slo) -> None:
    assert parse_slo(text) == slo
    assert parse_slo(str(slo)) == slo


@pytest.mark.parametrize(
    "text", ["", "ttft <= 500ms", "p99 ttft", "p0 ttft <= 1s", "p100 ttft <= 1s", "p99 ttft <= 0ms", "p99 qps <= 5ms",
             "p99 ttft <= 500", "p99 ttft >= 500ms", "p99 ttft <= -5ms", "p99 ttft <= 500ms or so"]
)  # fmt: skip
def test_what_does_not_parse_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_slo(text)
    assert "p99 ttft <= 500ms" in caught.value.hint
