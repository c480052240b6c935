"""GPU memory that a dead server does not give back: its slot is left alone, and the study says so."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.moments import short_limits
from tests.faults.study_run import SimGpu, make_plan, records_of
from tests.faults.table import MEMORY_ROWS, Ends, TunerRow
from tests.server.support import bystander, children_of_ours, runs
from tuner.clock import RealClock
from tuner.environment import describe
from tuner.errors import EnvironmentFaultError
from tuner.placement import GpuGroup
from tuner.server import leftovers
from tuner.sim.gpu_memory import hold
from tuner.study.events import Event, GroupQuarantined, PhaseChanged
from tuner.study.fleet import LocalFleet
from tuner.study.local_servers import local_trials
from tuner.study.loop import Loop
from tuner.study.plan import StudyPlan
from tuner.study.result import StudyResult
from tuner.study.search import Search
from tuner.study.setting import StudySetting
from tuner.study.store import Store
from tuner.vllm.defaults import vllm_defaults

GONE_BYTES = 24 * 2**30


def search(plan: StudyPlan, store: Store, emit: Callable[[Event], None]) -> StudyResult:
    stop, clock = threading.Event(), RealClock()
    runner = local_trials(plan, store, clock, SimGpu(store.folder / "gpu"), emit, stop)
    made = Search(StudySetting.of(plan, vllm_defaults("0.32.0", ())), ())
    fleet = LocalFleet(plan.groups, runner.run, store, stop)
    return Loop(plan=plan, store=store, search=made, fleet=fleet, clock=clock, emit=emit).run()


@pytest.mark.parametrize("row", MEMORY_ROWS, ids=lambda row: row.name)
def test_a_group_whose_memory_is_gone_is_used_no_more(
    row: TunerRow, sim_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_limits(monkeypatch)
    monkeypatch.setattr(leftovers, "MEMORY_LIMIT_S", 1.0)
    groups = (GpuGroup((0,)),) if row.ends is Ends.ENVIRONMENT else (GpuGroup((0,)), GpuGroup((1,)))
    plan = make_plan(tmp_path / "study", sim_model, starts=3, confirm_starts=0, groups=groups)
    store = Store(tmp_path / "study")
    store.create()
    store.save_plan(plan, describe("0.32.0", plan.model, (), None))
    events: list[Event] = []
    held: list[Path] = []

    def emit(event: Event) -> None:
        """The last server of gpu0 leaves its memory behind: this process holds it instead."""
        events.append(event)
        stopping = isinstance(event, PhaseChanged) and event.phase == "stopping" and event.group == "gpu0"
        if stopping and len(store.records()) > 0 and not held:
            held.append(hold(store.folder / "gpu", [0], GONE_BYTES))

    with bystander() as other:
        if row.ends is Ends.ENVIRONMENT:
            with pytest.raises(EnvironmentFaultError, match=row.words):
                search(plan, store, emit)
        else:
            assert search(plan, store, emit).complete
        assert held and any(e.group == "gpu0" for e in events if isinstance(e, GroupQuarantined))
        (dirty,) = (r for r in store.records() if r.start.dirty)
        assert dirty.start.dirty == "GPU memory" and dirty.start.group == "gpu0"
        assert all(r.start.group == "gpu1" for r in store.records() if r.trial > dirty.trial + 1)
        assert runs(other)
        assert {process.pid for process in children_of_ours()} == {other}
    finished = records_of(store.folder)
    held[0].unlink()
    result = search(plan, store, lambda event: None)
    assert result.complete
    after = records_of(store.folder)
    assert {name: after[name] for name in finished} == finished
