"""Model × GPUs → layouts that are searched, each with its places, and those that are ruled out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tuner.errors import EnvironmentFaultError, UsageError
from tuner.flagwords import Value
from tuner.layout.layout import Layout, PlacedLayout, RuledOut
from tuner.layout.rules import Memory, ModelLimits
from tuner.placement import GpuGroup, gpu_places, worker_places
from tuner.space.parameter import Kind, Parameter
from tuner.vllm import knobs


@dataclass(frozen=True, slots=True)
class Units:
    """GPUs that a study may use, or shares of a machine without GPUs. Without both, one server has the machine.

    `without_p2p` are the pairs of GPUs that cannot read each other's memory. `memory` is the smallest GPU's, None on
    a machine without GPUs.
    """

    gpus: tuple[int, ...] = ()
    numa_node_of: Mapping[int, int | None] = field(default_factory=dict)
    shares: tuple[str, ...] = ()
    without_p2p: tuple[tuple[int, int], ...] = ()
    memory: Memory | None = None

    @property
    def count(self) -> int:
        """Return the most ranks at once, 1 if the machine is not divided."""
        return len(self.gpus) or len(self.shares) or 1

    @property
    def indices(self) -> tuple[int, ...]:
        """Return the GPUs, or the numbers of the shares."""
        return self.gpus or tuple(range(len(self.shares)))

    @property
    def noun(self) -> str:
        """Name them in a message."""
        return "GPUs" if self.gpus else "workers"

    @property
    def lacks_p2p(self) -> bool:
        """Return True if some two of the GPUs are known to lack P2P."""
        return any(a in self.gpus and b in self.gpus for a, b in self.without_p2p)

    def places(self, layout: Layout) -> tuple[GpuGroup, ...]:
        """Return every place of one server of a layout."""
        if self.gpus:
            return gpu_places(self.gpus, layout.ranks, self.numa_node_of)
        return worker_places(self.shares, layout.ranks) if self.shares else (GpuGroup(),)

    def filled(self, tensor_parallel: int, pipeline_parallel: int = 1) -> Layout:
        """Return the layout of these sizes with as many servers as there is room for."""
        ranks = tensor_parallel * pipeline_parallel
        return Layout(max(1, self.count // ranks), tensor_parallel, pipeline_parallel)


@dataclass(frozen=True, slots=True)
class LayoutChoice:
    """Layouts that are searched, the default's, and those that are ruled out."""

    layouts: tuple[PlacedLayout, ...]
    own: Layout
    ruled_out: tuple[RuledOut, ...] = ()

    @property
    def constant(self) -> tuple[tuple[str, Value], ...]:
        """Return the flags of the only layout; none of several, whose candidates name theirs."""
        if len(self.layouts) > 1:
            return ()
        return tuple((flag, size) for flag, size in self.layouts[0].layout.flags.items() if size != 1)


def chosen_layouts(
    units: Units, limits: ModelLimits, model: str, asked: Mapping[Layout, str] | None = None
) -> LayoutChoice:
    """Choose the layouts of a model on these units, of those that are asked for or of all.

    `asked` are layouts with the words that ask for them. Raises UsageError if one of these cannot be, and
    EnvironmentFaultError if the model fits in none.
    """
    return _all(units, limits, model) if asked is None else _of_asked(units, limits, model, asked)


def _all(units: Units, limits: ModelLimits, model: str) -> LayoutChoice:
    """Choose every possible layout. The default has the largest tensor-parallel size, and is one server."""
    layouts = [units.filled(size) for size in _tensor_parallel_sizes(units, limits)]
    if (staged := _pipeline(units, limits)) is not None:
        layouts.append(staged)
    reasons = {layout: limits.refusal(layout, units.memory) for layout in layouts}
    possible = [layout for layout, why in reasons.items() if why is None]
    if not possible:
        possible = [_only_in_stages(units, limits, model)]
    ruled_out = tuple(RuledOut(layout, why) for layout, why in reasons.items() if why is not None)
    own = max(possible, key=lambda layout: (layout.pipeline_parallel == 1, layout.ranks))
    if len(possible) > 1:
        own = Layout(1, own.tensor_parallel, own.pipeline_parallel)
    return LayoutChoice(_placed(units, possible), own, ruled_out)


def _of_asked(units: Units, limits: ModelLimits, model: str, asked: Mapping[Layout, str]) -> LayoutChoice:
    """Choose the layouts that a user asks for. The default is the one with the largest tensor-parallel size."""
    for layout, words in asked.items():
        _check_filling(units, layout, words)
        if (why := limits.indivisible(layout)) is not None:
            sizes = ", ".join(str(n) for n in range(1, units.count + 1) if not limits.indivisible(Layout(1, n)))
            raise UsageError(f"{words}: {why}", hint=f"tensor-parallel sizes of this model here: {sizes}")
    reasons = {layout: limits.too_large(layout.ranks, units.memory) for layout in asked}
    possible = [layout for layout, why in reasons.items() if why is None]
    if not possible:
        fitting = ",".join(str(placed.layout) for placed in _all(units, limits, model).layouts)
        first = next(iter(asked))
        raise EnvironmentFaultError(f"{asked[first]}: {reasons[first]}", hint=f"may fit: --layouts {fitting}")
    ruled_out = tuple(RuledOut(layout, why) for layout, why in reasons.items() if why is not None)
    own = max(possible, key=lambda layout: (layout.tensor_parallel, layout.ranks))
    return LayoutChoice(_placed(units, possible), own, ruled_out)


