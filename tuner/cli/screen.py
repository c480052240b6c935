"""Live screen: the state of the study at the foot of the terminal, notices above it."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Self

from rich.cells import cell_len
from rich.console import Console as Terminal
from rich.console import ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.text import Text

from tuner import formatting
from tuner.cli.console import (
    DOORS,
    describe,
    describe_flags,
    load_words,
    notice_line,
    outcome_words,
    printable,
    waiting,
)
from tuner.cli.folders import State
from tuner.cli.snapshot import GroupNow, LevelNow, Picture, whole_machine
from tuner.cli.tables import spaced
from tuner.clock import Clock, RealClock
from tuner.formatting import one_line
from tuner.study.events import (
    MEASURING,
    Event,
    LevelMeasured,
    PhaseChanged,
    QuietAwaited,
    StudyFinished,
    TrialFinished,
    TrialStarted,
)
from tuner.study.forecast import spent_s
from tuner.study.plan import LoadPolicy, OpenSearch, StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import Figures, StudyResult
from tuner.study.sentence import LACKS, gain_text
from tuner.study.units import short_place
from tuner.verdict import Outcome

DRAWN_PER_SECOND = 1.0
"""Frames per second. The load shares this process, and drawing takes the interpreter from it."""

_STYLES = {
    TrialOutcome.FEASIBLE: "green",
    TrialOutcome.INFEASIBLE: "yellow",
    TrialOutcome.UNDECIDED: "yellow",
    TrialOutcome.INVALID: "magenta",
    TrialOutcome.BEHIND: "cyan",
    TrialOutcome.REFUSED: "red",
    TrialOutcome.DIED: "red",
    TrialOutcome.INFRASTRUCTURE: "bold red",
    TrialOutcome.INTERRUPTED: "dim",
}
"""Colours of outcomes. The word stands beside each."""

_WIDE = 110
"""Columns from which on a trial's last level stands beside its phase."""
_LINES_BESIDE_GROUPS = 16
"""Head, best, default and last outcomes."""
NOT_MEASURED = "not measured yet"
"""Text in place of figures before a start has ended."""


PASSES = (Outcome.FEASIBLE, Outcome.UNDECIDED)
"""Outcomes of a level after which a claim stays at its rate."""


@dataclass(frozen=True, slots=True)
class _Running:
    """A trial and the moments of its forecast. `loaded_ns` is None before its load."""

    now: GroupNow
    began_ns: int
    since_ns: int
    attempt_ns: int
    loaded_ns: int | None = None

    def at(self, now_ns: int) -> GroupNow:
        """Return its state at a moment."""
        return replace(
            self.now,
            phase_s=(now_ns - self.since_ns) / 1e9,
            trial_s=(now_ns - self.began_ns) / 1e9,
            load_s=None if self.loaded_ns is None else (now_ns - self.loaded_ns) / 1e9,
            attempt_s=(now_ns - self.attempt_ns) / 1e9,
        )

    def in_phase(self, phase: str, now_ns: int) -> _Running:
        """Enter a phase. The first load begins the first attempt."""
        changed = replace(self, now=replace(self.now, phase=phase), since_ns=now_ns)
        begins = phase == MEASURING and self.loaded_ns is None
        return replace(changed, loaded_ns=now_ns, attempt_ns=now_ns) if begins else changed


