"""Readers of older schemas of study files."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from tuner import jsonfile
from tuner.errors import UsageError
from tuner.load.early_end import EarlyEnd, EarlyEndKind
from tuner.slo import parse_slo
from tuner.study.own_files import located
from tuner.study.plan import StudyPlan
from tuner.study.record import SCHEMA, TrialRecord
from tuner.study.result import StudyResult
from tuner.verdict import ReasonKind

Raw = dict[str, Any]
"""A JSON object as it was read."""

_OF_THE_START = ("launch", "group", "started_at", "phases", "facts", "cause", "dirty")
"""Keys of schema 1 that belong to the start."""

_EARLY_ENDS = {
    "interrupted": EarlyEndKind.INTERRUPTED,
    "the backlog grows without end": EarlyEndKind.BACKLOG_GROWS,
    "a request failed": EarlyEndKind.REQUEST_FAILED,
    "a preemption was seen": EarlyEndKind.PREEMPTED,
}
"""Texts of early ends in records that did not have them as values."""

_LIMIT_EXCEEDED = re.compile(r"(\d+) requests exceeded the limit of (.+)")


def read_plan(path: Path) -> StudyPlan:
    """Read a plan of any schema, with its own files in the folder of `path`. Raises TornFileError if it is not
    readable."""
    return located(jsonfile.load(path, StudyPlan, upgraded_plan), path.parent)


def read_record(path: Path) -> TrialRecord:
    """Read a record of any schema. Raises TornFileError if it is not readable or of a newer schema."""
    return jsonfile.load(path, TrialRecord, upgraded_record)


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
    """Return a plan of schema 3."""
    return _with_layout(_with_load(raw))


def _with_layout(raw: Raw) -> Raw:
    """Turn groups into the one layout of a study before schema 3, whose figures are those of a single server."""
    if raw.get("schema") != 2 or not isinstance(raw.get("groups"), list):
        return raw
    groups = [_upgraded_group(group) for group in raw["groups"]]
    layout = {"replicas": 1, "tensor_parallel": max(1, len(groups[0]["gpus"])), "pipeline_parallel": 1}
    rest = {key: value for key, value in raw.items() if key != "groups"}
    return {**rest, "layouts": [{"layout": layout, "groups": groups}], "own_layout": layout, "schema": 3}


def _upgraded_group(raw: Raw) -> Raw:
    """Turn the number of a group without GPUs into its workers."""
    worker = raw.get("worker")
    rest = {key: value for key, value in raw.items() if key != "worker"}
    return {**rest, "workers": [] if worker is None else [worker]}


def _with_load(raw: Raw) -> Raw:
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
    """Return a record of schema 3. Schema 1 did not keep trial and start apart, schema 2 knew no layouts."""
    if raw.get("schema") not in (1, 2, SCHEMA):
        return raw
    is_old = raw["schema"] == 1
    try:
        levels = [_upgraded_level(level, is_old=is_old) for level in raw["levels"]]
    except (AttributeError, KeyError, TypeError):
        levels = raw.get("levels", [])  # torn: decoding it names the key
    raw = {**raw, "levels": levels}
    if not is_old:
        return {**raw, "schema": SCHEMA}
    start = {key: raw[key] for key in _OF_THE_START if key in raw}
    rest = {key: value for key, value in raw.items() if key not in start}
    notes = [{"kind": "remark", "text": text} for text in raw.get("notes", ())]
    return {**rest, "notes": notes, "start": start, "schema": SCHEMA}


def _upgraded_level(raw: Raw, *, is_old: bool) -> Raw:
    """Turn early ends into values. Cautions and reasons of schema 1 had no values: their text is kept."""
    measurement, verdict = raw["measurement"], raw["verdict"]
    if isinstance(text := measurement.get("aborted"), str):
        measurement = {**measurement, "aborted": _early_end(text)}
    if not is_old:
        reasons = [_upgraded_reason(reason) for reason in verdict["reasons"]]
        return {"measurement": measurement, "verdict": {**verdict, "reasons": reasons}}
    cautions = [{"kind": c["kind"], "recorded": c["detail"]} for c in measurement.get("cautions", ())]
    reasons = [{"kind": "recorded", "subject": text} for text in verdict.get("reasons", ())]
    return {"measurement": {**measurement, "cautions": cautions}, "verdict": {**verdict, "reasons": reasons}}


def _upgraded_reason(raw: Raw) -> Raw:
    """Turn the text of an early end into its value. Other reasons stay as they are."""
    if raw["kind"] != ReasonKind.ENDED_EARLY or not (text := raw.get("subject")):
        return raw
    return {**raw, "subject": "", "ended": _early_end(text)}


def _early_end(text: str) -> Raw:
    """Return the early end of this text, as it is written today."""
    raw: Raw = json.loads(jsonfile.dumps(_read_early_end(text)))
    return raw


def _read_early_end(text: str) -> EarlyEnd:
    """Read the text of an early end. Unknown text is kept as it is."""
    if (kind := _EARLY_ENDS.get(text)) is not None:
        return EarlyEnd(kind)
    if found := _LIMIT_EXCEEDED.fullmatch(text):
        with suppress(UsageError):
            return EarlyEnd(EarlyEndKind.LIMIT_EXCEEDED, int(found[1]), parse_slo(found[2]))
    return EarlyEnd(EarlyEndKind.RECORDED, recorded=text)
