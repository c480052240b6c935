"""Readers of older schemas of study files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuner import jsonfile
from tuner.study.plan import StudyPlan
from tuner.study.record import SCHEMA, TrialRecord
from tuner.study.result import StudyResult

Raw = dict[str, Any]
"""A JSON object as it was read."""

_OF_THE_START = ("launch", "group", "started_at", "phases", "facts", "cause", "dirty")
"""Keys of schema 1 that belong to the start."""


def read_plan(path: Path) -> StudyPlan:
    """Read a plan of any schema. Raises TornFileError if it is not readable."""
    return jsonfile.load(path, StudyPlan, upgraded_plan)


def read_record(path: Path) -> TrialRecord:
    """Read a record of any schema. Raises TornFileError if it is not readable or of a newer schema."""
    record = jsonfile.load(path, TrialRecord, upgraded_record)
    if record.schema != SCHEMA:
        raise jsonfile.TornFileError(f"{path}: schema {record.schema}, where {SCHEMA} is the newest known")
    return record


def read_result(path: Path) -> StudyResult:
    """Read a result of any version. Raises TornFileError if it is not readable."""
    return jsonfile.load(path, StudyResult, upgraded_result)


def upgraded_result(raw: Raw) -> Raw:
    """Return a result whose rules count starts as `saved`, called `spared` before."""
    if not isinstance(learnt := raw.get("learnt"), list):
        return raw
    rules = [
        {"saved" if key == "spared" else key: rule[key] for key in rule} for rule in learnt if isinstance(rule, dict)
    ]
    return {**raw, "learnt": rules} if len(rules) == len(learnt) else raw


def upgraded_plan(raw: Raw) -> Raw:
    """Return a plan of schema 2. Schema 1 had one shape of load, and the values of the user's words beside them."""
    if raw.get("schema") != 1 or not isinstance(raw.get("load"), dict):
        return raw
    raw = {key: value for key, value in raw.items() if key != "given"}
    load = dict(raw["load"])
    search = load.pop("open", None)
    if search is None:
        return {**raw, "load": {"kind": "ladder", **load}, "schema": 2}
    load = {"settings": search["rules"], "arrivals": search["arrivals"], "warm_up_s": load["warm_up_s"]}
    return {**raw, "load": {"kind": "open-search", **load}, "schema": 2}


def upgraded_record(raw: Raw) -> Raw:
    """Return a record of schema 2. Schema 1 did not keep trial and start apart."""
    if raw.get("schema") != 1:
        return raw
    start = {key: raw[key] for key in _OF_THE_START if key in raw}
    rest = {key: value for key, value in raw.items() if key not in start}
    notes = [{"kind": "remark", "text": text} for text in raw.get("notes", ())]
    try:
        levels = [_upgraded_level(level) for level in raw.get("levels", ())]
    except (KeyError, TypeError):
        levels = raw["levels"]  # torn: decoding it names the key
    return {**rest, "notes": notes, "levels": levels, "start": start, "schema": 2}


def _upgraded_level(raw: Raw) -> Raw:
    """Keep the text of cautions and reasons, which had no values in schema 1."""
    measurement, verdict = raw["measurement"], raw["verdict"]
    cautions = [{"kind": c["kind"], "recorded": c["detail"]} for c in measurement.get("cautions", ())]
    reasons = [{"kind": "recorded", "subject": text} for text in verdict.get("reasons", ())]
    return {"measurement": {**measurement, "cautions": cautions}, "verdict": {**verdict, "reasons": reasons}}
