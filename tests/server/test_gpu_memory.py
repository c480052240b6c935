"""GPU memory after a server's end, on a scripted clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pynvml
import pytest

from tests.fakes import ScriptedClock
from tuner.errors import EnvironmentFaultError
from tuner.server import gpu_memory
from tuner.server.gpu_memory import LIMIT_S, OTHERS_LIMIT_S, MemoryEnd, wait_for_memory
from tuner.telemetry.gpu import Nvml

GIB = 2**30
Held = dict[int, int | None]


@dataclass
class Gpu:
    """GPU 0 with what each process holds at a second, and what no process accounts for."""

    held: Callable[[float], Held]
    unseen: Callable[[float], int] = lambda at_s: 0
    fails: Callable[[float], bool] = lambda at_s: False
    hidden: int = 0
    clock: ScriptedClock = field(default_factory=ScriptedClock)

    @property
    def now_s(self) -> float:
        return self.clock.now_ns() / 1e9

    def used_bytes(self, gpus: tuple[int, ...]) -> dict[int, int] | None:
        if self.fails(self.now_s):
            raise EnvironmentFaultError("the NVIDIA driver fails", hint="reset it")
        seen = sum(size or self.hidden for size in self.held(self.now_s).values())
        return dict.fromkeys(gpus, seen + self.unseen(self.now_s))

    def processes(self, gpus: Sequence[int]) -> dict[int, Held]:
        return dict.fromkeys(gpus, self.held(self.now_s))


def awaited(gpu: Gpu, before: int = GIB // 8) -> tuple[MemoryEnd | None, float, list[str]]:
    """Return how the wait ended, after how many seconds, and what was told."""
    told: list[str] = []
    state = wait_for_memory(gpu, {0: before}, gpu.clock, on_wait=told.append)
    return state, gpu.now_s, told


@pytest.mark.parametrize("size", [GIB // 2, 40 * GIB, None])
@pytest.mark.parametrize("until_s", [30.0, 90.0, 400.0])
def test_memory_of_another_process_is_waited_for_and_told_once(until_s: float, size: int | None) -> None:
    gpu = Gpu(lambda at_s: {4_000_001: size} if at_s < until_s else {}, hidden=GIB)
    state, passed_s, told = awaited(gpu)
    assert state is MemoryEnd.BACK
    assert until_s <= passed_s <= until_s + 1
    assert told == ["process 4000001"]


def test_another_process_that_stays_ends_the_wait_and_is_not_the_servers() -> None:
    state, passed_s, told = awaited(Gpu(lambda at_s: {4_000_001: GIB, 4_000_002: GIB}))
    assert state is MemoryEnd.OTHERS
    assert OTHERS_LIMIT_S <= passed_s <= OTHERS_LIMIT_S + 1
    assert told == ["process 4000001, process 4000002"]


def test_memory_without_a_process_was_left_although_another_holds_some() -> None:
    state, passed_s, told = awaited(Gpu(lambda at_s: {4_000_001: GIB // 4}, lambda at_s: 3 * GIB), before=GIB // 4)
    assert state is MemoryEnd.LEFT
    assert LIMIT_S <= passed_s <= LIMIT_S + 1
    assert told == []


def test_memory_that_the_driver_takes_back_slowly_is_back() -> None:
    assert awaited(Gpu(lambda at_s: {}, lambda at_s: GIB if at_s < 40 else 0))[0] is MemoryEnd.BACK


@pytest.mark.parametrize(("until_s", "state"), [(20.0, MemoryEnd.BACK), (1e9, MemoryEnd.UNREADABLE)])
def test_a_driver_that_fails_after_the_end_gets_time_and_raises_nothing(until_s: float, state: MemoryEnd) -> None:
    found, passed_s, _ = awaited(Gpu(lambda at_s: {}, fails=lambda at_s: at_s < until_s))
    assert found is state
    assert passed_s <= LIMIT_S + 1


def test_a_driver_that_fails_before_a_start_gets_a_moment() -> None:
    for_a_moment = Gpu(lambda at_s: {}, lambda at_s: GIB, fails=lambda at_s: at_s < 5)
    assert gpu_memory.baseline(for_a_moment, (0,), for_a_moment.clock) == {0: GIB}
    for_good = Gpu(lambda at_s: {}, fails=lambda at_s: True)
    with pytest.raises(EnvironmentFaultError):
        gpu_memory.baseline(for_good, (0,), for_good.clock)
    assert gpu_memory.baseline(for_good, (), for_good.clock) == {}


def test_a_driver_that_is_gone_is_the_machines_fault_and_its_readings_are_not_observed() -> None:
    try:
        pynvml.nvmlDeviceGetCount()
    except pynvml.NVMLError:
        pass
    else:
        pytest.skip("this process uses a GPU")
    with pytest.raises(EnvironmentFaultError, match="the NVIDIA driver fails"):
        Nvml().used_bytes((0,))
    assert Nvml().processes((0,)) == {0: {}}
    assert Nvml().read((0,))[0].memory_used_bytes is None
