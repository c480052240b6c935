"""Layouts of a machine: how many servers, and over how many GPUs each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self

from tuner.errors import UsageError
from tuner.flagwords import Value
from tuner.placement import GpuGroup
from tuner.vllm import knobs

FLAGS = (knobs.TENSOR_PARALLEL, knobs.PIPELINE_PARALLEL, knobs.DATA_PARALLEL)
"""Flags of vLLM that make a layout."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Servers of a machine: `replicas` of them, each over `tensor_parallel` × `pipeline_parallel` GPUs."""

    replicas: int = 1
    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    @classmethod
    def of(cls, values: Mapping[str, Value]) -> Self:
        """Read the layout from a candidate's values. A flag that is not given is 1."""
        tensor, pipeline, data = (value if isinstance(value := values.get(flag), int) else 1 for flag in FLAGS)
        return cls(data, tensor, pipeline)

    @property
    def ranks(self) -> int:
        """Return the GPUs of one server."""
        return self.tensor_parallel * self.pipeline_parallel

    @property
    def server(self) -> Layout:
        """Return the layout of a single server. It is equal where servers are alike, however many there are."""
        return replace(self, replicas=1)

    @property
    def gpus(self) -> int:
        """Return the GPUs of all servers."""
        return self.replicas * self.ranks

    @property
    def flags(self) -> dict[str, Value]:
        """Return the flags of a candidate with this layout. Sizes of 1 are left out, except tensor-parallel's."""
        sizes = dict(zip(FLAGS, (self.tensor_parallel, self.pipeline_parallel, self.replicas), strict=True))
        return {flag: size for flag, size in sizes.items() if size > 1 or flag == knobs.TENSOR_PARALLEL}

    def __str__(self) -> str:
        pipeline = f"x{self.pipeline_parallel}" if self.pipeline_parallel > 1 else ""
        return f"{self.replicas}x{self.tensor_parallel}{pipeline}"


def split_layout(values: Mapping[str, Value]) -> tuple[Layout | None, dict[str, Value]]:
    """Split a candidate's values into its layout and the other flags. None if it names no layout."""
    others = {flag: value for flag, value in values.items() if flag not in FLAGS}
    return (Layout.of(values) if len(others) < len(values) else None), others


@dataclass(frozen=True, slots=True)
class PlacedLayout:
    """Layout with the places of its servers.

    `groups` are all places where one server of it can run; the first `layout.replicas` are those of the whole
    machine. `cautions` are facts of the machine that may slow it down.
    """

    layout: Layout
    groups: tuple[GpuGroup, ...]
    cautions: tuple[str, ...] = ()

    @property
    def machine(self) -> tuple[GpuGroup, ...]:
        """Return the places of all its servers at once."""
        return self.groups[: self.layout.replicas]


@dataclass(frozen=True, slots=True)
class RuledOut:
    """Layout that is not started, with the reason."""

    layout: Layout
    why: str


AUTO = "auto"
"""Word for a choice that is left to tuner."""


def parse_layouts(text: str) -> tuple[Layout, ...] | None:
    """Parse `4x1,2x2` or, with pipeline-parallel, `2x1x2`, in which `x` may be `×`. None if it is `auto`."""
    if text.strip().lower() == AUTO:
        return None
    found = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})\s*[xX×]\s*(\d{1,4})\s*(?:[xX×]\s*(\d{1,4})\s*)?", part, re.ASCII)
        sizes = [int(size) for size in match.groups() if size] if match else []
        if not sizes or min(sizes) < 1:
            raise UsageError(
                f"--layouts {text!r} does not parse",
                hint="servers x GPUs of each, such as 4x1,2x2,1x4; with pipeline-parallel 2x1x2; or auto",
            )
        found.append(Layout(*sizes))
    return tuple(dict.fromkeys(found))
