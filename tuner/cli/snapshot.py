"""State of a study at one moment, for screen and status."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tuner.candidate import Candidate
from tuner.cli.folders import State
from tuner.launch import Door
from tuner.measurement import Measurement
from tuner.study import confirm, forecast
from tuner.study.plan import StudyPlan
from tuner.study.record import Role, TrialRecord
from tuner.study.result import Figures, Lack, StudyResult
from tuner.study.units import machine_units, units_at

LAST = 5
"""Number of outcomes that are shown."""


@dataclass(frozen=True, slots=True)
class LevelNow:
    """Last level of a running trial."""

    load: str
    qps: float | None
    p99_ttft_ms: float | None
    kv_usage_peak: float | None

    @classmethod
    def of(cls, m: Measurement) -> LevelNow:
        return cls(str(m.load), m.qps, m.ttft_ms.p99 if m.ttft_ms else None, m.server.kv_usage_peak)


@dataclass(frozen=True, slots=True)
class GroupNow:
    """State of the place of a trial, or of a GPU or worker between two trials: then `trial` is None. `role` and
    `candidate` are None if unknown. Each server stands for `replicas` of the machine. `trial_s`, `load_s` and
    `attempt_s` are those of forecast.Running."""

    group: str
    trial: int | None = None
    role: Role | None = None
    candidate: Candidate | None = None
    phase: str = "idle"
    phase_s: float | None = None
    level: LevelNow | None = None
    door: Door = Door.SERVER
    replicas: int = 1
    trial_s: float | None = None
    load_s: float | None = None
    attempt_s: float = 0.0

    @property
    def running(self) -> forecast.Running | None:
        """Return what the forecast takes of it. None without a trial, or if too little is known of it."""
        if self.role is None or self.candidate is None or self.trial_s is None:
            return None
        return forecast.Running(self.role, self.candidate, self.group, self.trial_s, self.load_s, self.attempt_s)


def whole_machine(plan: StudyPlan, taken: Iterable[GroupNow]) -> tuple[GroupNow, ...]:
    """Return the places that are taken and the units that are not, in the order of the units."""
    order = {unit: index for index, unit in enumerate(machine_units(plan))}
    units = {now: units_at(plan, now.group) for now in taken}
    held = {unit for of_place in units.values() for unit in of_place}
    idle = {GroupNow(unit): (unit,) for unit in order if unit not in held}
    rows = {**units, **idle}
    return tuple(sorted(rows, key=lambda now: min(order.get(unit, len(order)) for unit in rows[now])))


@dataclass(frozen=True, slots=True)
class Picture:
    """Study at one moment. `vllm_version` is None if it was not recorded."""

    plan: StudyPlan
    vllm_version: str | None
    state: State
    records: tuple[TrialRecord, ...]
    groups: tuple[GroupNow, ...]
    elapsed_s: float
    result: StudyResult | None = None

    @property
    def planned(self) -> int:
        """Return the planned starts. Fewer are needed if nothing beats the default or time is up."""
        return self.plan.starts + self.plan.confirm_starts

    @property
    def done(self) -> int:
        return sum(r.counts and r.role.measures for r in self.records)

    @property
    def best(self) -> Figures | None:
        """Return the leading candidate's figures, from fresh starts if it has any; at the end the decision's. Either
        may be the default itself."""
        if self.state is State.COMPLETE and self.result is not None:
            return self.result.winner
        ranked = confirm.finalists(self.plan, self.records)
        return confirm.figures(self.plan, self.records, ranked[0].candidate) if ranked else None

    @property
    def default(self) -> Figures | None:
        """Return the default's figures within the limits, else as it was seen."""
        return self._kept_default or confirm.seen(self.records, self.plan.baseline)

    @property
    def default_lack(self) -> Lack | None:
        """Return why the default has no figures that count. None if it has, or if none of its starts is over."""
        return None if self.default_keeps else confirm.lack(self.records, self.plan.baseline)

    @property
    def default_keeps(self) -> bool:
        return self._kept_default is not None

    @property
    def _kept_default(self) -> Figures | None:
        return confirm.figures(self.plan, self.records, self.plan.baseline)

    @property
    def last(self) -> tuple[TrialRecord, ...]:
        """List the last outcomes, newest first."""
        return tuple(sorted(self.records, key=lambda r: r.trial, reverse=True)[:LAST])

    @property
    def left_s(self) -> float | None:
        """Return the seconds until the plan is done at this pace, or time is up. None if nothing runs."""
        if self.state is not State.RUNNING:
            return None
        running = [now for group in self.groups if (now := group.running) is not None]
        by_pace_s = forecast.left_s(self.plan, self.records, running)
        if self.plan.time_budget_s is None:
            return by_pace_s
        # What runs is finished, also beyond the budget.
        rest_s = forecast.longest_rest_s(self.plan, self.records, running)
        return min(by_pace_s, max(self.plan.time_budget_s - self.elapsed_s, rest_s))
