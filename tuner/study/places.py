"""Places of a study: GPU groups that can still be used, and the layouts that they make."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from tuner.layout import Layout, PlacedLayout
from tuner.placement import GpuGroup
from tuner.study.plan import StudyPlan


class Places:
    """GPU groups of a plan without the quarantined ones."""

    def __init__(self, plan: StudyPlan) -> None:
        self._plan = plan
        self._quarantined: set[int] = set()

    def quarantine(self, units: Collection[int]) -> None:
        """Use these units no more in this run."""
        self._quarantined |= set(units)

    def healthy(self, groups: Iterable[GpuGroup]) -> list[GpuGroup]:
        """List the groups without a quarantined unit."""
        return [group for group in groups if not group.units & self._quarantined]

    def machine(self, placed: PlacedLayout) -> tuple[GpuGroup, ...] | None:
        """Return the places of all servers of a layout at once, None if too many are quarantined."""
        places = tuple(self.healthy(placed.groups)[: placed.layout.replicas])
        return places if len(places) == placed.layout.replicas else None

    @property
    def broken_layouts(self) -> frozenset[Layout]:
        """Return the layouts that cannot run as a whole any more."""
        return frozenset(placed.layout for placed in self._plan.layouts if self.machine(placed) is None)

    @property
    def all_layouts_are_broken(self) -> bool:
        return len(self.broken_layouts) == len(self._plan.layouts)
