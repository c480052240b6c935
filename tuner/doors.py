"""Doors that a machine has for several servers of one model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from enum import StrEnum

from tuner.errors import EnvironmentFaultError, UsageError
from tuner.launch import Door
from tuner.layout import Layout
from tuner.vllm import knobs


class DoorChoice(StrEnum):
    """Doors that a user admits, as `--door` has them."""

    AUTO = "auto"
    BOTH = "both"
    VLLM = "vllm"
    NGINX = "nginx"


def parse_door(text: str) -> DoorChoice:
    """Parse --door. Raises UsageError."""
    try:
        return DoorChoice(text.strip().lower())
    except ValueError:
        raise UsageError(f"there is no door {text!r}", hint=f"one of {', '.join(DoorChoice)}") from None


def lacks(flags: Collection[str], *, has_experts: bool, in_container: bool, has_nginx: bool) -> dict[Door, str]:
    """Say of each door that this machine lacks why it does."""
    found = {}
    if knobs.DATA_PARALLEL not in flags:
        found[Door.VLLM] = f"this vLLM has no --{knobs.DATA_PARALLEL}"
    elif has_experts:
        found[Door.VLLM] = f"--{knobs.DATA_PARALLEL} shares a model's experts: its replicas are not independent"
    elif in_container:
        found[Door.VLLM] = "servers in containers are independent of each other"
    if not has_nginx:
        found[Door.NGINX] = "nginx is not installed"
    return found


def chosen_doors(choice: DoorChoice, lacking: dict[Door, str], layouts: Sequence[Layout]) -> tuple[Door, ...]:
    """Return the doors of a study, the preferred one first; none where every layout is one server. Raises
    EnvironmentFaultError if a door is missing."""
    if all(layout.replicas == 1 for layout in layouts):
        return ()
    asked = {DoorChoice.VLLM: (Door.VLLM,), DoorChoice.NGINX: (Door.NGINX,)}.get(choice, (Door.VLLM, Door.NGINX))
    found = tuple(door for door in asked if door not in lacking)
    if not found or (choice is DoorChoice.BOTH and len(found) < len(asked)):
        why = "; ".join(lacking[door] for door in asked if door in lacking)
        alone = [str(layout) for layout in layouts if layout.replicas == 1]
        without = f", or search single servers only: --layouts {','.join(alone)}" if alone else ""
        first = "install nginx" if Door.NGINX in asked and Door.NGINX in lacking else "leave --door out"
        raise EnvironmentFaultError(f"several servers need a door: {why}", hint=first + without)
    return found
