"""A whole study on a made-up server, for tests of the coordinator."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from tests.fakes import ScriptedClock
from tests.study.builders import landscape
from tuner.candidate import Candidate
from tuner.environment import describe
from tuner.study.assignment import Assignment
from tuner.study.events import Event
from tuner.study.fleet import LocalFleet
from tuner.study.loop import Loop
from tuner.study.plan import StudyPlan
from tuner.study.recheck import WinnerAndDefault
from tuner.study.record import TrialOutcome, TrialRecord
from tuner.study.search import Search
from tuner.study.seeds import seeds
from tuner.study.setting import StudySetting
from tuner.study.store import Store
from tuner.vllm.defaults import vllm_defaults

DEFAULTS = vllm_defaults("0.32.0", ())


class StudyRun:
    """A study on a made-up server, with every event kept."""

    def __init__(
        self,
        made: StudyPlan,
        run_trial: Callable[[Assignment], TrialRecord] = landscape,
        first: Iterable[Candidate] | None = None,
    ) -> None:
        """Make a study whose first candidates are `first`, else those that the product would choose."""
        setting = StudySetting.of(made, DEFAULTS)
        self.store = Store(Path(made.storage.removeprefix("sqlite:///")).parent)
        self.store.create()
        self.store.save_plan(made, describe("0.32.0", made.model, (), None))
        self.events: list[Event] = []
        self.stop = threading.Event()
        self.run_trial = run_trial
        self.loop = Loop(
            plan=made,
            store=self.store,
            search=WinnerAndDefault(made)
            if made.rechecks
            else Search(setting, seeds(setting) if first is None else first),
            fleet=LocalFleet(made.groups, lambda assignment: self.run_trial(assignment), self.store, self.stop),
            clock=ScriptedClock(),
            emit=self.events.append,
        )

    def cut(self, trials: int) -> StudyRun:
        """Run up to so many finished trials; the next one is interrupted."""
        usual = self.run_trial

        def run_trial(assignment: Assignment) -> TrialRecord:
            made = usual(assignment)
            if assignment.trial < trials:
                return made
            self.stop.set()
            return replace(made, outcome=TrialOutcome.INTERRUPTED, levels=(), best=None)

        self.run_trial = run_trial
        self.loop.run()
        return self
