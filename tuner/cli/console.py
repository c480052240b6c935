"""Events → progress on stderr, one line each, for a reader and for a log."""

from __future__ import annotations

import os
import sys
import threading
from typing import Self, TextIO

from tuner import formatting
from tuner.bench.level import asked
from tuner.bench.phrases import note_text
from tuner.candidate import Candidate
from tuner.launch import Door
from tuner.layout import split_layout
from tuner.load.reading import TrafficReading, reading_line
from tuner.measurement import LoadKind, Measurement
from tuner.secrecy import mask
from tuner.study import confirm
from tuner.study.events import (
    Event,
    Explained,
    GroupQuarantined,
    GroupsCompared,
    LayoutDropped,
    LevelMeasured,
    MemoryAwaited,
    Paused,
    QuietAwaited,
    RuleApplied,
    SearchEnded,
    TrialFinished,
    TrialStarted,
    Unexplained,
)
from tuner.study.forecast import UNKNOWN_START_S, left_s
from tuner.study.layout_race import FIRST_TRIALS
from tuner.study.learnt import LearntRule
from tuner.study.plan import Ladder, LoadPolicy, StudyPlan
from tuner.study.record import Role, TrialOutcome, TrialRecord, accepted_tokens
from tuner.study.request_length import cautions, reason, up_to
from tuner.study.result import Lack, LayoutStanding, StudyResult, WhyDropped
from tuner.study.sentence import LACKS
from tuner.study.stopping import LEAST_GAIN, SearchEnd
from tuner.study.units import short_place
from tuner.verdict import Outcome, Reason, Verdict
from tuner.vllm import knobs

DOORS = {Door.SERVER: "", Door.VLLM: " through vLLM", Door.NGINX: " through nginx"}
"""Words for the door of a trial."""


class Console:
    """Writer of whole lines from any thread, without control characters."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def say(self, text: str) -> None:
        try:
            with self._lock:
                print(printable(text), file=self._stream, flush=True)
        except OSError:
            if self._stream is sys.stdout:
                raise
            # The terminal or the pipe is gone: the study goes on without it.

    def show(self, event: Event) -> None:
        match event:
            case TrialStarted():
                self.say(
                    f"[{event.start}/{event.starts}] trial {event.trial:04d} {event.role} on "
                    f"{short_place(event.group)}{DOORS[event.door]}: {describe(event.candidate)}"
                )
            case LevelMeasured():
                self.say(f"    {level_line(event.measurement, event.verdict)}")
            case QuietAwaited() if event.reasons:
                self.say(f"    {waiting(event.reasons)}")
            case TrialFinished():
                best = " · best so far" if event.is_best and event.record.role is not Role.CONFIRM else ""
                self.say(f"  → {outcome_line(event.record)}{best}")
            case _ if (notice := notice_line(event)) is not None:
                self.say(notice)
            case _:
                pass  # a line for every phase would drown the results; the end is printed by the command


def print_lines(text: str) -> None:
    """Print to stdout. A terminal or pipe that has gone is no error: the study's folder has it all."""
    try:
        print(printable(text), flush=True)
    except OSError:
        forget(sys.stdout)


def forget(stream: TextIO) -> None:
    """Send what a stream still holds nowhere, so that its end raises nothing."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def notice_line(event: Event) -> str | None:
    """Say in one line what is not a trial's own result; None for other events."""
    match event:
        case RuleApplied():
            return f"not started any more: {event.rule}"
        case LayoutDropped():
            return dropped_line(event.standing)
        case GroupQuarantined():
            return f"QUARANTINED {event.group}: trial {event.trial:04d} left {event.left}"
        case MemoryAwaited():
            return f"{event.group}: waiting for GPU memory that others hold: {event.holders}"
        case GroupsCompared():
            return _comparison(event)
        case Unexplained():
            return _question(event)
        case Explained():
            return f"trial {event.record.trial:04d} failed by its own flags{_by(event.by)}; the search goes on"
        case Paused():
            why = event.cause.explanation if event.cause else "starts fail through no fault of the candidate"
            return f"{why} Trying again in {formatting.duration(event.seconds)}"
        case SearchEnded():
            return _search_end(event)
        case _:
            return None


def waiting(reasons: tuple[Reason, ...]) -> str:
    """Say why a load waits before it is repeated."""
    return f"waiting for a quiet machine: {'; '.join(map(str, reasons))}"


