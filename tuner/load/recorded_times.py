"""Arrival times of recorded traffic, in the spellings and units that logs have."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import NamedTuple

from tuner.load.reading import TimesFound
from tuner.load.spellings import spelled

_KEYS = (
    "arrival", "arrival_time", "arrived_at", "timestamp", "requested_at", "request_created_at", "request_timestamp",
    "received_at", "start_time", "start_timestamp", "started_at", "started_date_time", "created", "created_at",
    "datetime", "date_time", "time_iso8601", "msec", "time_local", "ts",
)  # fmt: skip
_LAST_KEYS = ("time", "request_time")
"""Names that are a duration in some logs, such as nginx's. They count only beside none of the others."""

_UNIT = re.compile(r"_(?:s|sec|seconds|ms|millis|us|ns|nano|unix|epoch|utc)(?=_|$)")
_AROUND = ("body", "request", "response", "metadata")
"""Objects of a row that may hold its time."""

_EPOCH_S = (9.4e8, 4.2e9)
"""Seconds since 1970 between 1999 and 2103. A number in there, in any unit, is a date."""

_UNITS = (1.0, 1e3, 1e6, 1e9)
_MOST = 1e20
_SURELY = 0.9
"""Share of a file's numbers that must be dates, or must not be, for either to be believed."""

_NUMBER = re.compile(r"\d{1,25}(\.\d{0,25})?")
_ZONE = re.compile(r"\s*(?:UTC|GMT)$")
_DIGITS = re.compile(r"(?:19|20)\d\d[01]\d[0-3]\d[0-2]\d[0-5]\d[0-5]\d")
"""Date and time in fourteen digits."""

_MAIL = re.compile(r"(?:[A-Z][a-z]{2}, )?\d{1,2} [A-Z][a-z]{2} \d{4} ")
_FEWEST = 0.5
"""Least share of rows with a time like the others'. With fewer, times are not used."""


class _Clock(Enum):
    """Clock of a time. Only times of one clock can be compared."""

    UNREADABLE = "unreadable"
    NUMBER = "number"
    LOCAL = "local"
    ABSOLUTE = "absolute"


class Moment(NamedTuple):
    """Time of a row. `unit` is how many of the written number make a second, 1 where that is not known."""

    clock: _Clock
    at_s: float
    unit: float = 1.0


class Timeline(NamedTuple):
    """Times of a file. `at_s` are seconds since the first request, None for a row that has none like the others;
    it is empty if the times are not used."""

    found: TimesFound
    at_s: tuple[float | None, ...] = ()
    moved: int = 0
    mended: int = 0


def moment(row: object) -> Moment | None:
    """Read a row's arrival time. None if it has none."""
    if not isinstance(row, dict):
        return None
    row = spelled(row)
    for holder in (row, *(spelled(inner) for key in _AROUND if isinstance(inner := row.get(key), dict))):
        named = {_UNIT.sub("", key): value for key, value in reversed(holder.items())}
        times = [named[key] for key in _KEYS if key in named] or [holder[key] for key in _LAST_KEYS if key in holder]
        if times:
            return _moment(times[0]) or Moment(_Clock.UNREADABLE, 0.0)
    return None


def timeline(moments: Sequence[Moment | None]) -> Timeline:
    """Choose the clock that most rows share and place them on it."""
    moments = _with_dates(moments)
    clocks = Counter(found.clock for found in moments if found is not None)
    if not clocks:
        return Timeline(TimesFound.NONE)
    del clocks[_Clock.UNREADABLE]
    if not clocks:
        return Timeline(TimesFound.TOO_FEW)
    clock, count = clocks.most_common(1)[0]
    if count < _FEWEST * len(moments):
        return Timeline(TimesFound.TOO_FEW)
    kept = [found if found is not None and found.clock is clock else None for found in moments]
    times = [found.at_s for found in kept if found is not None]
    first_s = min(times)
    if max(times) == first_s:
        return Timeline(TimesFound.ALL_ALIKE)
    latest_s, moved = -math.inf, 0
    for at_s in times:
        moved += at_s < latest_s
        latest_s = max(latest_s, at_s)
    unit = next(found.unit for found in kept if found is not None)
    mended = sum(found is not None and found.unit != unit for found in kept)
    placed = tuple(None if found is None else found.at_s - first_s for found in kept)
    return Timeline(TimesFound.REPLAYED, placed, moved, mended)


def _moment(value: object) -> Moment | None:
    while isinstance(value, dict) and len(value) == 1:  # {"$date": …} of MongoDB
        (value,) = value.values()
    if isinstance(value, str | int) and _DIGITS.fullmatch(str(value)):
        return _written(f"{str(value)[:8]}T{str(value)[8:]}")
    if isinstance(value, str):
        text = value.strip()
        return _numbered(float(text)) if _NUMBER.fullmatch(text) else _written(text)
    if isinstance(value, datetime):  # a parquet column
        return _dated(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _numbered(value)
    return None


def _written(text: str) -> Moment | None:
    """Read a date as ISO writes it, or a web server (01/Jan/2026:10:00:00 +0100), or mail (1 Jan 2026 10:00:00 GMT)."""
    iso = re.sub(r"\s+(?=[+-]\d\d:?\d\d$)", "", _ZONE.sub("+00:00", text))
    try:
        if "/" in text:
            return _dated(datetime.strptime(text, "%d/%b/%Y:%H:%M:%S %z"))
        if len(text) <= len("2026-01-01"):
            return None  # a day alone: all of its requests would come at once
        return _dated(parsedate_to_datetime(text) if _MAIL.match(text) else datetime.fromisoformat(iso))
    except (ValueError, TypeError, IndexError):
        return None


def _dated(date: datetime) -> Moment | None:
    # Any zone does for times without an offset, as long as it keeps their distances: UTC has no summer time.
    clock = _Clock.LOCAL if date.tzinfo is None else _Clock.ABSOLUTE
    try:
        return Moment(clock, (date.replace(tzinfo=UTC) if date.tzinfo is None else date).timestamp())
    except (OverflowError, ValueError):  # a year that no clock of the system has
        return None


def _numbered(number: float) -> Moment | None:
    return Moment(_Clock.NUMBER, float(number)) if 0 <= number < _MOST else None


def _with_dates(moments: Sequence[Moment | None]) -> Sequence[Moment | None]:
    """Convert numbers that are dates. The unit of other numbers does not matter: a rate scales all gaps."""
    numbers = [found for found in moments if found is not None and found.clock is _Clock.NUMBER]
    dates = [_date(found) for found in numbers]
    count = sum(date is not None for date in dates)
    if count <= (1 - _SURELY) * len(numbers):
        return moments
    taken = iter(dates if count >= _SURELY * len(numbers) else [Moment(_Clock.UNREADABLE, 0.0)] * len(numbers))
    return [next(taken) if found is not None and found.clock is _Clock.NUMBER else found for found in moments]


def _date(found: Moment) -> Moment | None:
    low, high = _EPOCH_S
    unit = next((unit for unit in _UNITS if low <= found.at_s / unit <= high), None)
    return None if unit is None else Moment(_Clock.ABSOLUTE, found.at_s / unit, unit)