def layout_parameters(layouts: Sequence[Layout]) -> tuple[Parameter, ...]:
    """Return the parameters that tell the layouts of a search apart. Each tensor-parallel and pipeline-parallel size
    of them is a choice."""
    if len(layouts) < 2:
        return ()
    tensor = tuple(sorted({layout.tensor_parallel for layout in layouts}))
    pipeline = tuple(sorted({1, *(layout.pipeline_parallel for layout in layouts)}))
    found = [Parameter(knobs.TENSOR_PARALLEL, Kind.CHOICE, choices=tensor)]
    if len(pipeline) > 1:
        found.append(Parameter(knobs.PIPELINE_PARALLEL, Kind.CHOICE, choices=pipeline))
    return tuple(found)


def _tensor_parallel_sizes(units: Units, limits: ModelLimits) -> list[int]:
    """Return the sizes that are worth a look: those that leave no unit idle, and on GPUs the powers of two. Where the
    model's heads are not known, powers of two alone, which divide almost all."""
    known, count = limits.shape is not None, units.count

    def is_worth_a_look(size: int) -> bool:
        power, even = size & (size - 1) == 0, count % size == 0
        return (even or (power and bool(units.gpus))) if known else power and (even or bool(units.gpus))

    return [size for size in range(1, count + 1) if is_worth_a_look(size)]


def _pipeline(units: Units, limits: ModelLimits) -> Layout | None:
    """Return the layout of the fewest GPUs in stages, where they lack P2P and one GPU cannot hold the model. Stages
    pass activations on once; tensor-parallel ranks meet twice in every layer."""
    if not units.lacks_p2p or limits.too_large(1, units.memory) is None:
        return None
    sizes = range(2, units.count + 1)
    ranks = next((size for size in sizes if limits.too_large(size, units.memory) is None), None)
    return None if ranks is None else units.filled(1, ranks)


def _placed(units: Units, layouts: Collection[Layout]) -> tuple[PlacedLayout, ...]:
    ordered = sorted(layouts, key=lambda layout: (layout.pipeline_parallel, layout.tensor_parallel))
    return tuple(PlacedLayout(each, places := units.places(each), _cautions(units, each, places)) for each in ordered)


def _cautions(units: Units, layout: Layout, places: Sequence[GpuGroup]) -> tuple[str, ...]:
    """Say what of the machine may slow a layout down."""
    found = []
    without = [p for p in places if any(a in p.gpus and b in p.gpus for a, b in units.without_p2p)]
    if without:
        found.append(f"no P2P between the GPUs{_within(without, places)}: they talk through the host's memory")
    nodes = {place: {units.numa_node_of.get(gpu) for gpu in place.gpus} - {None} for place in places}
    if split := [place for place in places if len(nodes[place]) > 1]:
        found.append(f"GPUs{_within(split, places)} on several NUMA nodes")
    if units.indices and (idle := units.count - len(places) * layout.ranks):
        found.append(f"{idle} of {units.count} {units.noun} idle")
    return tuple(found)


def _within(some: Sequence[GpuGroup], places: Sequence[GpuGroup]) -> str:
    """Name the places, if they are not all."""
    return "" if len(some) == len(places) else f" of {', '.join(place.name for place in some)}"


def _check_filling(units: Units, layout: Layout, words: str) -> None:
    """Refuse a layout with more or fewer servers than there is room for."""
    if not units.indices:
        return  # one server has the machine, and vLLM places its ranks
    fitting, count = units.filled(layout.tensor_parallel, layout.pipeline_parallel), f"{units.count} {units.noun}"
    if layout.ranks > units.count:
        raise UsageError(f"{words} needs {layout.ranks} {units.noun} a server, of {count}", hint=f"at most {count}")
    if layout.replicas > fitting.replicas:
        raise UsageError(f"{words} needs {layout.gpus} {units.noun}, of {count}", hint=f"write {fitting}")
    if layout.replicas < fitting.replicas:
        fewer = ", or choose fewer GPUs with --gpus" if units.gpus else ""
        raise UsageError(f"{words} leaves room for more servers on {count}", hint=f"write {fitting}{fewer}")


def _only_in_stages(units: Units, limits: ModelLimits, model: str) -> Layout:
    """Return the layout of a model that tensor-parallel alone cannot place. Raises EnvironmentFaultError with how
    many GPUs of this kind, or which bits a weight, it needs."""
    memory, count = units.memory, units.count
    assert memory is not None  # on a machine without GPUs, one worker can have any model
    staged = (units.filled(size, n) for size in range(count, 0, -1) for n in range(2, count // size + 1))
    if (found := next((each for each in staged if limits.refusal(each, memory) is None), None)) is not None:
        return found
    least, bits = limits.least_gpus(memory), limits.bits_that_fit(count, memory)
    ways = [f"at least {least} GPUs of this kind"] if least is not None else []
    ways += [f"a checkpoint of {bits} bits a weight may fit on these"] if bits is not None else []
    why = limits.refusal(Layout(1, 1, count), memory)
    raise EnvironmentFaultError(
        f"{model} does not fit on {count} GPU{'s' if count > 1 else ''}: {why}",
        hint="; or ".join(ways) or "choose a smaller model",
    )