def dropped_line(standing: LayoutStanding) -> str:
    """Say why the search goes on without a layout, with the trials that decided."""
    trials = ", ".join(f"{trial:04d}" for trial in standing.dropped_by or ())
    starts = f"{standing.starts} {'start' if standing.starts == 1 else 'starts'}"
    best, most = formatting.qps(standing.best_qps), formatting.qps(standing.leader_qps)
    match standing.why:
        case WhyDropped.DOES_NOT_START:
            why = f"{starts} refused, and {standing.leader} starts"
        case WhyDropped.BREAKS_LIMITS:
            why = f"nothing kept the limits in {starts}, and {standing.leader} sustains {most}"
        case _:
            why = f"best {best} after {starts}, {standing.leader} has {most}"
    return f"layout {standing.layout} is dropped: {why} (trials {trials})"


def _comparison(event: GroupsCompared) -> str:
    if event.slowest_qps is None or event.alone_qps is None:
        return f"layout {event.layout}: whether its servers disturb each other could not be measured"
    return (
        f"layout {event.layout}, all at once: {formatting.change(event.slowest_qps, event.alone_qps)} QPS on the "
        f"slowest of {event.groups} servers against one alone"
    )


def _question(event: Unexplained) -> str:
    """Quote an unexplained failure and say what decides it."""
    cause, known = event.record.start.cause, event.known
    said = f": {cause.line}" if cause and cause.line else ""
    test = (
        "the next candidate shows" if known is None else f"the candidate of trial {known.trial:04d}, which ran, shows"
    )
    return f"the log of trial {event.record.trial:04d} does not say whose fault it is{said}\n{test} if anything starts"


def _by(record: TrialRecord | None) -> str:
    return "" if record is None else f": trial {record.trial:04d} starts"


def _search_end(event: SearchEnded) -> str | None:
    match event.reason:
        case SearchEnd.EXHAUSTED:
            return "every candidate of this space was started: the search ends early"
        case SearchEnd.NO_GAIN:
            return f"the search ends here: {event.patience} starts without {formatting.share(LEAST_GAIN)} more QPS"
        case SearchEnd.NO_TIME:
            return "the search ends here: what is left of --time-budget is for confirming starts"
        case SearchEnd.ALL_MADE:
            return None


def printable(text: str) -> str:
    """Lines with their indentation, without control characters and secrets."""
    return "\n".join(
        line[: len(line) - len(line.lstrip(" "))] + formatting.one_line(line) for line in mask(text).splitlines()
    )


def describe(candidate: Candidate) -> str:
    """Write a candidate as its layout, then its flags."""
    layout, _ = split_layout(candidate.as_dict())
    return describe_flags(candidate) if layout is None else f"{layout} · {describe_flags(candidate)}"


def describe_flags(candidate: Candidate) -> str:
    """Write a candidate's flags without those of its layout."""
    _, flags = split_layout(candidate.as_dict())
    words = (f"{flag}={value:g}" if isinstance(value, float) else f"{flag}={value}" for flag, value in flags.items())
    return " ".join(words) or "vLLM's defaults"


def level_line(m: Measurement, verdict: Verdict | None) -> str:
    """Format a level. Without a `verdict` it has no limits to keep and shows what a full server can do."""
    why = f": {'; '.join(map(str, verdict.reasons))}" if verdict and verdict.reasons else ""
    said = f"{verdict.outcome}{why}" if verdict else "fills the server"
    if m.aborted is not None:  # what was cut short has no throughput to compare
        return f"{m.load!s:>16}  ended after {formatting.duration(m.window_s):>12}  {said}"
    p99 = formatting.ms(m.ttft_ms.p99 if m.ttft_ms else None)
    preempted = formatting.count(m.server.preemptions)
    return f"{m.load!s:>16}  {formatting.qps(m.qps):>12}  P99 TTFT {p99:>9}  preemptions {preempted:>3}  {said}"


def outcome_line(record: TrialRecord) -> str:
    if record.outcome is TrialOutcome.FEASIBLE:
        return outcome_words(record)
    name = "behind the best so far" if record.outcome is TrialOutcome.BEHIND else record.outcome
    return f"{name}: {outcome_words(record)}"


