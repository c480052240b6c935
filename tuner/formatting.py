"""Numbers → text: the only place that writes units. None is "not observed" and reads as a dash."""

from __future__ import annotations

import math
import re
from datetime import datetime

NOT_OBSERVED = "–"

# ESC [ … letter, ESC ] … BEL or ESC \, and two-character escapes; then whatever control characters are left.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def one_line(text: str) -> str:
    """Strip control sequences, newlines and what UTF-8 cannot write from foreign text."""
    return _SURROGATE.sub("\ufffd", _CONTROL.sub(" ", _ESCAPES.sub("", text))).strip()


def significant(value: float | None, digits: int = 3) -> str:
    """Format `digits` figures: `1234.5` → "1,234", `4.251` → "4.25"."""
    if value is None or not math.isfinite(value):
        return NOT_OBSERVED
    if value == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def count(value: float | None) -> str:
    return NOT_OBSERVED if value is None else f"{value:,.0f}"


def qps(value: float | None) -> str:
    return _with_unit(significant(value), "req/s")


def ms(value: float | None) -> str:
    """Format milliseconds, whole from 10 up. Never seconds, so that a column compares at a glance."""
    if value is None or not math.isfinite(value):
        return NOT_OBSERVED
    return f"{value:,.0f} ms" if abs(value) >= 10 else f"{value:.1f} ms"


def duration(seconds: float | None) -> str:
    """Format two units: "7 h 12 min", "43 s"."""
    if seconds is None or not math.isfinite(seconds):
        return NOT_OBSERVED
    if seconds < 0:
        return "-" + duration(-seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s".replace(".0 ", " ")
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next(i for i, (amount, _) in enumerate(parts) if amount)
    return " ".join(f"{amount} {unit}" for amount, unit in parts[first : first + 2] if amount)


def change(new: float | None, old: float | None) -> str:
    """Format a change: `change(143, 100)` → "+43 %". A dash if either is missing or `old` is 0."""
    if new is None or old is None or not old or not (math.isfinite(new) and math.isfinite(old)):
        return NOT_OBSERVED
    percent = (new / old - 1) * 100
    digits = 0 if abs(percent) >= 9.95 else 1
    text = f"{percent:+.{digits}f}"
    return f"{'0' if float(text) == 0 else text} %"


def change_within(low: float, middle: float, high: float) -> str:
    """Format a change with its interval, all shares: `change_within(0.31, 0.35, 0.39)` → "+35 % ± 4 %"."""
    half = max(high - middle, middle - low) * 100
    return f"{change(1 + middle, 1.0)} ± {half:.{0 if half >= 0.95 else 1}f} %"


def time_of_day(iso: str) -> str:
    """Format the time of an ISO 8601 date: "01:40"."""
    return datetime.fromisoformat(iso).strftime("%H:%M")


def share(value: float | None) -> str:
    """Format a share: `0.43` → "43 %"."""
    return _with_unit(NOT_OBSERVED if value is None else f"{value * 100:.0f}", "%")


def gib(value: float | None) -> str:
    return _with_unit(significant(value), "GiB")


def tokens(value: float | None) -> str:
    return _with_unit(count(value), "tokens")


def price(value: float | None) -> str:
    """Format money in the GPU-hour's unit."""
    if value is None:
        return NOT_OBSERVED
    return f"{value:,.2f}" if value >= 1 else significant(value)


def compact(value: float) -> str:
    """Format an axis tick: `50000000` → "50M", `0.05` → "0.05"."""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:,g}"


def span(low: int, high: int) -> str:
    """Format a range: "50" or "20-60"."""
    return f"{low:,}" if low == high else f"{low:,}-{high:,}"


def _with_unit(number: str, unit: str) -> str:
    return number if number == NOT_OBSERVED else f"{number} {unit}"
