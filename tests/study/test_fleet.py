"""The contract of a fleet, over the fleets that there are."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from tests.study.fleet_contract import Emit, FleetContract, FleetFactory, Work
from tuner.placement import GpuGroup
from tuner.study.fleet import Fleet, LocalFleet
from tuner.study.store import Store


def local(groups: Sequence[GpuGroup], work: Work, store: Store, emit: Emit, stop: threading.Event) -> Fleet:
    return LocalFleet(groups, lambda assignment: work(assignment, emit), store, stop)


class TestFleets(FleetContract):
    @pytest.fixture(params=[local])
    def factory(self, request: pytest.FixtureRequest) -> FleetFactory:
        made: FleetFactory = request.param
        return made
