"""Budget, workers, stop rule, confirmation; emits events."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

from tuner import formatting
from tuner.bench.task import Task
from tuner.candidate import Candidate
from tuner.clock import Clock
from tuner.errors import EnvironmentFaultError
from tuner.measurement import LoadKind, Measurement
from tuner.placement import GpuGroup
from tuner.study import confirm, forecast
from tuner.study.assignment import Assignment, check_task, confirm_task, search_task
from tuner.study.conclusion import conclude
from tuner.study.events import Event, Notice, StudyFinished, TrialFinished, TrialStarted
from tuner.study.plan import Ladder, StudyPlan
from tuner.study.plateau import RISE, starts_without_rise
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import Decision, StudyResult
from tuner.study.search import Proposal, Search, SpaceExhaustedError
from tuner.study.sentence import disturbance, sentence
from tuner.study.store import Store

ATTEMPTS = 3
"""A candidate whose start failed through no fault of its own is started this often in all."""

FAULTS_IN_A_ROW = 3
"""As many starts that the machine spoilt, one after the other, end the night: the rest would fare no better."""


LEAST_DISK_BYTES = 2**30
"""Less free disk than this, and a log or a compile cache may fill it in the middle of a trial."""


@dataclass
class Loop:
    """Runs a study to its end. `run_trial` turns an assignment into a record and never raises for a failed trial.

    `stop` is set by a signal handler: the running servers end, what finished is kept, and the best so far is written.
    """

    plan: StudyPlan
    store: Store
    search: Search
    run_trial: Callable[[Assignment], TrialRecord]
    emit: Callable[[Event], None]
    clock: Clock
    stop: threading.Event
    on_result: Callable[[StudyResult], None] = lambda result: None
    _records: list[TrialRecord] = field(default_factory=list)
    _attempts: dict[str, int] = field(default_factory=dict)
    _dirty_groups: set[str] = field(default_factory=set)
    _began_ns: int = 0
    _spent_before_s: float = 0.0

    def run(self) -> StudyResult:
        self._records = list(self.store.records())
        self._spent_before_s = forecast.spent_s(self.plan, self._records)
        self._began_ns = self.clock.now_ns()
        self.search.restore(self._records)
        with ThreadPoolExecutor(len(self.plan.groups)) as pool:
            try:
                self._search_phase(pool)
                self._confirm_phase(pool)
            except BaseException:
                self.stop.set()  # servers on other groups end too, before the pool is waited for
                raise
        result = self._result(complete=not self.stop.is_set())
        self._save(result)
        self.emit(StudyFinished(result))
        return result

    # --- searching

    def _search_phase(self, pool: ThreadPoolExecutor) -> None:
        busy: dict[Future[TrialRecord], GpuGroup] = {}
        exhausted = False
        while True:
            if len(self.plan.groups) > 1 and not busy:
                self._check_groups(pool)
            # The default comes first and alone: the check of the groups is compared with it.
            side_by_side = len(self._healthy_groups) if self._records else 1
            while len(busy) < side_by_side and not exhausted and self._another_start(len(busy)):
                try:
                    proposal = self.search.ask()
                except SpaceExhaustedError:
                    self.emit(Notice("every candidate of this space was started: the search ends early"))
                    exhausted = True
                    break
                for rule in proposal.first_spared:
                    self.emit(Notice(f"not started any more: {rule}"))
                group = next(g for g in self._healthy_groups if g not in busy.values())
                busy[pool.submit(self._one, proposal, group, self._searched + len(busy) + 1)] = group
            if not busy:
                return
            for future in wait(busy, return_when=FIRST_COMPLETED).done:
                busy.pop(future)
                self._finished(future.result())

    @property
    def _healthy_groups(self) -> list[GpuGroup]:
        return [group for group in self.plan.groups if group.name not in self._dirty_groups]

    def _check_groups(self, pool: ThreadPoolExecutor) -> None:
        """The default on all groups at once, against the default alone: whether, and by how much, they disturb."""
        alone = next((_in_closed_loop(r) for r in self._records if r.role is Role.DEFAULT and r.levels), None)
        if alone is None or any(r.role is Role.CHECK for r in self._records):
            return
        task = check_task(self.plan.load, alone)
        together = [pool.submit(self._start, self._fresh(Role.CHECK, self.plan.baseline, g, task), 1)
                    for g in self._healthy_groups]  # fmt: skip
        for future in together:
            self._finished(future.result())
        self.emit(Notice(disturbance(alone, [f.result() for f in together])))

    @property
    def _searched(self) -> int:
        """Starts that count against the plan: interrupted ones and those the machine spoilt are done again."""
        return sum(r.search_trial is not None and r.counts for r in self._records)

    def _another_start(self, in_flight: int) -> bool:
        if self.stop.is_set() or self._searched + in_flight >= self.plan.starts:
            return False
        patience = self.plan.patience
        if patience is not None and starts_without_rise(self._records) >= patience:
            if not in_flight:  # one in flight may still bring the rise, and the search goes on
                self.emit(Notice(f"the search ends here: {patience} starts without {formatting.share(RISE)} more QPS"))
            return False
        self._need_room_on_disk()
        budget = self.plan.time_budget_s
        if budget is None:
            return True
        # At most half for the claims, or a short budget would search nothing that could be claimed.
        claims_s = min(forecast.confirmation_s(self.plan, self._records) * self.plan.confirm_starts, budget / 2)
        needed_s = forecast.search_trial_s(self.plan, self._records) + claims_s
        in_time = self._elapsed_s + needed_s <= budget or not self._records
        if not in_time and not in_flight:
            self.emit(Notice("the search ends here: what is left of --time-budget is for confirming starts"))
        return in_time

    @property
    def _elapsed_s(self) -> float:
        return self._spent_before_s + (self.clock.now_ns() - self._began_ns) / 1e9

    def _need_room_on_disk(self) -> None:
        free = shutil.disk_usage(self.store.folder).free
        if free < LEAST_DISK_BYTES:
            raise EnvironmentFaultError(
                f"the disk of {self.store.folder} is nearly full: {formatting.gib(free / 2**30)} left",
                hint=f"free at least {formatting.gib(LEAST_DISK_BYTES / 2**30)}, then: tuner resume {self.plan.study}",
            )

    def _one(self, proposal: Proposal, group: GpuGroup, start: int) -> TrialRecord:
        attempt = self._attempts.get(proposal.candidate.id, 0) + 1
        self._attempts[proposal.candidate.id] = attempt
        load = self.plan.load
        # The default is never raced: a gain over it needs its own figure, also where its first start was interrupted.
        best = None if proposal.role is Role.DEFAULT else confirm.incumbent(self._records)
        assignment = Assignment(
            trial=self.store.new_trial(), role=proposal.role, candidate=proposal.candidate, group=group,
            task=search_task(load, best), warm_up_s=load.warm_up_s, search_trial=proposal.number, attempt=attempt,
        )  # fmt: skip
        return self._start(assignment, start)

    def _fresh(self, role: Role, candidate: Candidate, group: GpuGroup, task: Task, traffic: int = 1) -> Assignment:
        """A start that answers no proposal, on traffic that the search has not seen."""
        return Assignment(
            trial=self.store.new_trial(), role=role, candidate=candidate, group=group, task=task,
            warm_up_s=self.plan.load.warm_up_s, search_trial=None, traffic=traffic,
        )  # fmt: skip

    def _start(self, assignment: Assignment, start: int) -> TrialRecord:
        """Runs in a worker thread: the record is on disk before the group is given another server."""
        self.store.save_assignment(assignment)
        planned = self.plan.starts + self.plan.confirm_starts
        self.emit(
            TrialStarted(assignment.trial, assignment.role, assignment.candidate, assignment.group.name, start, planned)
        )
        record = self.run_trial(assignment)
        self.store.save_record(record)
        return record

    def _finished(self, record: TrialRecord) -> None:
        best = max((r.qps for r in self._records if r.qps is not None), default=0.0)
        self._records.append(record)
        if record.search_trial is not None:
            if record.counts or record.attempt >= ATTEMPTS:
                self.search.tell(record)
            else:
                self.search.again(record.search_trial)
        self.emit(TrialFinished(record, is_best=record.qps is not None and record.qps > best))
        self._save(self._result(complete=False))
        self._quarantine(record)
        self._give_up_on_a_broken_machine(record)

    def _quarantine(self, record: TrialRecord) -> None:
        if record.start.dirty is None:
            return
        self._dirty_groups.add(record.start.group)
        self.emit(Notice(f"QUARANTINED {record.start.group}: trial {record.trial:04d} left {record.start.dirty}"))
        if not self._healthy_groups:
            raise EnvironmentFaultError(
                f"no GPU group is usable any more: {record.start.dirty} of trial {record.trial:04d} did not go away",
                hint=f"end what holds it (nvidia-smi names the processes), then: tuner resume {self.plan.study}",
            )

    def _give_up_on_a_broken_machine(self, record: TrialRecord) -> None:
        last = [r for r in self._records if r.outcome is not TrialOutcome.INTERRUPTED][-FAULTS_IN_A_ROW:]
        in_a_row = len(last) == FAULTS_IN_A_ROW and all(r.outcome is TrialOutcome.INFRASTRUCTURE for r in last)
        spent = record.outcome is TrialOutcome.INFRASTRUCTURE and record.attempt >= ATTEMPTS
        if in_a_row or spent:
            cause = record.start.cause
            raise EnvironmentFaultError(
                f"{FAULTS_IN_A_ROW} starts failed through no fault of the candidate: "
                f"{cause.explanation if cause else 'unknown cause'}",
                hint=cause.hint if cause else f"read {self.store.folder}/trials/{record.trial:04d}/server.log",
            )

    # --- confirming

    def _confirm_phase(self, pool: ThreadPoolExecutor) -> None:
        """Winner and default in turn, W D D W, alone on the machine: at the level that won, twice as long; in an open
        loop a claim each, from the estimate down, on arrivals that the two share and no other start has."""
        while not self.stop.is_set():
            todo = self._next_to_confirm()
            if todo is None or not self._time_to_confirm(todo[0]):
                return
            record = pool.submit(self._start, self._confirmation(*todo), self._done + 1).result()
            self._finished(record)

    def _time_to_confirm(self, candidate: Candidate) -> bool:
        """Past the budget one start each of winner and default is still made: nothing can be said without them."""
        budget = self.plan.time_budget_s
        if budget is None or self._elapsed_s + forecast.confirmation_s(self.plan, self._records) <= budget:
            return True
        return not any(r.candidate == candidate for r in self._records if r.role is Role.CONFIRM and r.counts)

    @property
    def _done(self) -> int:
        return sum(r.counts for r in self._records)

    def _next_to_confirm(self) -> tuple[Candidate, TrialRecord] | None:
        """A candidate, and the start of the search that found what it can do; None where nothing is to be done."""
        confirmed = sum(r.role is Role.CONFIRM and r.counts for r in self._records)
        ranked = confirm.finalists(self._records)
        if confirmed >= self.plan.confirm_starts or not ranked:
            return None
        winner, default = ranked[0], self.plan.baseline
        searched = (r for r in self._records if r.role.searches)
        default_trial = next((r for r in searched if r.candidate == default and r.qps is not None), None)
        winner_runs = len(confirm.fresh_runs(self._records, winner.candidate))
        default_runs = len(confirm.fresh_runs(self._records, default))
        wanted = max(1, self.plan.confirm_starts // 2)
        if winner.candidate == default:  # nothing beats it, and its figure is to be trusted all the same
            return (default, winner) if default_runs < wanted else None
        default_wanted = wanted if default_trial is not None else 0
        if winner_runs < wanted and (winner_runs <= default_runs // 2 or default_runs >= default_wanted):
            return winner.candidate, winner
        if default_runs < default_wanted and default_trial is not None:
            return default, default_trial
        return None

    def _confirmation(self, candidate: Candidate, found: TrialRecord) -> Assignment:
        runs = confirm.fresh_runs(self._records, candidate)
        task = confirm_task(self.plan.load, found, runs)
        traffic = 1 if isinstance(self.plan.load, Ladder) else 1 + len(runs)
        return self._fresh(Role.CONFIRM, candidate, self._healthy_groups[0], task, traffic)

    # --- result

    def _result(self, *, complete: bool) -> StudyResult:
        records = self._records
        winner, default = confirm.compared(records, self.plan.baseline, self.plan.load.kind)
        decision = confirm.decide(winner, default)
        refused = sum(r.outcome in (TrialOutcome.REFUSED, TrialOutcome.DIED) for r in records)
        result = StudyResult(
            study=self.plan.study,
            decision=decision,
            winner=default if decision is Decision.KEEP_DEFAULT else winner,
            default=default,
            default_seen=confirm.seen(records, self.plan.baseline),
            starts=len(records),
            refused=refused,
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
    """The level that the check of the groups repeats: the one that counts, or what saturated the server."""
    closed = [level.measurement for level in record.levels if level.measurement.load.kind is LoadKind.CLOSED]
    return record.best_level if record.best_level in closed else next(iter(closed), None)
