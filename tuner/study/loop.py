"""The coordinator of a study: search, comparison of GPU groups, confirmation, result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace

from tuner.bench.task import Task
from tuner.candidate import Candidate
from tuner.clock import Clock
from tuner.errors import EnvironmentFaultError
from tuner.measurement import LoadKind, Measurement
from tuner.placement import GpuGroup
from tuner.study import confirm, forecast
from tuner.study.assignment import Assignment, check_task, confirm_task, search_task
from tuner.study.conclusion import conclude
from tuner.study.events import (
    Event,
    GroupQuarantined,
    GroupsCompared,
    RuleApplied,
    SearchEnded,
    StudyFinished,
    TrialFinished,
    TrialStarted,
)
from tuner.study.fleet import Fleet, FleetStoppedError
from tuner.study.plan import Ladder, StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import Decision, StudyResult
from tuner.study.search import Proposal, Search, SpaceExhaustedError
from tuner.study.sentence import sentence
from tuner.study.stopping import SearchEnd, search_end
from tuner.study.store import Store

ATTEMPTS = 3
"""Number of starts that a candidate gets in all when the machine is at fault."""

FAULTS_IN_A_ROW = 3
"""Number of consecutive faults of the machine that end the run: the rest would fare no better."""


@dataclass(kw_only=True)
class Loop:
    """Coordinator of a study: it asks, submits and decides. A stopped fleet ends the run early: what finished is
    kept, and the best so far is the result. `on_result` gets the result after every trial and at the end."""

    plan: StudyPlan
    store: Store
    search: Search
    fleet: Fleet
    clock: Clock
    emit: Callable[[Event], None] = lambda event: None
    on_result: Callable[[StudyResult], None] = lambda result: None
    _records: list[TrialRecord] = field(default_factory=list, init=False)
    _running: dict[Future[TrialRecord], Assignment] = field(default_factory=dict, init=False)
    _attempts: Counter[str] = field(default_factory=Counter, init=False)
    _quarantined: set[int] = field(default_factory=set, init=False)
    _began_ns: int = field(default=0, init=False)
    _spent_before_s: float = field(default=0.0, init=False)

    def run(self) -> StudyResult:
        """Run the study to its end, from wherever its records on disk left it."""
        self._resume()
        with self.fleet:
            with suppress(FleetStoppedError):  # interrupted between two trials
                self._search()
                self._confirm()
            self._finish_running()
        result = self._result(complete=not self.fleet.stopped)
        self._save(result)
        self.emit(StudyFinished(result))
        return result

    def _resume(self) -> None:
        self._records = list(self.store.records())
        self._spent_before_s = forecast.spent_s(self.plan, self._records)
        self._began_ns = self.clock.now_ns()
        self.search.restore(self._records)

    # --- search

    def _search(self) -> None:
        """Keep every slot busy until the search ends."""
        end: SearchEnd | None = None
        while True:
            if not self._running:
                self._compare_groups()
            if end is not SearchEnd.EXHAUSTED:
                end = self._fill_slots()
            if not self._running:
                break
            self._finish_next()  # it may bring a gain or free time, so that the search goes on after all
        if end is not None:
            self.emit(SearchEnded(end, self.plan.patience))

    def _fill_slots(self) -> SearchEnd | None:
        """Start trials on the free slots. Returns why no more are started, or None if all slots are busy."""
        while (group := self._free_group()) is not None and not self.fleet.stopped:
            end = search_end(self.plan, self._records, self._elapsed_s, len(self._running))
            if end is not None:
                return end
            self.store.need_room()
            try:
                proposal = self.search.ask()
            except SpaceExhaustedError:
                return SearchEnd.EXHAUSTED
            for rule in proposal.newly_applied:
                self.emit(RuleApplied(rule))
            self._submit(self._assignment(proposal, group))
        return None

    def _free_group(self) -> GpuGroup | None:
        """Find a group for the next trial of the search. The first trial runs alone: groups are compared with it."""
        if not self._records and self._running:
            return None
        busy = {unit for assignment in self._running.values() for unit in assignment.units}
        return next((group for group in self._healthy_groups if not group.units & busy), None)

    def _assignment(self, proposal: Proposal, group: GpuGroup) -> Assignment:
        self._attempts[proposal.candidate.id] += 1
        # The default never races: a gain over it needs its own figure, also if its first start was interrupted.
        best = None if proposal.role is Role.DEFAULT else confirm.incumbent(self._records)
        return Assignment(
            trial=self.store.new_trial(),
            role=proposal.role,
            candidate=proposal.candidate,
            groups=(group,),
            task=search_task(self.plan.load, best),
            warm_up_s=self.plan.load.warm_up_s,
            search_trial=proposal.number,
            attempt=self._attempts[proposal.candidate.id],
        )

    def _compare_groups(self) -> None:
        """Run the default on all groups at once, to compare with the default alone. Once in a study."""
        alone = next((_in_closed_loop(r) for r in self._records if r.role is Role.DEFAULT and r.levels), None)
        checked = any(r.role is Role.CHECK for r in self._records)
        if len(self.fleet.groups) == 1 or alone is None or checked or self.fleet.stopped:
            return
        task = check_task(self.plan.load, alone)
        for group in self._healthy_groups:
            self._submit(self._fresh(Role.CHECK, self.plan.baseline, group, task))
        self._finish_running()
        together = [r for r in self._records if r.role is Role.CHECK]
        figures = [r.levels[0].measurement.qps for r in together if r.levels]
        slowest = min((qps for qps in figures if qps is not None), default=None)
        self.emit(GroupsCompared(alone.qps, slowest, len(together)))

    # --- confirmation

    def _confirm(self) -> None:
        """Make the confirmation runs, one after the other and alone on the machine."""
        while not self.fleet.stopped:
            found = confirm.next_to_confirm(self.plan, self._records)
            if found is None or not self._in_time_to_confirm(found):
                return
            group = self._healthy_groups[0]
            runs = confirm.fresh_runs(self._records, found.candidate)
            # Claims of winner and default share their traffic: the first of each has one, the second another.
            traffic = 1 if isinstance(self.plan.load, Ladder) else 1 + len(runs)
            task = confirm_task(self.plan.load, found, runs)
            self._submit(self._fresh(Role.CONFIRM, found.candidate, group, task, traffic))
            self._finish_running()

    def _in_time_to_confirm(self, found: TrialRecord) -> bool:
        """Return True if time is left for a run. The first run of each candidate is made even without."""
        budget = self.plan.time_budget_s
        if budget is None or self._elapsed_s + forecast.confirmation_s(self.plan, self._records) <= budget:
            return True
        confirmed = (r for r in self._records if r.role is Role.CONFIRM and r.counts)
        return all(r.candidate != found.candidate for r in confirmed)

    # --- trials

    @property
    def _healthy_groups(self) -> list[GpuGroup]:
        return [group for group in self.fleet.groups if not group.units & self._quarantined]

    @property
    def _elapsed_s(self) -> float:
        return self._spent_before_s + (self.clock.now_ns() - self._began_ns) / 1e9

    def _fresh(self, role: Role, candidate: Candidate, group: GpuGroup, task: Task, traffic: int = 1) -> Assignment:
        """Return an assignment that answers no proposal, on traffic that the search has not seen."""
        return Assignment(
            trial=self.store.new_trial(),
            role=role,
            candidate=candidate,
            groups=(group,),
            task=task,
            warm_up_s=self.plan.load.warm_up_s,
            search_trial=None,
            traffic=traffic,
        )

    def _submit(self, assignment: Assignment) -> None:
        counted = sum(r.counts and r.role is not Role.CHECK for r in self._records) + len(self._running)
        number = 1 if assignment.role is Role.CHECK else counted + 1
        planned = self.plan.starts + self.plan.confirm_starts
        place = assignment.place
        self.emit(TrialStarted(assignment.trial, assignment.role, assignment.candidate, place, number, planned))
        self._running[self.fleet.submit(assignment)] = assignment

    def _finish_running(self) -> None:
        while self._running:
            self._finish_next()

    def _finish_next(self) -> None:
        """Wait for the next record, and take in every one that is there."""
        for future in wait(self._running, return_when=FIRST_COMPLETED).done:
            assignment = self._running.pop(future)
            self._take_in(assignment, future.result())

    def _take_in(self, assignment: Assignment, record: TrialRecord) -> None:
        best = max((r.qps for r in self._records if r.qps is not None), default=0.0)
        self._records.append(record)
        if record.search_trial is not None:
            if record.counts or record.attempt >= ATTEMPTS:
                self.search.tell(record)
            else:
                self.search.requeue(record.search_trial)
        self.emit(TrialFinished(record, is_best=record.qps is not None and record.qps > best))
        self._save(self._result(complete=False))
        self._quarantine(assignment, record)
        self._raise_if_the_machine_is_broken(record)

    def _quarantine(self, assignment: Assignment, record: TrialRecord) -> None:
        """Use the trial's GPUs no more if its server left something there."""
        left = record.start.dirty
        if left is None:
            return
        self._quarantined |= assignment.units
        self.emit(GroupQuarantined(assignment.place, record.trial, left))
        if not self._healthy_groups:
            raise EnvironmentFaultError(
                f"no GPU group is usable any more: {left} of trial {record.trial:04d} did not go away",
                hint=f"end what holds it (nvidia-smi names the processes), then: {self.store.resume_command}",
            )

    def _raise_if_the_machine_is_broken(self, record: TrialRecord) -> None:
        last = [r for r in self._records if r.outcome is not TrialOutcome.INTERRUPTED][-FAULTS_IN_A_ROW:]
        in_a_row = len(last) == FAULTS_IN_A_ROW and all(r.outcome is TrialOutcome.INFRASTRUCTURE for r in last)
        given_up = record.outcome is TrialOutcome.INFRASTRUCTURE and record.attempt >= ATTEMPTS
        if in_a_row or given_up:
            cause = record.start.cause
            raise EnvironmentFaultError(
                f"{FAULTS_IN_A_ROW} starts failed through no fault of the candidate: "
                f"{cause.explanation if cause else 'unknown cause'}",
                hint=cause.hint if cause else f"read {self.store.folder}/trials/{record.trial:04d}/server.log",
            )

    # --- result

    def _result(self, *, complete: bool) -> StudyResult:
        records = self._records
        winner, default = confirm.compared(records, self.plan.baseline, self.plan.load.kind)
        decision = confirm.decide(winner, default)
        result = StudyResult(
            study=self.plan.study,
            decision=decision,
            winner=default if decision is Decision.KEEP_DEFAULT else winner,
            default=default,
            default_seen=confirm.seen(records, self.plan.baseline),
            starts=len(records),
            refused=sum(r.outcome in (TrialOutcome.REFUSED, TrialOutcome.DIED) for r in records),
            elapsed_s=self._elapsed_s,
            complete=complete,
            sentence="",
            updated_at=self.clock.wall().isoformat(timespec="seconds"),
            learnt=self.search.learnt,
        )
        return replace(result, sentence=sentence(conclude(self.plan, result, records)))

    def _save(self, result: StudyResult) -> None:
        self.store.save_result(result)
        self.on_result(result)


def _in_closed_loop(record: TrialRecord) -> Measurement | None:
    """Return the level that the comparison of groups repeats. It is the one that counts, or the saturation."""
    closed = [level.measurement for level in record.levels if level.measurement.load.kind is LoadKind.CLOSED]
    return record.best_level if record.best_level in closed else next(iter(closed), None)
