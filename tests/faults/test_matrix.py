"""The fault matrix: whatever happens, nothing is lost, nothing is left, and the search is taught no lie."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future

import pytest

from tests.faults.all_nights import NightSeen, StudySeen
from tests.faults.moments import OPEN_LOOP
from tests.faults.struck import code_of, well_said
from tests.faults.table import FILE_ROWS, SERVER_ROWS, TUNER_ROWS, Ends, Row, TunerRow
from tuner.study.record import TrialOutcome

Nights = Mapping[str, Future[NightSeen | StudySeen]]
NEED_ROOT = ("disk full", "disk nearly full", "trial folder read-only")


@pytest.mark.parametrize("row", SERVER_ROWS, ids=lambda row: row.name)
def test_a_fault_of_one_start_costs_that_start_alone(row: Row, nights: Nights) -> None:
    night = nights[row.night].result()
    assert isinstance(night, NightSeen)
    assert row in night.seen, f"the night ended before: {night.ended_by}"
    seen = night.seen[row]
    record = seen.record
    assert seen.struck, "the moment never came"
    assert (seen.told, record.cause.kind if record.cause else "") == (row.told, row.cause), record
    assert seen.left == ()
    assert record.dirty is None
    assert seen.lost_or_changed == ()
    assert seen.bystander_lives
    assert night.ended_by is None
    assert night.result is not None and night.result.complete
    assert night.others and all(s.record.cause is None for s in night.others)
    # What a rate of an open loop comes to is the machine's business too: a busy one may not sustain what was claimed.
    assert row.moment in OPEN_LOOP or all(s.record.outcome is TrialOutcome.FEASIBLE for s in night.others)


@pytest.mark.parametrize("row", (*TUNER_ROWS, *FILE_ROWS), ids=lambda row: row.name)
def test_the_next_tuner_completes_what_one_left(row: TunerRow, nights: Nights) -> None:
    if row.fault in NEED_ROOT and os.geteuid() != 0:
        pytest.skip("only root may mount a disk")
    study = nights[row.night].result()
    assert isinstance(study, StudySeen)
    seen = study.seen[row]
    assert seen.struck, f"the moment never came: {seen.said}"
    assert seen.code == code_of(row.ends), seen.said
    assert row.words in seen.said
    if row.ends not in (Ends.KILLED, Ends.COMPLETE):
        assert well_said(seen.said), seen.said
    assert seen.left == ()
    assert seen.lost_or_changed == ()
    assert seen.bystander_lives
    assert seen.asked_again
    assert study.code == 0, study.said
    assert study.result is not None and study.result.complete