def outcome_words(record: TrialRecord) -> str:
    """Describe a trial's outcome without its own name."""
    if record.outcome is TrialOutcome.FEASIBLE and record.best_level is not None:
        level = record.best_level
        p99 = level.ttft_ms.p99 if level.ttft_ms else None
        held = "held" if record.claim is not None else "estimated"
        qps = formatting.qps(record.qps) + (f" {held}" if level.load.kind is LoadKind.OPEN else "")
        return f"{qps} at {record.said_load(level)}, P99 TTFT {formatting.ms(p99)}"
    if record.start.cause is not None:
        return record.start.cause.explanation
    if record.outcome in (TrialOutcome.BEHIND, TrialOutcome.INVALID) and record.notes:
        return "; ".join(map(note_text, record.notes))
    reasons = next(
        (lv.verdict.reasons for lv in asked(record.levels) if lv.verdict.outcome is not Outcome.FEASIBLE), ()
    )
    return "; ".join(map(str, reasons)) or "nothing was measured"


def load_words(load: LoadPolicy) -> str:
    """Describe the load of each server in a few words."""
    if isinstance(load, Ladder):
        levels = ", ".join(map(str, load.levels))
        return f"{levels} concurrent requests, {formatting.duration(load.level_s)} each"
    settings = load.settings
    return (
        f"{load.arrivals.phrase}, {formatting.duration(settings.probe_s)} a rate; "
        f"claims {settings.claim_traces} × {formatting.duration(settings.claim_s)} or longer"
    )


def plan_lines(plan: StudyPlan, vllm_version: str) -> str:
    """Describe the plan before the first start."""
    lines = [f"study     {plan.study}", f"model     {plan.model}", f"vLLM      {vllm_version}"]
    lines.append(f"limits    {', '.join(map(str, plan.slos))}, no preemption, no failed request")
    lines.append(f"workload  {plan.workload.name}: up to {plan.workload.longest} tokens a request")
    if plan.workload.reading is not None:
        lines.append(f"read      {reading_line(plan.workload.reading)}")
        lines += _tool_lines(plan, plan.workload.reading)
    lines += _length_lines(plan)
    lines.append(f"load      {plan.load.kind} loop: {load_words(plan.load)}")
    lines += _layout_lines(plan)
    lines.append(f"searched  space {plan.space.name}")
    width = max(len(p.flag) for p in plan.parameters)
    lines += [f"          {p.flag:<{width}}  {p}" for p in plan.parameters]
    constant = [*plan.space.fixed, *plan.space.always, *((f"env {k}", v) for k, v in plan.space.env)]
    lines += [f"fixed     {flag} = {value}" for flag, value in constant]
    if plan.base.extra:
        lines.append(f"yours     {' '.join(plan.base.extra)}")
    lines += [f"left out  {d.flag}: {d.why}" for d in plan.dropped]
    lines.append(f"default   {describe(plan.baseline)}")
    lines.append(f"starts    {plan.starts} + {plan.confirm_starts} to confirm, {_time(plan)}")
    if plan.searches_layouts and plan.starts < (least := FIRST_TRIALS * len(plan.layouts)):
        lines.append(
            f"          caution: fewer than {FIRST_TRIALS} a layout, some are not tried; --trials {least} or more"
        )
    if plan.patience is not None:
        lines.append(
            f"patience  the search ends after {plan.patience} starts without {formatting.share(LEAST_GAIN)} more QPS"
        )
    return "\n".join(lines)


def _time(plan: StudyPlan) -> str:
    limit = "" if plan.time_budget_s is None else f", ended after {formatting.duration(plan.time_budget_s)}"
    return f"at most about {formatting.duration(left_s(plan, ()))} with {UNKNOWN_START_S:.0f} s a start{limit}"


def _layout_lines(plan: StudyPlan) -> list[str]:
    """List each layout with the places of its servers, what may slow it down, and those that are ruled out."""
    rows = []
    for placed in plan.layouts:
        layout = placed.layout
        own = " (the default's)" if layout.server == plan.own_layout.server else ""
        rows.append((str(layout), f"a server on each of {', '.join(g.name for g in placed.groups)}{own}"))
        rows += [("", f"caution: {caution}") for caution in placed.cautions]
    rows += [(str(out.layout), f"ruled out: {out.why}") for out in plan.ruled_out]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'' if i else 'layouts':<8}  {name:<{width}}  {says}" for i, (name, says) in enumerate(rows)]
    if plan.doors:
        how = "both measured" if plan.compares_doors else "the second where the first costs too much"
        lines.append(f"door      {' and '.join(plan.doors)}{f', {how}' if len(plan.doors) > 1 else ''}")
    return lines


