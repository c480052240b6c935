"""Pattern of one message of the log, with its meaning."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tuner.vllm import bounds
from tuner.vllm.bounds import Judge, Learn
from tuner.vllm.cause import Fault

OWN_CONFIG = (
    r"'(?:Vllm|Model|Cache|Parallel|Scheduler|Device|Load|LoRA|Speculative|Compilation|Attention|KVTransfer|Pooler"
    r"|Observability|Kernel|Quantization)Config' object has no attribute"
)
"""Message of code that was written for another vLLM: a plugin, or half an update."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """Pattern of one message. `explanation` is filled with the groups of `regex`. A group named `line` marks the
    line to quote."""

    kind: str
    fault: Fault | Judge
    regex: re.Pattern[str]
    explanation: str
    hint: str
    learn: Learn = bounds.nothing
