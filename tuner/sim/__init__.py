"""Stand-in for `vllm serve` on simulated hardware. It has the same argv, log lines, endpoints and failures.

As a process: `python -m tuner.sim serve MODEL --max-num-seqs 64 …`. As a library, in virtual time: `startup`, then
`simulate`.
"""

from tuner.model import ModelShape
from tuner.sim.configuration import Cause, EngineArguments, EngineConfig, Refused, resolve
from tuner.sim.gpu_memory import held_bytes
from tuner.sim.hardware import PROFILES, Hardware, hardware_profile
from tuner.sim.model import PRESETS, load_model
from tuner.sim.startup import Started, startup
from tuner.sim.virtual import ClosedLoop, Noise, OpenLoop, Shape, SimulatedLevel, simulate

__all__ = [
    "PRESETS",
    "PROFILES",
    "Cause",
    "ClosedLoop",
    "EngineArguments",
    "EngineConfig",
    "Hardware",
    "ModelShape",
    "Noise",
    "OpenLoop",
    "Refused",
    "Shape",
    "SimulatedLevel",
    "Started",
    "hardware_profile",
    "held_bytes",
    "load_model",
    "resolve",
    "simulate",
    "startup",
]
