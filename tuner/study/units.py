"""Units of a machine: its GPUs, or its workers on a CPU. Every server occupies one or more of them."""

from __future__ import annotations

from tuner.placement import GpuGroup
from tuner.study.plan import StudyPlan


def machine_units(plan: StudyPlan) -> tuple[str, ...]:
    """Return the names of all units, in their order."""
    found = {unit: _name(group, unit) for group in plan.groups for unit in group.units}
    return tuple(found[unit] for unit in sorted(found))


def units_at(plan: StudyPlan, place: str) -> tuple[str, ...]:
    """Return the names of the units of a place such as `gpu0-1+gpu2-3`. A place that the plan lacks is a unit."""
    groups = {group.name: group for group in plan.groups}
    names = place.split("+")
    if not all(name in groups for name in names):
        return (place,)
    return tuple(_name(groups[name], unit) for name in names for unit in sorted(groups[name].units))


def short_place(place: str) -> str:
    """Write a place of many servers by its first and last one."""
    first, *others = place.split("+")
    return f"{first}+…+{others[-1]}" if len(others) > 2 else place


def _name(group: GpuGroup, unit: int) -> str:
    if group.gpus:
        return f"gpu{unit}"
    return f"cpu{unit}" if group.workers else group.name
