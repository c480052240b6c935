"""The coordinator of a study: search, checks of layouts, confirmation, result."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace

from tuner.bench.task import Task
from tuner.candidate import Candidate
from tuner.clock import Clock
from tuner.errors import EnvironmentFaultError
from tuner.layout import PlacedLayout
from tuner.placement import GpuGroup
from tuner.study import confirm, forecast, machine_faults, unread
from tuner.study.assignment import Assignment, check_task, confirm_task, experiment_task, search_task
from tuner.study.confirm import Confirmation
from tuner.study.disturbance import in_closed_loop, runs_alone
from tuner.study.doors import compared_runs
from tuner.study.events import (
    Event,
    Explained,
    GroupQuarantined,
    GroupsCompared,
    LayoutDropped,
    Paused,
    RuleApplied,
    SearchEnded,
    StudyFinished,
    TrialFinished,
    TrialStarted,
    Unexplained,
)
from tuner.study.fleet import Fleet, FleetStoppedError
from tuner.study.places import Places
from tuner.study.plan import StudyPlan
from tuner.study.recheck import WinnerAndDefault
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import StudyResult
from tuner.study.search import Proposal, Search, SpaceExhaustedError
from tuner.study.sentence import result_of
from tuner.study.stopping import SearchEnd, search_end
from tuner.study.store import Store
from tuner.study.units import units_at


@dataclass(kw_only=True)
class Loop:
    """Coordinator of a study: it asks, submits and decides. A stopped fleet ends the run early: what finished is
    kept, and the best so far is the result. `on_result` gets the result after every trial and at the end."""

    plan: StudyPlan
    store: Store
    search: Search | WinnerAndDefault
    fleet: Fleet
    clock: Clock
    emit: Callable[[Event], None] = lambda event: None
    on_result: Callable[[StudyResult], None] = lambda result: None
    _records: list[TrialRecord] = field(default_factory=list, init=False)
    _running: dict[Future[TrialRecord], Assignment] = field(default_factory=dict, init=False)
    _attempts: Counter[str] = field(default_factory=Counter, init=False)
    _held: Proposal | None = field(default=None, init=False)
    _places: Places = field(init=False)
    _pauses: int = field(default=0, init=False)
    _began_ns: int = field(default=0, init=False)
    _spent_before_s: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._places = Places(self.plan)

    def run(self, earlier: Iterable[TrialRecord] | None = None) -> StudyResult:
        """Run the study to its end, from wherever `earlier` records left it, by default those on disk."""
        self._resume(self.store.records() if earlier is None else earlier)
        with self.fleet:
            with suppress(FleetStoppedError):  # interrupted between two trials
                self._search()
                self._confirm()
            self._finish_running()
        result = self._result(complete=not self.fleet.stopped)
        self._save(result)
        self.emit(StudyFinished(result))
        return result

    def _resume(self, earlier: Iterable[TrialRecord]) -> None:
        self._records = list(unread.settled(self.plan, earlier))
        self._spent_before_s = forecast.spent_s(self.plan, self._records)
        self._began_ns = self.clock.now_ns()
        self.search.restore(self._records, [r.search_trial for r in self._questions if r.search_trial is not None])

    @property
    def records(self) -> tuple[TrialRecord, ...]:
        """Return the records so far."""
        return tuple(self._records)

    # --- search

    def _search(self) -> None:
        """Keep the machine busy until the search ends."""
        end: SearchEnd | None = None
        while True:
            if not self._running:
                self._check_layouts()
            if end is not SearchEnd.EXHAUSTED:
                end = self._fill_groups()
            if not self._running:
                break
            self._finish_next()  # it may bring a gain or free time, so that the search goes on after all
        self._put_back()
        if not self.fleet.stopped:
            machine_faults.raise_if_nothing_ran(self._records)
        if end is not None:
            self.emit(SearchEnded(end, self.plan.patience))

    def _fill_groups(self) -> SearchEnd | None:
        """Start trials on free groups. Returns why no more are started, or None if the next one has to wait.

        A proposal whose layout has no free group is held, and none is asked before it runs. Otherwise smaller
        layouts would take every GPU that a larger one waits for.
        """
        while not self.fleet.stopped and (self._held is not None or self._free(self.plan.groups)):
            end = search_end(self.plan, self._records, self._elapsed_s, len(self._running))
            self.store.need_room()
            if end is not SearchEnd.NO_TIME and self._examines():
                continue
            if end is not None:
                return end
            if self._held is not None and self._is_given_up(self._held):
                self._put_back()
            if self._held is None:
                try:
                    self._held = self._ask()
                except SpaceExhaustedError:
                    return SearchEnd.EXHAUSTED
            group = self._group_for(self._held)
            if group is None:
                return None
            assignment, self._held = self._assignment(self._held, group), None
            self._submit(assignment)
        return None

    def _ask(self) -> Proposal:
        proposal = self.search.ask(self._places.broken_layouts)
        for standing in proposal.dropped:
            self.emit(LayoutDropped(standing))
        for rule in proposal.newly_applied:
            self.emit(RuleApplied(rule))
        return proposal

    def _examines(self) -> bool:
        """Start the experiment that the next unexplained failure needs. False if none is due or none can start now."""
        if any(assignment.role is Role.EXPERIMENT for assignment in self._running.values()):
            return False
        for question in self._questions:
            place = set(units_at(self.plan, question.start.group))
            for known in unread.ran_before(self._records, question):
                groups = self._free(self.plan.placed(self.plan.layout_of(known.candidate)).groups)
                group = next((g for g in groups if place & set(units_at(self.plan, g.name))), None)
                if group is not None:
                    self.emit(Unexplained(question, known))
                    task = experiment_task(self.plan.load)
                    self._submit(self._fresh(Role.EXPERIMENT, known.candidate, (group,), task))
                    return True
        return False

    def _put_back(self) -> None:
        """Give a held proposal back to the search, which may answer it without a start."""
        if self._held is not None:
            self.search.requeue(self._held.number)
            self._held = None

    def _is_given_up(self, proposal: Proposal) -> bool:
        """Return True if a proposal's layout was dropped or broken since it was made."""
        layout = self.plan.layout_of(proposal.candidate)
        dropped = {standing.layout for standing in self.search.layouts if standing.is_dropped}
        return layout in self._places.broken_layouts or (layout in dropped and proposal.role is not Role.DEFAULT)

    def _group_for(self, proposal: Proposal) -> GpuGroup | None:
        """Find a free group of a proposal's layout. None if it has to wait."""
        if self._running and runs_alone(self.plan, proposal.role, proposal.candidate):
            return None
        groups = self.plan.placed(self.plan.layout_of(proposal.candidate)).groups
        return next(iter(self._free(groups)), None)

    def _free(self, groups: Iterable[GpuGroup]) -> list[GpuGroup]:
        """List the groups that a trial of the search may use now."""
        running = self._running.values()
        if any(runs_alone(self.plan, assignment.role, assignment.candidate) for assignment in running):
            return []
        busy = {unit for assignment in running for unit in assignment.units}
        return [group for group in self._places.healthy(groups) if not group.units & busy]

    def _assignment(self, proposal: Proposal, group: GpuGroup) -> Assignment:
        self._attempts[proposal.candidate.id] += 1
        # A default never races: a gain over it needs its own figure, also if its first start was interrupted.
        races = proposal.role is not Role.DEFAULT and self.plan.rechecks is None
        best = confirm.incumbent(self.plan, self._records) if races else None
        replicas = self.plan.layout_of(proposal.candidate).replicas
        return Assignment(
            trial=self.store.new_trial(),
            role=proposal.role,
            candidate=proposal.candidate,
            groups=(group,),
            task=search_task(self.plan.load, best, replicas),
            warm_up_s=self.plan.load.warm_up_s,
            search_trial=proposal.number,
            attempt=self._attempts[proposal.candidate.id],
            replicas=replicas,
        )

    def _check_layouts(self) -> None:
        """Check every layout whose default has run alone by now."""
        for placed in self.plan.layouts:
            if not self.fleet.stopped:
                self._check(placed)

    def _check(self, placed: PlacedLayout) -> None:
        """Run a layout's default on all its places at once, to compare with the default alone. Once in a study."""
        default, groups = self.plan.default_of(placed.layout), self._places.machine(placed)
        own = [r for r in self._records if r.candidate == default]
        alone = next((in_closed_loop(r) for r in own if r.role is Role.DEFAULT and r.levels), None)
        checked = any(r.role is Role.CHECK and r.outcome is not TrialOutcome.INTERRUPTED for r in own)
        if placed.layout.replicas == 1 or groups is None or alone is None or checked:
            return
        task = check_task(self.plan.load, alone)
        for group in groups:
            check = self._fresh(Role.CHECK, default, (group,), task)
            self._submit(replace(check, replicas=placed.layout.replicas))
        self._finish_running()
        together = [r for r in self._records if r.role is Role.CHECK and r.candidate == default]
        figures = [r.levels[0].measurement.qps for r in together if r.levels]
        slowest = min((qps for qps in figures if qps is not None), default=None)
        self.emit(GroupsCompared(placed.layout, alone.qps, slowest, len(together)))

    # --- confirmation

    def _confirm(self) -> None:
        """Make the confirmation runs, one after the other and alone on the machine."""
        while not self.fleet.stopped:
            due = confirm.next_to_confirm(self.plan, self._records, self._places.broken_layouts)
            if due is None or not self._in_time_to_confirm(due.found):
                return
            self._submit(self._confirming(due))
            self._finish_running()

    def _confirming(self, due: Confirmation) -> Assignment:
        """Return the assignment of a confirmation run: all servers of the layout, behind the door."""
        candidate = due.found.candidate
        groups = self._places.machine(self.plan.placed(self.plan.layout_of(candidate)))
        assert groups is not None
        runs = compared_runs(self._records, candidate, due.door)
        # Runs of winner and default share their traffic: the first of each has one, the second another. So do doors.
        task = confirm_task(self.plan.load, due, runs)
        return replace(self._fresh(Role.CONFIRM, candidate, groups, task), traffic=1 + len(runs), door=due.door)

    def _in_time_to_confirm(self, found: TrialRecord) -> bool:
        """Return True if time is left for a run. The first run of each candidate is made even without."""
        budget = self.plan.time_budget_s
        if budget is None or self._elapsed_s + forecast.confirmation_s(self.plan, self._records) <= budget:
            return True
        confirmed = (r for r in self._records if r.role is Role.CONFIRM and r.counts)
        return all(r.candidate != found.candidate for r in confirmed)

    # --- trials

    @property
    def _elapsed_s(self) -> float:
        return self._spent_before_s + (self.clock.now_ns() - self._began_ns) / 1e9

    def _fresh(self, role: Role, candidate: Candidate, groups: tuple[GpuGroup, ...], task: Task) -> Assignment:
        """Return an assignment that answers no proposal, on traffic that the search has not seen."""
        return Assignment(
            trial=self.store.new_trial(),
            role=role,
            candidate=candidate,
            groups=groups,
            task=task,
            warm_up_s=self.plan.load.warm_up_s,
            search_trial=None,
            traffic=1,
        )

    def _submit(self, assignment: Assignment) -> None:
        counted = sum(r.counts and r.role.measures for r in self._records) + len(self._running)
        number = counted + 1 if assignment.role.measures else 1
        planned = max(number, self.plan.starts + self.plan.confirm_starts)
        made, trial, place = assignment, assignment.trial, assignment.place
        self.emit(TrialStarted(trial, made.role, made.candidate, place, number, planned, made.door, made.replicas))
        self._running[self.fleet.submit(assignment)] = assignment

    def _finish_running(self) -> None:
        while self._running:
            self._finish_next()

    def _finish_next(self) -> None:
        """Wait for the next record, and take in every one that is there."""
        for future in wait(self._running, return_when=FIRST_COMPLETED).done:
            assignment = self._running.pop(future)
            self._take_in(assignment, future.result())
        self._pause_after_faults()

    def _take_in(self, assignment: Assignment, record: TrialRecord) -> None:
        best = max((r.qps for r in self._records if r.qps is not None and r.role.searches), default=0.0)
        before = {r.trial: r.outcome for r in self._records}
        self._records = list(unread.settled(self.plan, (*self._records, record)))
        if record.search_trial is None:
            self.search.observe(record)
        decided = self._answer_all(record, before)
        is_best = record.role.searches and record.qps is not None and record.qps > best
        for event in (TrialFinished(record, is_best=is_best), *decided):
            self.emit(event)
        self._save(self._result(complete=False))
        self._quarantine(assignment, record)
        machine_faults.raise_if_nothing_starts(self.plan, self.store, self._records, record)

    def _answer_all(self, record: TrialRecord, before: Mapping[int, TrialOutcome]) -> list[Event]:
        """Answer the new record's proposal and those of open questions that it decides. Returns what to say."""
        decided = [r for r in self._records if r.outcome is not before.get(r.trial, record.outcome)]
        said: list[Event] = [Explained(r, unread.started_since(self.plan, self._records, r)) for r in decided]
        for known in self._records:
            if known.search_trial is not None and (known in decided or known.trial == record.trial):
                self._answer(known)
        if record in self._questions and not unread.ran_before(self._records, record):
            said.append(Unexplained(record, None))
        return said

    def _answer(self, record: TrialRecord) -> None:
        """Give the search its answer, or queue the candidate for another start. An open question gets none yet."""
        assert record.search_trial is not None
        if record.counts or machine_faults.is_given_up(self.plan, self._records, record):
            self.search.tell(record)
        elif record not in self._questions:
            self.search.requeue(record.search_trial)

    @property
    def _questions(self) -> list[TrialRecord]:
        return unread.questions(self._records)

    def _quarantine(self, assignment: Assignment, record: TrialRecord) -> None:
        """Use the trial's GPUs no more if its server left something there."""
        left = record.start.dirty
        if left is None:
            return
        self._places.quarantine(assignment.units)
        self.emit(GroupQuarantined(assignment.place, record.trial, left))
        if self._places.all_layouts_are_broken:
            usable = bool(self._places.healthy(self.plan.groups))
            what = "no layout is whole" if usable else "no GPU group is usable"
            raise EnvironmentFaultError(
                f"{what} any more: trial {record.trial:04d} left {left}",
                hint=f"end what holds it, or reset it (nvidia-smi says what), then: {self.store.resume_command}",
            )

    def _pause_after_faults(self) -> None:
        """Wait before the next start if the last ones all failed through the machine."""
        pause_s = machine_faults.next_pause_s(self._records, self._pauses, self._elapsed_s, self.plan.time_budget_s)
        if pause_s is None or self.fleet.stopped:
            self._pauses = self._pauses if machine_faults.faults_in_a_row(self._records) else 0
            return
        self._pauses += 1
        self.emit(Paused(machine_faults.faults_in_a_row(self._records)[0].start.cause, pause_s))
        until_ns = self.clock.now_ns() + round(pause_s * 1e9)
        while self.clock.now_ns() < until_ns and not self.fleet.stopped:
            self.clock.sleep(0.5)

    # --- result

    def _result(self, *, complete: bool) -> StudyResult:
        return result_of(
            self.plan,
            self._records,
            broken=self._places.broken_layouts,
            learnt=self.search.learnt,
            layouts=self.search.layouts,
            elapsed_s=self._elapsed_s,
            updated_at=self.clock.wall().isoformat(timespec="seconds"),
            complete=complete,
        )

    def _save(self, result: StudyResult) -> None:
        self.store.save_result(result)
        self.on_result(result)