class Screen:
    """Screen that takes events from any thread and draws from one. Printed lines stay above it."""

    def __init__(
        self, plan: StudyPlan, vllm_version: str, records: Sequence[TrialRecord], clock: Clock | None = None
    ) -> None:
        self._clock = clock or RealClock()
        self._plan, self._vllm_version = plan, vllm_version
        self._records = list(records)
        self._running: dict[int, _Running] = {}
        self._broken: list[GroupNow] = []
        self._state = State.RUNNING
        self._result: StudyResult | None = None
        self._spent_before_s = spent_s(plan, records)
        self._began_ns = self._clock.now_ns()
        self._lock = threading.Lock()
        self._live = Live(
            console=Terminal(file=sys.stderr, highlight=False),
            get_renderable=lambda: Drawn(self.picture()),
            refresh_per_second=DRAWN_PER_SECOND,
            transient=sys.stdout.isatty(),  # the result follows on the same terminal
        )

    def __enter__(self) -> Self:
        self._live.start(refresh=True)
        return self

    def __exit__(self, *error: object) -> None:
        with self._lock:
            if self._state is State.RUNNING:
                self._state = State.INTERRUPTED
        with suppress(OSError):  # the terminal may have gone away
            self._live.stop()

    def say(self, text: str) -> None:
        with suppress(OSError):  # the terminal may be gone: the study goes on
            self._live.console.print(Text(printable(text)))

    def show(self, event: Event) -> None:
        if (notice := notice_line(event)) is not None:
            self.say(notice)
            return
        with self._lock:
            self._take_in(event)

    def picture(self) -> Picture:
        with self._lock:
            now_ns = self._clock.now_ns()
            taken = [running.at(now_ns) for running in self._running.values()]
            return Picture(
                plan=self._plan,
                vllm_version=self._vllm_version,
                state=self._state,
                records=tuple(self._records),
                groups=whole_machine(self._plan, (*taken, *self._broken)),
                elapsed_s=self._spent_before_s + (now_ns - self._began_ns) / 1e9,
                result=self._result,
            )

    def _take_in(self, event: Event) -> None:
        now_ns = self._clock.now_ns()
        match event:
            case TrialStarted():
                now = GroupNow(event.group, event.trial, event.role, event.candidate, "starting")
                now = replace(now, door=event.door, replicas=event.replicas)
                self._running[event.trial] = _Running(now, now_ns, now_ns, now_ns)
            case PhaseChanged() if (running := self._running.get(event.trial)) is not None:
                self._running[event.trial] = running.in_phase(event.phase, now_ns)
            case QuietAwaited() if (running := self._running.get(event.trial)) is not None:
                phase = waiting(event.reasons[:1]) if event.reasons else MEASURING
                self._running[event.trial] = running.in_phase(phase, now_ns)
            case LevelMeasured() if (running := self._running.get(event.trial)) is not None:
                level = LevelNow.of(event.measurement)
                goes_on = running.now.role is Role.CONFIRM and event.verdict and event.verdict.outcome in PASSES
                self._running[event.trial] = replace(
                    running,
                    now=replace(running.now, level=level),
                    attempt_ns=running.attempt_ns if goes_on else now_ns,
                )
            case TrialFinished():
                self._running.pop(event.record.trial, None)
                if (left := event.record.start.dirty) is not None:
                    phase = f"quarantined: trial {event.record.trial:04d} left {left}"
                    self._broken.append(GroupNow(event.record.start.group, phase=phase))
                self._records.append(event.record)
            case StudyFinished():
                self._state = State.COMPLETE if event.result.complete else State.INTERRUPTED
                self._result = event.result
            case _:
                pass


@dataclass(frozen=True, slots=True)
class Drawn:
    """Picture as rich draws it: in the terminal's width, and in its height if possible."""

    picture: Picture

    def __rich_console__(self, console: Terminal, options: ConsoleOptions) -> RenderResult:
        p, width = self.picture, options.max_width
        roomy = options.max_height >= _LINES_BESIDE_GROUPS + 2 * len(p.groups)
        groups = _groups(p, width, Room.TWO_LINES if roomy else Room.ONE_LINE) if p.state is State.RUNNING else ()
        yield Group(*_head(p, width), Text(), *groups, *_best(p), *_last(p), *_learnt(p))


class Room(Enum):
    """Space per trial. A second line holds its candidate."""

    ONE_LINE = 1
    TWO_LINES = 2


def _line(*parts: str | tuple[str, str]) -> Text:
    """One line, cut with an ellipsis where it does not fit. Whatever a part holds, it cannot steer the terminal."""
    safe = [spaced(p) if isinstance(p, str) else (spaced(p[0]), p[1]) for p in parts]
    return Text.assemble(*safe, no_wrap=True, overflow="ellipsis")


def _head(p: Picture, width: int) -> list[RenderableType]:
    plan = p.plan
    vllm = f"vLLM {p.vllm_version}" if p.vllm_version else ""
    load = f"{plan.workload.name}, {_load(plan.load)}"
    lines: list[RenderableType] = [
        _line((plan.study, "bold"), *(f"  {part}" for part in (_recheck(plan), plan.model, vllm) if part)),
        _line(f"{', '.join(map(str, plan.slos))}  {load}  space {plan.space.name}"),
    ]
    length = 24 if width >= _WIDE else 12
    filled = min(length, round(length * p.done / max(1, p.planned)))
    starts = f"  {p.done} of {p.planned} starts ({plan.confirm_starts} confirm)"
    left = f", {formatting.duration(p.left_s)} left" if p.left_s is not None else ""
    state = "" if p.state is State.RUNNING else f"  {p.state}"
    bar = ("━" * filled, "green"), ("─" * (length - filled), "dim")
    lines.append(_line(*bar, (state, "bold"), starts, f", {formatting.duration(p.elapsed_s)} spent", left))
    if p.result and p.state is not State.RUNNING:
        lines.append(Text(one_line(p.result.sentence), overflow="fold"))
    return lines


