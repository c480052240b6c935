"""The fault matrix: whatever happens, nothing is lost, nothing is left, and the search learns nothing false."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future

import pytest

from tests.faults.all_runs import RunSeen, StudySeen
from tests.faults.moments import OPEN_LOOP
from tests.faults.struck import code_of, well_said
from tests.faults.table import (
    FILE_ROWS,
    SERVER_ROWS,
    SEVERAL_ROWS,
    SEVERAL_TUNER_ROWS,
    TUNER_ROWS,
    Ends,
    Row,
    Servers,
    TunerRow,
)
from tuner.launch import Door
from tuner.server.door import nginx_program
from tuner.study.record import TrialOutcome

Runs = Mapping[str, Future[RunSeen | StudySeen]]
DOORS = {Servers.NGINX: (Door.NGINX, 2), Servers.ENGINES: (Door.VLLM, 1)}
"""Door and launches of a start. One server has no door."""
NO_NGINX = nginx_program() is None
NEED_ROOT = ("disk full", "disk nearly full", "trial folder read-only")


@pytest.mark.parametrize("row", (*SERVER_ROWS, *SEVERAL_ROWS), ids=lambda row: row.name)
def test_a_fault_of_one_start_costs_that_start_alone(row: Row, runs: Runs) -> None:
    if row.servers is Servers.NGINX and NO_NGINX:
        pytest.skip("no nginx here")
    run = runs[row.run].result()
    assert isinstance(run, RunSeen)
    assert row in run.seen, f"the run ended before: {run.ended_by}"
    seen = run.seen[row]
    record = seen.record
    assert seen.struck, "the moment never came"
    assert (record.start.door, len(record.start.launches)) == DOORS.get(row.servers, (Door.SERVER, 1))
    assert (seen.learnt, record.start.cause.kind if record.start.cause else "") == (row.learnt, row.cause), record
    assert seen.left == ()
    assert record.start.dirty is None
    assert seen.lost_or_changed == ()
    assert seen.bystander_lives
    assert run.ended_by is None
    assert run.result is not None and run.result.complete
    # Two loads at once may make the client late on a busy machine, and it says so.
    sound = (TrialOutcome.FEASIBLE, *([] if row.servers is Servers.ONE else [TrialOutcome.INVALID]))
    assert run.others and all(s.record.start.cause is None for s in run.others)
    # What a rate of an open loop comes to is the machine's business too: a busy one may not sustain what was claimed.
    assert row.moment in OPEN_LOOP or all(s.record.outcome in sound for s in run.others)


@pytest.mark.parametrize("row", (*TUNER_ROWS, *SEVERAL_TUNER_ROWS, *FILE_ROWS), ids=lambda row: row.name)
def test_the_next_tuner_completes_what_one_left(row: TunerRow, runs: Runs) -> None:
    if row.fault in NEED_ROOT and os.geteuid() != 0:
        pytest.skip("only root may mount a disk")
    if row.servers is Servers.NGINX and NO_NGINX:
        pytest.skip("no nginx here")
    study = runs[row.run].result()
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
