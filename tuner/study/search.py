"""The adapter to Optuna: ask(), tell(record). optuna-dashboard shows vLLM's own flag names."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import optuna
from optuna.trial import Trial, TrialState

from tuner.candidate import Candidate, Value
from tuner.layout import Layout
from tuner.space.axis import ParameterAxis
from tuner.study import rebuild
from tuner.study.feedback import CONSTRAINTS, Feedback, feedback_for, not_started
from tuner.study.layout_race import standing
from tuner.study.learnt import FlagLimit, LearntRule, bounds, known_rules
from tuner.study.optuna_storage import Patience, TrialAttributes, open_study, reopened, storage_errors
from tuner.study.proposer import Numbers, Proposer
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import LayoutStanding
from tuner.study.samplers import RecordsSampler, distribution, suggest
from tuner.study.seeds import order_of_layouts
from tuner.study.setting import StudySetting

SEEDS = (Role.SEED, Role.EARLIER)
"""Roles of first candidates."""

SEEDS_SHARE = 0.5
"""Share of the starts that seeds of layouts other than the leading one may reach. The rest is the model's."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """Candidate to start next. `number` is Optuna's trial number; `newly_applied` are rules used for the first time,
    `dropped` layouts that cannot win any more."""

    number: int
    role: Role
    candidate: Candidate
    newly_applied: tuple[LearntRule, ...] = ()
    dropped: tuple[LayoutStanding, ...] = ()


class Search:
    """One Optuna study. Not thread-safe: one coordinator asks and tells, however many servers it keeps busy."""

    def __init__(self, setting: StudySetting, seeds: Iterable[Candidate], patience: Patience | None = None) -> None:
        plan = setting.plan
        self._plan = plan
        self._setting = setting
        self._records: dict[int, TrialRecord] = {}
        self._rules: tuple[LearntRule, ...] = ()
        self._saved: Counter[str] = Counter()
        self._axes = tuple(ParameterAxis(parameter) for parameter in plan.parameters)
        self._known: dict[str, Feedback | None] = {}
        self._measured: list[tuple[tuple[float, ...], Feedback]] = []
        self._asked: dict[int, tuple[Trial, Candidate]] = {}
        self._others: list[TrialRecord] = []
        self._layouts = standing(plan, ())
        self._announced: set[Layout] = set()
        self._seeds: dict[Layout, list[Candidate]] = {}
        self._earlier = {found.candidate for found in (plan.begins_with.candidates if plan.begins_with else ())}
        for candidate in seeds:
            self._seeds.setdefault(plan.layout_of(candidate), []).append(candidate)
        self._patience = patience
        self._proposer = Proposer(setting, self._axes)
        self._sampler = RecordsSampler({a.parameter.flag: distribution(a) for a in self._axes}, self._propose)
        self._live: frozenset[Layout] = frozenset()
        self._applied: list[LearntRule] = []
        self._open()

    def _open(self) -> None:
        self._study = open_study(self._plan, self._patience)
        self._study.sampler = self._sampler

    @storage_errors()
    def restore(self, records: Iterable[TrialRecord], undecided: Collection[int] = ()) -> None:
        """Resume a study from its finished and interrupted trials. The answers of `undecided` proposals are to come.
        Where Optuna's storage and the records differ, the records are right."""
        records = tuple(sorted(records, key=lambda r: r.trial))
        by_number = {r.search_trial: r for r in records if r.search_trial is not None}
        self._rebuild(records, by_number, undecided)
        self._others = [r for r in records if r.search_trial is None]
        self._records = {r.trial: r for r in by_number.values()}
        for frozen in self._study.get_trials(deepcopy=False):
            attributes = TrialAttributes.read(frozen.user_attrs)
            record = by_number.get(frozen.number)
            if frozen.state is TrialState.RUNNING:
                trial = reopened(self._study, frozen)
                self._asked[frozen.number] = (trial, self._candidate(trial))
                if record is not None and record.counts:
                    self.tell(record)
                elif frozen.number not in undecided:
                    self.requeue(frozen.number)
            elif record is not None:
                self._remember(self._axis_point(frozen.params), record)
            elif attributes.ruled_out is not None and frozen.state is TrialState.COMPLETE:
                assert frozen.value is not None
                self._saved[attributes.ruled_out] += 1
                start, slo, preemption = (frozen.constraints[name] for name in CONSTRAINTS)
                candidate = Candidate.of(attributes.flags or {})
                self._known[candidate.id] = Feedback(frozen.value, (start, slo, preemption), imputed=True)
        self._learn()
        self._announced = {s.layout for s in self._layouts if s.is_dropped}
        for frozen in rebuild.lost(self._study, records):
            self._queue_again(TrialAttributes.read(frozen.user_attrs), frozen.params)

    def _rebuild(
        self, records: Sequence[TrialRecord], by_number: Mapping[int, TrialRecord], undecided: Collection[int]
    ) -> None:
        """Add what the records have and Optuna's storage lacks: its file was lost, or is an older copy."""
        if rebuild.contradicts(self._study, by_number):
            optuna.delete_study(study_name=self._study.study_name, storage=self._study._storage)
            self._open()
        rebuilder = rebuild.Rebuilder(
            {a.parameter.flag: distribution(a) for a in self._axes},
            lambda record: self._numbers(record.candidate),
            lambda record: self._remember(self._axis_point(self._numbers(record.candidate)), record),
        )
        if rebuilder.add_missing(self._study, by_number, undecided):
            for record in rebuild.unanswered(records, undecided):
                attributes = TrialAttributes(role=record.role, flags=dict(record.candidate.values))
                self._queue_again(attributes, self._numbers(record.candidate))
            self._enqueue_first({r.candidate.id for r in records})
        self._known.clear()
        self._measured.clear()

    @storage_errors()
    def ask(self, broken: frozenset[Layout] = frozenset()) -> Proposal:
        """Choose the next candidate: untried, allowed by the rules, of a layout that can still win. `broken` layouts
        cannot run at the moment. Raises SpaceExhaustedError if the sampler finds no other."""
        if not self._study.trials:
            self._enqueue_first()
        newly_applied: list[LearntRule] = []
        self._live = live = self._live_layouts(broken)
        self._applied, obeys = [], True
        while True:
            if (seed := self._next_seed(live)) is not None:
                self._enqueue(seed, Role.SEED)
            trial = self._study.ask()
            candidate = self._candidate(trial)
            if self._sampler.found_nothing:
                self._tell(trial, None)
                if not self._applied:
                    raise SpaceExhaustedError
                # If all that is left is ruled out, the rules are put to the test: a refused start costs little.
                self._applied, obeys = [], False
                continue
            attributes = TrialAttributes.read(trial.user_attrs)
            role = attributes.purpose
            if self._is_tried(candidate) and not attributes.again:
                self._tell(trial, self._known.get(candidate.id))
                continue
            layout = self._plan.layout_of(candidate)
            if layout in broken:
                self._tell(trial, None)
                continue
            if role is not Role.DEFAULT and layout not in live:
                self._skip(trial, role, candidate, _dropped_text(layout))
                continue
            rule = None if not obeys or role is Role.DEFAULT else self._rule_violated_by(candidate)
            if rule is not None:
                if not self._saved[str(rule)]:
                    newly_applied.append(rule)
                self._applied.append(rule)
                self._skip(trial, role, candidate, str(rule))
                if role in SEEDS:
                    self._clip_seed_to_bounds(candidate)
                continue
            self._asked[trial.number] = (trial, candidate)
            TrialAttributes(role=role, flags=dict(candidate.values)).write(trial)
            return Proposal(trial.number, role, candidate, tuple(newly_applied), self._newly_dropped())

    def _propose(self, number: int) -> Numbers | None:
        """Ask the model. Candidates of rules that this ask() has met are left out, as are those of dropped layouts."""

        def allowed(candidate: Candidate) -> bool:
            if self._is_tried(candidate) or self._plan.layout_of(candidate) not in self._live:
                return False
            values = self._setting.values(candidate) if self._applied else {}
            return not any(rule.rules_out(values) for rule in self._applied)

        running = [candidate for _, candidate in self._asked.values()]
        return self._proposer.propose(self._all_records, running, allowed, self._plan.seed + number)

    @storage_errors()
    def tell(self, record: TrialRecord) -> None:
        """Take in the finished trial of a proposal."""
        assert record.search_trial is not None
        trial, _ = self._asked.pop(record.search_trial)
        answer = self._remember(self._axis_point(trial.params), record)
        TrialAttributes(outcome=record.outcome, trial=record.trial).write(trial)
        self._tell(trial, answer)
        self._records[record.trial] = record
        self._learn()
        if record.role in SEEDS and record.outcome is TrialOutcome.REFUSED:
            self._clip_seed_to_bounds(record.candidate)

    @storage_errors()
    def requeue(self, number: int) -> None:
        """Queue an unanswered proposal for another start. It was interrupted, or the machine was at fault."""
        trial, _ = self._asked.pop(number)
        self._queue_again(TrialAttributes.read(trial.user_attrs), trial.params)
        self._study.tell(trial, state=TrialState.FAIL)

    def _queue_again(self, asked: TrialAttributes, params: dict[str, float]) -> None:
        flags = asked.flags if asked.purpose is Role.DEFAULT else None
        attributes = TrialAttributes(role=asked.purpose, flags=flags, again=True)
        self._study.enqueue_trial(params, user_attrs=attributes.written)

    def observe(self, record: TrialRecord) -> None:
        """Take in a finished trial that answers no proposal. It may change a layout's standing."""
        self._others.append(record)
        self._learn()

    @property
    def layouts(self) -> tuple[LayoutStanding, ...]:
        """Standing of each layout, with its number of saved starts."""
        return tuple(replace(s, saved=self._saved[_dropped_text(s.layout)]) for s in self._layouts)

    @property
    def learnt(self) -> tuple[LearntRule, ...]:
        """Rules so far, each with its number of saved starts."""
        return tuple(replace(rule, saved=self._saved[str(rule)]) for rule in self._rules)

    def _learn(self) -> None:
        self._rules = known_rules(self._setting, self._records.values())
        self._layouts = standing(self._plan, self._all_records)
        self._announced &= {s.layout for s in self._layouts if s.is_dropped}

    @property
    def _all_records(self) -> list[TrialRecord]:
        return sorted((*self._records.values(), *self._others), key=lambda r: r.trial)

    def _newly_dropped(self) -> tuple[LayoutStanding, ...]:
        """Return the dropped layouts that no proposal has told yet, and note them as told."""
        found = tuple(s for s in self._layouts if s.is_dropped and s.layout not in self._announced)
        self._announced |= {s.layout for s in found}
        return found

    def _live_layouts(self, broken: frozenset[Layout]) -> frozenset[Layout]:
        """Return the layouts that are neither dropped nor broken."""
        dropped = {s.layout for s in self._layouts if s.is_dropped}
        return frozenset(p.layout for p in self._plan.layouts) - dropped - broken

    def _enqueue_first(self, started: Collection[str] = ()) -> None:
        """Queue the default and the seeds. Of several layouts, it is the default and the first seed of each. The ids
        of those that were `started` are left out."""
        plan = self._plan
        first = [(plan.baseline, Role.DEFAULT)]
        for layout in order_of_layouts(plan):
            if plan.default_of(layout) != plan.baseline:
                first.append((plan.default_of(layout), Role.DEFAULT))
            mine = self._seeds.get(layout, [])
            first += [(seed, Role.SEED) for seed in (mine[:1] if plan.searches_layouts else mine)]
        for candidate, role in first:
            if candidate.id not in started:
                self._enqueue(candidate, role)

    def _next_seed(self, live: frozenset[Layout]) -> Candidate | None:
        """Choose the next seed of several layouts, once their first ones are asked: the best layout's first. None if
        the queue is not empty, or what is left of the starts belongs to the model."""
        if not self._plan.searches_layouts or self._queue_waits:
            return None
        ranked = sorted((s for s in self._layouts if s.layout in live), key=lambda s: -(s.best_qps or 0.0))
        for place, mine in enumerate(ranked):
            left = [c for c in self._seeds.get(mine.layout, ()) if not self._is_tried(c)]
            after = len(self._records) + len(self._asked) + len(left)
            if left and (place == 0 or after <= SEEDS_SHARE * self._plan.starts):
                return left[0]
        return None

    def _is_tried(self, candidate: Candidate) -> bool:
        """Return True if a candidate was answered, or is being measured."""
        return candidate.id in self._known or any(c == candidate for _, c in self._asked.values())

    @property
    def _queue_waits(self) -> bool:
        """Return True if a candidate is queued that was not asked for yet."""
        return any(t.state is TrialState.WAITING for t in self._study.get_trials(deepcopy=False))

    def _rule_violated_by(self, candidate: Candidate) -> LearntRule | None:
        values = self._setting.values(candidate)
        return next((r for r in self._rules if r.withdrawn_by is None and r.rules_out(values)), None)

    def _skip(self, trial: Trial, role: Role, candidate: Candidate, why: str) -> None:
        """Answer a proposal as refused, without a start."""
        self._saved[why] += 1
        answer = not_started(self._nearest(self._axis_point(trial.params)))
        self._known[candidate.id] = answer
        TrialAttributes(role=role, flags=dict(candidate.values), ruled_out=why).write(trial)
        self._tell(trial, answer)

    def _clip_seed_to_bounds(self, seed: Candidate) -> None:
        """Queue a seed again at the bound of vLLM's message."""
        beyond = {limit.flag: limit for limit in bounds(self._rules, self._setting.values(seed))}
        numeric = (a for a in self._axes if a.parameter.flag in beyond and not a.parameter.choices)
        moved = {a.parameter.flag: _within(a, beyond[a.parameter.flag]) for a in numeric}
        candidate = self._setting.candidate({**seed.as_dict(), **moved})
        if candidate.id not in self._known and self._rule_violated_by(candidate) is None:
            self._enqueue(candidate, Role.SEED)

    def _enqueue(self, candidate: Candidate, role: Role) -> None:
        if role is Role.SEED and candidate in self._earlier:
            role = Role.EARLIER
        flags = dict(candidate.values) if role is Role.DEFAULT else None
        attributes = TrialAttributes(role=role, flags=flags)
        self._study.enqueue_trial(self._numbers(candidate), user_attrs=attributes.written)

    def _numbers(self, candidate: Candidate) -> dict[str, float]:
        """Return a candidate's place on each axis."""
        values = self._setting.values(candidate)
        return {a.parameter.flag: a.number(values.get(a.parameter.flag)) for a in self._axes}

    def _candidate(self, trial: Trial) -> Candidate:
        values = {a.parameter.flag: a.parameter.decode(suggest(trial, a)) for a in self._axes}
        attributes = TrialAttributes.read(trial.user_attrs)
        if attributes.purpose is Role.DEFAULT:
            return self._plan.baseline if attributes.flags is None else Candidate.of(attributes.flags)
        return self._setting.candidate(values)

    def _axis_point(self, params: dict[str, float]) -> tuple[float, ...]:
        return tuple(a.share(float(params[a.parameter.flag])) for a in self._axes)

    def _remember(self, point: tuple[float, ...], record: TrialRecord) -> Feedback | None:
        answer = feedback_for(record, self._nearest(point))
        if answer is not None:
            self._known[record.candidate.id] = answer
            if not answer.imputed:
                self._measured.append((point, answer))
        return answer

    def _nearest(self, point: tuple[float, ...]) -> Feedback | None:
        return min(self._measured, key=lambda m: math.dist(m[0], point), default=(point, None))[1]

    def _tell(self, trial: Trial, answer: Feedback | None) -> None:
        if answer is None:
            self._study.tell(trial, state=TrialState.FAIL)
            return
        TrialAttributes(imputed=answer.imputed).write(trial)
        for name, value in zip(CONSTRAINTS, answer.constraints, strict=True):
            trial.set_constraint(name, value)
        self._study.tell(trial, answer.value)


class SpaceExhaustedError(Exception):
    """End of a small space without untried candidates."""


def _dropped_text(layout: Layout) -> str:
    """Name a dropped layout as the reason of a candidate that was not started."""
    return f"layout {layout}"


def _within(axis: ParameterAxis, limit: FlagLimit) -> Value:
    """Return the nearest value within a limit."""
    values = list(axis.inwards(limit.value, -1 if limit.relation == ">" else 1))
    return next((value for value in values if not limit.holds(value)), values[0])
