"""GPU memory that a dead server does not give back: its slot is left alone, and the study says so."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from tests.faults.moments import short_limits
from tests.faults.study_run import make_plan, records_of, searched, several_plan
from tests.faults.table import MEMORY_ROWS, Ends, Servers, TunerRow
from tests.server.support import bystander, children_of_ours, runs
from tuner.environment import describe
from tuner.errors import EnvironmentFaultError
from tuner.layout import Layout, PlacedLayout
from tuner.placement import GpuGroup
from tuner.server import gpu_memory
from tuner.sim.gpu_memory import hold
from tuner.space.parameter import Kind, Parameter
from tuner.study.events import Event, GroupQuarantined, PhaseChanged
from tuner.study.plan import StudyPlan
from tuner.study.store import Store
from tuner.vllm import knobs

GONE_BYTES = 24 * 2**30


@dataclass
class Hog:
    """Holder of the memory that a server leaves behind: this process, from the first end of a server on `place` on."""

    store: Store
    place: str
    gpu: int
    events: list[Event] = field(default_factory=list)
    held: list[Path] = field(default_factory=list)

    def emit(self, event: Event) -> None:
        self.events.append(event)
        stopping = isinstance(event, PhaseChanged) and event.phase == "stopping" and event.group == self.place
        if stopping and len(self.store.records()) > 0 and not self.held:
            self.held.append(hold(self.store.folder / "gpu", [self.gpu], GONE_BYTES))


def hog_of(row: TunerRow, folder: Path, model: str) -> tuple[StudyPlan, Hog]:
    """Plan the study of a row. Of several servers the second leaves its memory."""
    store = Store(folder)
    if row.servers is Servers.NGINX:
        return several_plan(folder, model, starts=2, confirm_starts=2), Hog(store, "gpu0+gpu1", 1)
    if row.servers is Servers.SIDE_BY_SIDE:
        return two_layouts(folder, model), Hog(store, "gpu1", 1)
    groups = (GpuGroup((0,)),) if row.ends is Ends.ENVIRONMENT else (GpuGroup((0,)), GpuGroup((1,)))
    return make_plan(folder, model, starts=4, confirm_starts=0, groups=groups), Hog(store, "gpu0", 0)


def two_layouts(folder: Path, model: str) -> StudyPlan:
    """Plan a search over two layouts on three GPUs. Only one of them can do without GPU 1."""
    plan = several_plan(folder, model, starts=4, confirm_starts=0)
    env = dict(plan.base.env) | {"TUNER_SIM_GPUS": "3"}
    sizes = Parameter(knobs.TENSOR_PARALLEL, Kind.CHOICE, choices=(1, 2))
    alone = PlacedLayout(Layout(2, 1), tuple(GpuGroup((gpu,)) for gpu in range(3)))
    return replace(
        plan,
        base=replace(plan.base, fixed=(), env=tuple(env.items())),
        space=replace(plan.space, parameters=(sizes, *plan.space.parameters)),
        layouts=(alone, PlacedLayout(Layout(1, 2), (GpuGroup((0, 1)),))),
        own_layout=alone.layout,
    )


@pytest.mark.parametrize("row", MEMORY_ROWS, ids=lambda row: row.name)
def test_gpus_whose_memory_is_gone_are_used_no_more(
    row: TunerRow, sim_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_limits(monkeypatch)
    monkeypatch.setattr(gpu_memory, "LIMIT_S", 1.0)
    plan, hog = hog_of(row, tmp_path / "study", sim_model)
    store = hog.store
    store.create()
    store.save_plan(plan, describe("0.32.0", plan.model, (), None))
    with bystander() as other:
        if row.ends is Ends.ENVIRONMENT:
            with pytest.raises(EnvironmentFaultError, match=row.words):
                searched(plan, store, hog.emit)
        else:
            assert searched(plan, store, hog.emit).complete
        assert [e.group for e in hog.events if isinstance(e, GroupQuarantined)] == [hog.place]
        (dirty,) = (r for r in store.records() if r.start.dirty)
        assert dirty.start.dirty == "GPU memory" and dirty.start.group == hog.place
        later = [r for r in store.records() if r.trial > dirty.trial + 1]
        assert not any(hog.gpu in r.start.gpus for r in later)
        assert bool(later) is (row.ends is Ends.COMPLETE)
        assert runs(other)
        assert {process.pid for process in children_of_ours()} == {other}
    finished = records_of(store.folder)
    hog.held[0].unlink()
    result = searched(plan, store, lambda event: None)
    assert result.complete
    after = records_of(store.folder)
    assert {name: after[name] for name in finished} == finished
