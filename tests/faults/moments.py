"""Moments of a trial, found by what the program does and never by a clock. Hooks call `strike` at each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from tuner import verdict
from tuner.bench import capacity_search, ladder, open_probe
from tuner.bench.capacity_search import ProbeResult, Saturation, SearchSettings, Stop
from tuner.bench.open_probe import OpenProbe
from tuner.load import drive
from tuner.load.prompts import SEARCH_TRACE
from tuner.server import service, shutdown, start
from tuner.server.service import Service, ServiceRequest
from tuner.study import search, trial
from tuner.study.events import Event, PhaseChanged, TrialStarted
from tuner.study.record import Role, TrialRecord
from tuner.study.store import Store
from tuner.telemetry import prometheus, sampler

ENGINE_IS_THERE = b"Initializing a V1 LLM engine"


class Moment(StrEnum):
    BEFORE_START = "before the start"
    STARTING = "starting"
    WARMING_UP = "warming up"
    MEASURING = "measuring"
    DRAINING = "draining"
    STOPPING = "stopping"
    CONFIRMING = "confirming"
    SATURATING = "saturating"
    RACING = "racing"
    STEPPING = "stepping"
    CLAIMING = "claiming"
    WRITING = "writing"


OPEN_LOOP = (Moment.SATURATING, Moment.RACING, Moment.STEPPING, Moment.CLAIMING)

OPEN_RULES = SearchSettings(
    saturation_s=0.6, probe_s=0.6, longest_probe_s=4.0, most_probes=2, hopeless=0.0,
    claim_s=0.6, claim_requests=20.0, longest_claim_s=4.0, claim_traces=2, claim_attempts=2,
)  # fmt: skip
"""Short settings in which no candidate is too slow for its race: these runs are not about which is faster."""

DRAIN_S = 3.5


@dataclass
class Hooks:
    """Hooks that call `strike(moment, trial's folder)` at each moment. `CONFIRMING` is measuring in a confirmation
    run.

    One server at a time: with several the folder would be a guess.
    """

    strike: Callable[[Moment, Path], None]
    store_folder: Path
    folder: Path = Path()
    role: Role = Role.SEARCH
    probing: Moment = Moment.SATURATING

    def install(self, patch: pytest.MonkeyPatch) -> None:
        closed, save = drive.drive_closed, Store.save_record

        def drive_closed(*args: Any, **options: Any) -> drive.Samples:
            seconds, watch, warm = float(args[3]), options.get("watch"), "ramp_s" not in options

            def look(progress: drive.LevelProgress) -> str | None:
                if warm:
                    self.strike(Moment.WARMING_UP, self.folder)
                elif progress.elapsed_s < seconds:
                    confirming = self.role is Role.CONFIRM
                    self.strike(Moment.CONFIRMING if confirming else Moment.MEASURING, self.folder)
                elif progress.in_flight:
                    self.strike(Moment.DRAINING, self.folder)
                return watch(progress) if watch is not None else None

            return closed(*args, **{"drain_s": DRAIN_S, **options, "watch": look})

        def save_record(store: Store, record: TrialRecord) -> None:
            self.strike(Moment.WRITING, self.folder)
            save(store, record)

        serve = service.serving

        def serving(request: ServiceRequest) -> AbstractContextManager[Service]:
            log, should_stop = request.folder / "server.log", request.should_stop

            def look() -> bool:
                """Asked at every look of the wait, before the one that may find the server ready."""
                if ENGINE_IS_THERE in log.read_bytes()[:20_000]:
                    self.strike(Moment.STARTING, self.folder)
                return bool(should_stop())

            return serve(replace(request, should_stop=look))

        patch.setattr(trial, "serving", serving)
        patch.setattr(ladder, "drive_closed", drive_closed)
        patch.setattr(Store, "save_record", save_record)
        self._install_open_loop(patch)

    def _install_open_loop(self, patch: pytest.MonkeyPatch) -> None:
        at_rate, saturate = OpenProbe.__call__, OpenProbe.saturate

        def probe(made: OpenProbe, rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
            searching = Moment.RACING if self.probing is Moment.SATURATING else Moment.STEPPING
            self.probing = searching if trace == SEARCH_TRACE else Moment.CLAIMING
            return at_rate(made, rate, seconds, trace, stop)

        def fill(made: OpenProbe, seconds: float, concurrency: int, requests: int) -> Saturation:
            self.probing = Moment.SATURATING
            return saturate(made, seconds, concurrency, requests)

        def watched(drive_load: Callable[..., drive.Samples]) -> Callable[..., drive.Samples]:
            def driven(*args: Any, watch: drive.Watch, **options: Any) -> drive.Samples:
                def look(progress: drive.LevelProgress) -> str | None:
                    self.strike(self.probing, self.folder)
                    return watch(progress)

                return drive_load(*args, **{"drain_s": DRAIN_S, **options, "watch": look})

            return driven

        patch.setattr(OpenProbe, "__call__", probe)
        patch.setattr(OpenProbe, "saturate", fill)
        patch.setattr(open_probe, "drive_closed", watched(drive.drive_closed))
        patch.setattr(open_probe, "drive_open", watched(drive.drive_open))

    def see(self, event: Event) -> None:
        match event:
            case TrialStarted():
                self.folder, self.role = self.store_folder / "trials" / f"{event.trial:04d}", event.role
                self.strike(Moment.BEFORE_START, self.folder)
            case PhaseChanged(phase="stopping"):
                self.strike(Moment.STOPPING, self.folder)
            case _:
                pass


def short_limits(patch: pytest.MonkeyPatch) -> None:
    """Shorten minutes of an overnight run to seconds. Nothing else differs."""
    patch.setattr(verdict, "FEWEST_REQUESTS", 5)
    patch.setattr(ladder, "FEWEST_REQUESTS", 5)
    patch.setattr(capacity_search, "FEWEST_REQUESTS", 20)
    patch.setattr(trial, "HUNG_S", 2.0)
    patch.setattr(service, "_START_SLACK_S", 6.0)
    patch.setattr(service, "_START_FACTOR", 1.0)
    patch.setattr(start, "STOP_MARGIN_S", 1.0)
    patch.setattr(shutdown, "SETTLE_S", 0.3)
    patch.setattr(shutdown, "ORPHAN_GRACE_S", 0.5)
    patch.setattr(prometheus, "SCRAPE_TIMEOUT_S", 0.5)
    patch.setattr(sampler, "STILL_S", 1.0)
    patch.setattr(sampler, "SETTLE_STEP_S", 0.1)
    patch.setattr(search, "sampler_name", lambda: search.SamplerName.TPE)  # torch takes seconds to import