def _recheck(plan: StudyPlan) -> str:
    return f"recheck of {plan.rechecks.study}" if plan.rechecks else ""


def _load(load: LoadPolicy) -> str:
    if isinstance(load, OpenSearch):
        return load_words(load)
    ends = f"{load.levels[0]}-{load.levels[-1]}" if len(load.levels) > 1 else f"{load.levels[0]}"
    return f"{ends} concurrent, {formatting.duration(load.level_s)} each"


def _groups(p: Picture, width: int, room: Room) -> list[RenderableType]:
    name_width = max(8, *(cell_len(short_place(g.group)) for g in p.groups))
    lines: list[RenderableType] = []
    for g in p.groups:
        place = short_place(g.group)
        name = (place + " " * (name_width + 2 - cell_len(place)), "bold")
        if g.trial is None:
            lines.append(_line(name, (g.phase, "dim")))
            continue
        role = f" {g.role}" if g.role else ""
        since = f" {formatting.duration(float(round(g.phase_s)))}" if g.phase_s is not None else ""
        layout = f" {p.plan.layout_of(g.candidate)}" if p.plan.searches_layouts and g.candidate is not None else ""
        first = (name, f"trial {g.trial:04d}{role}{layout}{DOORS[g.door]}  ", (f"{g.phase}{since}", "cyan"))
        level = _level(g)
        flags = (describe_flags(g.candidate) if g.candidate is not None else "", "dim")
        indent = " " * (name_width + 2)
        if room is Room.ONE_LINE:
            lines.append(_line(*first, "  ", level))
        elif width >= _WIDE:
            lines += [_line(*first, "  ", level), _line(indent, flags)]
        else:
            lines += [_line(*first), _line(indent, level, "  " if level else "", flags)]
    return [*lines, Text()]


def _level(g: GroupNow) -> str:
    level = g.level
    if level is None:
        return ""
    p99 = formatting.ms(level.p99_ttft_ms)
    kv = formatting.share(level.kv_usage_peak)
    times = f"{g.replicas} × " if g.replicas > 1 else ""
    return f"{times}{formatting.qps(level.qps)}, P99 TTFT {p99}, KV {kv} at {times}{level.load}"


def _best(p: Picture) -> list[RenderableType]:
    best, default = p.best, p.default
    default_is_best = best is not None and best.candidate == p.plan.baseline
    gain = ""
    if best and default and p.default_keeps and not default_is_best:
        gain = f"  {gain_text(p.result.gain if p.result else None, best.qps, default.qps)}"
    lines: list[RenderableType] = []
    title = "winner       " if p.state is State.COMPLETE else "best so far  "
    if best is None:
        lines.append(_line((title, "bold"), "nothing kept the limits" if p.done else NOT_MEASURED))
    elif default_is_best:
        lines.append(_line((title, "bold"), "the default"))
    else:
        sure = f"  confirmed {len(best.trials)}×" if best.fresh else ""
        lines.append(_line((title, "bold"), _figures(best), (gain, "bold green"), sure))
        lines.append(_line(" " * 13, (describe(best.candidate), "dim")))
    lack = LACKS[p.default_lack] if p.default_lack else ""
    seen = f"{_figures(default)}  " if default else "" if lack else NOT_MEASURED
    lines.append(_line(("default      ", "bold"), seen, (lack, "yellow")))
    return [*lines, Text()]


def _learnt(p: Picture) -> list[RenderableType]:
    """One line: `tuner status --json` and the report hold the rules."""
    rules = p.result.learnt if p.result else ()
    if not rules:
        return []
    saved = sum(rule.saved for rule in rules)
    return [Text(), _line((f"rules learnt from refused starts: {len(rules)}, starts saved: {saved}", "dim"))]


def _figures(f: Figures) -> str:
    return f"{formatting.qps(f.qps)}  P99 TTFT {formatting.ms(f.p99_ttft_ms)}  at {f.level}"


def _last(p: Picture) -> list[RenderableType]:
    if not p.last:
        return [_line(("no trial has finished yet", "dim"))]
    role_width, outcome_width = (
        max(map(len, words)) for words in ([r.role for r in p.last], [r.outcome for r in p.last])
    )
    return [
        _line(
            f"{r.trial:04d}  {r.role:<{role_width}}  ",
            (f"{r.outcome:<{outcome_width}}  ", _STYLES[r.outcome]),
            outcome_words(r),
        )
        for r in p.last
    ]
