"""Options of a command line → layouts that a user asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuner.errors import UsageError
from tuner.flagwords import GivenFlag, given_flags
from tuner.layout.choice import Units
from tuner.layout.layout import FLAGS, Layout, parse_layouts
from tuner.vllm import knobs


@dataclass(frozen=True, slots=True)
class LayoutRequest:
    """Layouts that are asked for, each with the words that do. None if the choice is tuner's.

    `extra` are the user's own words for vLLM without those that set a layout.
    """

    layouts: Mapping[Layout, str] | None
    extra: tuple[str, ...]


def layout_request(layouts: str, tensor_parallel: int | None, extra: Sequence[str], units: Units) -> LayoutRequest:
    """Read --layouts, --tensor-parallel-size, or vLLM's own sizes among the words after `--`. Raises UsageError if
    more than one of them is there."""
    given = given_flags(extra, short=knobs.SHORT_OPTIONS)
    own = [flag for flag in given if flag.name in FLAGS]
    rest = tuple(word for flag in given if flag.name not in FLAGS for word in flag.words)
    listed = parse_layouts(layouts)
    if tensor_parallel is not None and tensor_parallel < 1:
        raise UsageError(f"--{knobs.TENSOR_PARALLEL} {tensor_parallel} is out of range", hint="at least 1")
    if listed is not None and tensor_parallel is not None:
        raise UsageError(f"--layouts and --{knobs.TENSOR_PARALLEL} both choose the layouts", hint="keep one of them")
    if own and (listed is not None or tensor_parallel is not None):
        option = "--layouts" if listed is not None else f"--{knobs.TENSOR_PARALLEL}"
        raise UsageError(f"--{own[0].name} after -- and {option} both choose the layouts", hint=f"keep {option}")
    if listed is not None:
        if not units.indices:
            raise UsageError("--layouts needs GPUs, or workers to divide a CPU among", hint="give --workers N too")
        return LayoutRequest({layout: f"--layouts {layout}" for layout in listed}, rest)
    if tensor_parallel is not None:
        layout = units.filled(tensor_parallel)
        return LayoutRequest({layout: f"--{knobs.TENSOR_PARALLEL} {tensor_parallel}"}, rest)
    if own:
        words = " ".join(word for flag in own for word in flag.words)
        return LayoutRequest({_own_layout(own, units): f"{words} after --"}, rest)
    return LayoutRequest(None, rest)


def _own_layout(own: Sequence[GivenFlag], units: Units) -> Layout:
    """Return the layout of vLLM's own flags, with as many servers as there is room for."""
    sizes = {}
    for flag in own:
        if flag.name == knobs.DATA_PARALLEL:
            raise UsageError(
                f"--{flag.name} after -- is the tuner's own: it chooses how many servers run",
                hint="say which layouts: --layouts 4x1,2x2",
            )
        value = flag.value
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{' '.join(flag.words)} is out of range", hint="a whole number, at least 1")
        sizes[flag.name] = value
    return units.filled(sizes.get(knobs.TENSOR_PARALLEL, 1), sizes.get(knobs.PIPELINE_PARALLEL, 1))
