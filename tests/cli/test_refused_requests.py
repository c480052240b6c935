"""Searches whose requests the server does not take."""

from __future__ import annotations

from pathlib import Path

from tests.cli.support import short_search, tuner
from tuner.study.record import TrialOutcome
from tuner.study.store import Store

STRICT = "refuse-ignore-eos"


def test_a_refusal_of_every_request_ends_the_search_after_one_start_in_the_servers_words(
    tiny_model: str, tmp_path: Path
) -> None:
    ended = tuner("search", *short_search(tiny_model, tmp_path, "s"), TUNER_SIM_FAULTS=STRICT)
    assert ended.returncode == 4, ended.stderr
    *_, message, hint = ended.stderr.strip().splitlines()
    assert "http-400: Unexpected fields in the request: {'ignore_eos'}" in message
    assert "--natural-stops" in hint and "ignore_eos" in hint
    (record,) = Store(tmp_path / "s").records()
    assert record.outcome is TrialOutcome.INFRASTRUCTURE
    assert record.start.cause is not None and "Unexpected fields" in record.start.cause.explanation
    assert "Unexpected fields" in (tmp_path / "s" / "report.html").read_text()


def test_natural_stops_search_where_exact_ones_are_refused(tiny_model: str, tmp_path: Path) -> None:
    words = (*short_search(tiny_model, tmp_path, "s"), "--trials", "1", "--natural-stops")
    ended = tuner("search", *words, "--extra-body", '{"top_p": 0.5}', TUNER_SIM_FAULTS=STRICT)
    assert ended.returncode == 0, ended.stderr
    plan = Store(tmp_path / "s").plan()
    assert plan.workload.natural_stops and plan.workload.extra_body == (("top_p", "0.5"),)
    other = tuner("search", *words, TUNER_SIM_FAULTS=STRICT)
    assert other.returncode == 2 and 'extra body was {"top_p": 0.5}, is none' in other.stderr
