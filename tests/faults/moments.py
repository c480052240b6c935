"""Moments of a trial, found by what the program does and never by a clock. Hooks call `strike` at each."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from tuner import verdict
from tuner.bench import capacity_search, session
from tuner.bench.capacity_search import ProbeResult, Saturation, SearchSettings, Stop
from tuner.bench.level import Level
from tuner.bench.session import LiveSession
from tuner.bench.task import Task
from tuner.load import drive
from tuner.load.early_end import EarlyEnd
from tuner.load.prompts import SEARCH_TRACE
from tuner.server import service, shutdown, start
from tuner.server.service import Service, ServiceRequest
from tuner.study import confirm, local_servers
from tuner.study.events import Event, PhaseChanged, TrialStarted
from tuner.study.record import Role, TrialRecord
from tuner.study.store import Store
from tuner.telemetry import prometheus, sampler

ENGINE_IS_THERE = b"Initializing a V1 LLM engine"
IS_READY = b"Application startup complete"
LOG_BYTES = 20_000
"""Beginning of a log in which these lines stand, unless the log is flooded."""


class Moment(StrEnum):
    BEFORE_START = "before the start"
    STARTING = "starting"
    ONE_IS_READY = "the last one starts"
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


class _Here(threading.local):
    """Trial of the thread that asks: several trials may run at once, each in its own thread."""

    folder: Path = Path()
    loading: Moment = Moment.WARMING_UP


@dataclass
class Hooks:
    """Hooks that call `strike(moment, trial's folder)` at each moment. `CONFIRMING` is measuring in a confirmation
    run."""

    strike: Callable[[Moment, Path], None]
    store_folder: Path
    _roles: dict[Path, Role] = field(default_factory=dict, init=False)
    _here: _Here = field(default_factory=_Here, init=False)

    def role(self, folder: Path) -> Role:
        """Return the role of the trial in a folder."""
        return self._roles[folder]

    def install(self, patch: pytest.MonkeyPatch) -> None:
        save = Store.save_record

        def save_record(store: Store, record: TrialRecord) -> None:
            self.strike(Moment.WRITING, store.trial_folder(record.trial))
            save(store, record)

        serve = service.serving

        def serving(request: ServiceRequest) -> AbstractContextManager[Service]:
            self._here.folder, should_stop = request.folder, request.should_stop

            def look() -> bool:
                """Asked at every look of the wait, before the one that may find the servers ready."""
                logs = [log.read_bytes()[:LOG_BYTES] for log in request.folder.glob("server*.log")]
                if all(ENGINE_IS_THERE in log for log in logs):
                    self.strike(Moment.STARTING, request.folder)
                if 0 < sum(IS_READY in log for log in logs) < len(logs):
                    self.strike(Moment.ONE_IS_READY, request.folder)
                return bool(should_stop())

            return serve(replace(request, should_stop=look))

        patch.setattr(local_servers, "serving", serving)
        patch.setattr(Store, "save_record", save_record)
        self._install_loads(patch)

    def _install_loads(self, patch: pytest.MonkeyPatch) -> None:
        warm_up, closed, at_rate, fill = (
            LiveSession.warm_up,
            LiveSession.closed,
            LiveSession.probe,
            LiveSession.saturate,
        )

        def warming(made: LiveSession, task: Task) -> None:
            self._here.loading = Moment.WARMING_UP
            warm_up(made, task)

        def level(made: LiveSession, concurrency: int, seconds: float) -> Level:
            confirms = self.role(self._here.folder) is Role.CONFIRM
            self._here.loading = Moment.CONFIRMING if confirms else Moment.MEASURING
            return closed(made, concurrency, seconds)

        def probe(made: LiveSession, rate: float, seconds: float, trace: str, stop: Stop) -> ProbeResult:
            searching = Moment.RACING if self._here.loading is Moment.SATURATING else Moment.STEPPING
            self._here.loading = searching if trace.startswith(SEARCH_TRACE) else Moment.CLAIMING
            return at_rate(made, rate, seconds, trace, stop)

        def saturate(made: LiveSession, seconds: float) -> Saturation:
            self._here.loading = Moment.SATURATING
            return fill(made, seconds)

        def watched(drive_load: Callable[..., drive.Samples]) -> Callable[..., drive.Samples]:
            def driven(*args: Any, watch: drive.Watch, **options: Any) -> drive.Samples:
                seconds, loading, folder = float(args[3]), self._here.loading, self._here.folder

                def look(progress: drive.LevelProgress) -> EarlyEnd | None:
                    drains = progress.elapsed_s >= seconds and loading in (Moment.MEASURING, Moment.CONFIRMING)
                    if not drains:
                        self.strike(loading, folder)
                    elif progress.in_flight:
                        self.strike(Moment.DRAINING, folder)
                    return watch(progress)

                return drive_load(*args, **{"drain_s": DRAIN_S, **options, "watch": look})

            return driven

        for name, hook in (("warm_up", warming), ("closed", level), ("probe", probe), ("saturate", saturate)):
            patch.setattr(LiveSession, name, hook)
        patch.setattr(session, "drive_closed", watched(drive.drive_closed))
        patch.setattr(session, "drive_open", watched(drive.drive_open))

    def see(self, event: Event) -> None:
        match event:
            case TrialStarted(trial=trial, role=role):
                folder = self._folder(trial)
                self._roles[folder] = role
                self.strike(Moment.BEFORE_START, folder)
            case PhaseChanged(trial=trial, phase="stopping"):
                self.strike(Moment.STOPPING, self._folder(trial))
            case _:
                pass

    def _folder(self, trial: int) -> Path:
        return self.store_folder / "trials" / f"{trial:04d}"


def short_limits(patch: pytest.MonkeyPatch) -> None:
    """Shorten minutes of an overnight run to seconds. Nothing else differs."""
    patch.setattr(verdict, "FEWEST_REQUESTS", 5)
    patch.setattr(session, "FEWEST_REQUESTS", 5)
    patch.setattr(capacity_search, "FEWEST_REQUESTS", 20)
    patch.setattr(local_servers, "HUNG_S", 2.0)
    patch.setattr(service, "_START_SLACK_S", 6.0)
    patch.setattr(service, "_START_FACTOR", 1.0)
    patch.setattr(start, "STOP_MARGIN_S", 1.0)
    patch.setattr(shutdown, "SETTLE_S", 0.3)
    patch.setattr(shutdown, "ORPHAN_GRACE_S", 0.5)
    patch.setattr(prometheus, "SCRAPE_TIMEOUT_S", 0.5)
    patch.setattr(sampler, "STILL_S", 1.0)
    patch.setattr(sampler, "SETTLE_STEP_S", 0.1)
    patch.setattr(confirm, "MOST_RUNS", 1)  # these runs are not about which is faster
