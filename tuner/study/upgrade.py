"""Readers of older schemas: what an earlier version wrote, as this one would have written it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuner import jsonfile
from tuner.study.plan import StudyPlan

Raw = dict[str, Any]
"""A JSON object as it was read."""


def read_plan(path: Path) -> StudyPlan:
    """Read a plan of any schema. Raises TornFileError if it is not readable."""
    return jsonfile.load(path, StudyPlan, upgraded_plan)


def upgraded_plan(raw: Raw) -> Raw:
    """Return a plan of schema 2. Schema 1 had one shape of load for ladder and open loop."""
    if raw.get("schema") != 1 or not isinstance(raw.get("load"), dict):
        return raw
    load = dict(raw["load"])
    search = load.pop("open", None)
    if search is None:
        return {**raw, "load": {"kind": "ladder", **load}, "schema": 2}
    load = {"settings": search["rules"], "arrivals": search["arrivals"], "warm_up_s": load["warm_up_s"]}
    return {**raw, "load": {"kind": "open-search", **load}, "schema": 2}
