"""This machine: its GPUs, and the folder for what may be thrown away."""

from __future__ import annotations

import os
from pathlib import Path

from tuner.config import Machine
from tuner.environment import Gpu
from tuner.telemetry.gpu import inventory


def cache_folder() -> Path:
    """Return the folder for answers that can be asked for again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tuner"


def this_machine() -> Machine:
    """Ask the driver which GPUs are built in."""
    installed, driver = inventory()
    return Machine(
        gpus=tuple(Gpu(gpu.index, gpu.name, gpu.memory_gib, gpu.uuid) for gpu in installed),
        numa_nodes=tuple(gpu.numa_node for gpu in installed),
        driver=driver,
    )