def _tool_lines(plan: StudyPlan, reading: TrafficReading) -> list[str]:
    """Caution if vLLM will answer 400 to requests with tools, because it is not told how to read their answers."""
    flags = {**dict(plan.base.fixed), **dict(plan.space.always), **plan.given}
    if not reading.tools or (flags.get(knobs.ENABLE_AUTO_TOOL_CHOICE) and flags.get(knobs.TOOL_CALL_PARSER)):
        return []
    return [
        f"          caution: vLLM refuses requests with tools ({formatting.count(reading.tools)} here), gpt-oss and "
        f"Mistral tokenizers aside; add -- --{knobs.ENABLE_AUTO_TOOL_CHOICE} --{knobs.TOOL_CALL_PARSER} NAME"
    ]


def _length_lines(plan: StudyPlan) -> list[str]:
    """Say how long a request servers accept, why, and what of it may surprise in production."""
    if plan.length is None:
        return []
    tokens = plan.length.tokens
    said = "as long as vLLM chooses" if tokens is None else f"{up_to(tokens)} are accepted"
    first = f"requests  {said}: {reason(plan.length)}"
    return [first, *(f"          caution: {text}" for text in cautions(plan.length))]


def result_lines(
    result: StudyResult, records: tuple[TrialRecord, ...], baseline: Candidate, paths: dict[str, str]
) -> str:
    """Describe the result: winner beside default, refused starts by cause, files."""
    lines = [result.sentence, ""]
    shown_default = result.default or result.default_seen
    lack = LACKS[confirm.lack(records, baseline) or Lack.NOT_MEASURED]
    for name, figures in (("winner", result.winner), ("default", shown_default)):
        if figures is None:
            lines.append(f"{name:<8}  {lack if name == 'default' else 'none kept the limits'}")
            continue
        broke = "" if name == "winner" or result.default else f"  ({lack})"
        spread = f" ({figures.qps_low:.3g}–{figures.qps_high:.3g})" if len(figures.trials) > 1 else ""
        lines.append(
            f"{name:<8}  {formatting.qps(figures.qps)}{spread}  P99 TTFT {formatting.ms(figures.p99_ttft_ms)}  "
            f"at {figures.level}{broke}  {describe(figures.candidate)}"
        )
    if result.winner and (tokens := accepted_tokens(result.winner.candidate, records)) is not None:
        lines.append(f"accepts   requests of {up_to(tokens)}")
    lines += _layouts_and_doors(result)
    refused = [r for r in records if r.outcome in (TrialOutcome.REFUSED, TrialOutcome.DIED) and r.start.cause]
    lines.append(f"refused   {len(refused)} of {len(records)} starts")
    for kind in dict.fromkeys(r.start.cause.kind for r in refused if r.start.cause):
        of_kind = [r for r in refused if r.start.cause and r.start.cause.kind == kind]
        cause = of_kind[0].start.cause
        assert cause is not None
        lines.append(f"          {len(of_kind)} × {kind}: {cause.explanation}")
    lines += learnt_lines(result.learnt)
    lines += ["", *(f"{name:<8}  {path}" for name, path in paths.items())]
    return "\n".join(lines)


def _layouts_and_doors(result: StudyResult) -> list[str]:
    """List the layouts with their figures, and the doors of the winner. Empty for a single server."""
    lines = [
        f"{'' if i else 'layouts':<8}  {found.layout!s:<6}  default {formatting.qps(found.default_qps)}, "
        f"best {formatting.qps(found.best_qps)}, {found.starts} starts{', dropped' if found.is_dropped else ''}"
        for i, found in enumerate(result.layouts if len(result.layouts) > 1 else ())
    ]
    for door in result.doors:
        cost = "" if door.cost is None else f", costs {formatting.share(max(0.0, door.cost))}"
        lines.append(f"door      {door.door}: {formatting.qps(door.rate)}{cost}{', chosen' if door.is_quoted else ''}")
    return lines


def learnt_lines(rules: tuple[LearntRule, ...]) -> list[str]:
    """List what the search does not start any more, with its trial. Empty if nothing was learnt."""
    if not rules:
        return []
    saved = sum(rule.saved for rule in rules)
    head = f"learnt    what is not started any more; {saved} {'start' if saved == 1 else 'starts'} saved so far"
    return [head, *(f"          {_saved(rule)}{rule}" for rule in rules)]


def _saved(rule: LearntRule) -> str:
    if rule.withdrawn_by is not None:
        return f"withdrawn, trial {rule.withdrawn_by:04d} started: "
    return f"{rule.saved} × " if rule.saved else ""
