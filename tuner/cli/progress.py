"""Chooser between the live screen and plain lines."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Protocol

from tuner.cli.console import Console
from tuner.study.events import Event
from tuner.study.plan import StudyPlan
from tuner.study.record import TrialRecord


class Look(StrEnum):
    """Form of the progress. `FITTING` is the live screen on a terminal that can show one, else lines."""

    FITTING = "fitting"
    PLAIN = "plain"


class Progress(AbstractContextManager["Progress"], Protocol):
    """Display of events from any thread."""

    def say(self, text: str) -> None: ...

    def show(self, event: Event) -> None: ...


def progress(plan: StudyPlan, vllm_version: str, records: Sequence[TrialRecord], look: Look) -> Progress:
    """Return the live screen if possible, else plain lines."""
    can_draw = sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown", "")
    if look is Look.PLAIN or not can_draw or os.environ.get("NO_COLOR"):
        return Console()
    from tuner.cli.screen import Screen

    return Screen(plan, vllm_version, records)
