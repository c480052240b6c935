"""Recorded launch and its measurements: what every file of this room quotes, and its header."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from tuner import formatting
from tuner.environment import Environment
from tuner.errors import UsageError
from tuner.formatting import one_line
from tuner.launch import Deployment, Door, LaunchSpec
from tuner.layout import Layout
from tuner.load.workload import Workload
from tuner.report.quote import production, production_env
from tuner.report.tables import StudyFiles
from tuner.server.nginx_conf import PREFIX_HEADER
from tuner.study.plan import StudyPlan
from tuner.study.record import TrialRecord, accepted_tokens
from tuner.study.request_length import up_to
from tuner.study.result import Decision, DoorFigures, Figures, StudyResult

AFFINITY_MATTERS = 0.25
"""Share of a prompt that its prefix has. A server without the prefix in its cache then computes a third more."""

STOP_MARGIN_S = 15
"""Seconds that vLLM's processes get beyond the server's own shutdown timeout before they are killed."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One start of a study that is to be repeated in production."""

    record: TrialRecord
    result: StudyResult
    plan: StudyPlan
    environment: Environment

    def __post_init__(self) -> None:
        for launch in self.launches:
            for name in (*dict(launch.env), *launch.secret_env):
                if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
                    raise UsageError(
                        f"{name!r} is not a variable's name", hint="correct the study's env, then search again"
                    )

    @property
    def deployment(self) -> Deployment:
        """Return all servers of the machine and their door."""
        return production(self.record, self.plan)

    @property
    def launches(self) -> tuple[LaunchSpec, ...]:
        return self.deployment.specs

    @property
    def launch(self) -> LaunchSpec:
        """Return the first server's launch. The others differ in their place only."""
        return self.launches[0]

    @property
    def door(self) -> Door:
        return self.deployment.door

    @property
    def layout(self) -> Layout:
        one = Layout.of(dict(self.launch.flags))
        return replace(one, replicas=len(self.launches) * one.replicas)

    @property
    def was_whole(self) -> bool:
        """Return True if all of its servers were measured at once."""
        return self.record.replicas == 1

    @property
    def env(self) -> tuple[tuple[str, str], ...]:
        """Return the variables that all servers share."""
        others = [production_env(launch) for launch in self.launches[1:]]
        return tuple(pair for pair in production_env(self.launch) if all(pair in other for other in others))

    def own_env(self, launch: LaunchSpec) -> tuple[tuple[str, str], ...]:
        """Return the variables that tell a server from the others."""
        shared = self.env
        return tuple(pair for pair in production_env(launch) if pair not in shared)

    @property
    def gpus(self) -> tuple[str, ...]:
        """Return the GPUs of all servers."""
        return tuple(str(gpu) for launch in self.launches for gpu in launch.gpus)

    @property
    def stop_s(self) -> int:
        """Seconds to wait after TERM: the server's own shutdown timeout and a margin."""
        return self.launch.shutdown_timeout_s + STOP_MARGIN_S

    @property
    def figures(self) -> Figures | None:
        """Return the study's figures of this candidate. None if none kept the limits."""
        of_candidate = [f for f in (self.result.winner, self.result.default) if f is not None]
        return next((f for f in of_candidate if f.candidate == self.record.candidate), None)


def recorded_in(study: StudyFiles, trial: int | None = None) -> Recorded:
    """Find the study's winner, or the trial with that number. Raises UsageError if there is none to quote."""
    if study.result is None or study.environment is None:
        raise UsageError(
            f"study {study.plan.study!r} has no result yet", hint="`tuner search` writes one after a trial"
        )
    if trial is None:
        record = study.quoted(study.winner)
        if record is None:
            raise UsageError(
                f"study {study.plan.study!r} has no winner: no start kept the limits",
                hint="name a start with --trial N; the report lists them",
            )
    else:
        record = next((r for r in study.records if r.trial == trial), None)
        if record is None:
            raise UsageError(f"study {study.plan.study!r} has no trial {trial}", hint="the report lists them")
    return Recorded(record, study.result, study.plan, _environment(study, record))


def _environment(study: StudyFiles, record: TrialRecord) -> Environment:
    """Return the study's environment with the vLLM that the quoted runs used. A study may change it on the way."""
    assert study.environment is not None
    figures = (study.winner, study.default)
    trials = {t for of in figures if of is not None and of.candidate == record.candidate for t in of.trials}
    runs = [r for r in study.records if r.trial in trials and record.trial in trials] or [record]
    versions = [version for r in runs if (version := r.start.version) is not None]
    return replace(study.environment, vllm_version=versions[-1]) if versions else study.environment


def header(recorded: Recorded, *, file: str) -> tuple[str, ...]:
    """Return comment lines without the comment sign: what this starts, what was measured, how far to trust it."""
    plan, environment = recorded.plan, recorded.environment
    is_routed = file == "nginx.conf" or recorded.door is Door.NGINX
    prefixes = prefixes_text(plan.workload) if is_routed else ""
    rows = [
        ("what", _role(recorded)),
        *([("layout", layout_text(recorded))] if recorded.layout.gpus > 1 else []),
        ("measured", _measured(recorded)),
        *([("doors", doors)] if (doors := _doors(recorded)) else []),
        ("accepts", _accepts(recorded)),
        ("limits", ", ".join(map(str, plan.slos)) or "none"),
        ("workload", _workload(plan)),
        *([("prefixes", prefixes)] if prefixes else []),
        ("model", plan.model),
        ("on", _hardware(recorded)),
        ("versions", f"vLLM {environment.vllm_version}, driver {environment.driver or 'none'}"),
        ("study", f"{plan.study}, trial {recorded.record.trial}, candidate {recorded.record.candidate.id}"),
        ("date", recorded.record.start.started_at),
        ("caveat", _caveat(recorded)),
    ]
    # Text from outside must not break out of the comment.
    lines = [f"{label:<9} {one_line(text)}" for label, text in rows]
    return (f"{file}: written by tuner {one_line(environment.tuner_version)}.", "", *lines)


def layout_text(recorded: Recorded) -> str:
    """Describe servers, GPUs and door: `2x2: 2 servers of 2 GPUs each behind nginx`."""
    layout = recorded.layout
    unit = "GPU" if recorded.gpus else "worker"
    size = f"{layout.ranks} {unit}{'s' if layout.ranks > 1 else ''}"
    if layout.pipeline_parallel > 1:
        size += f" ({layout.tensor_parallel} tensor-parallel × {layout.pipeline_parallel} pipeline-parallel)"
    match recorded.door:
        case Door.SERVER if layout.replicas == 1:
            return f"{layout}: one server of {size}"
        case Door.SERVER | Door.VLLM:
            return f"{layout}: {layout.replicas} engines of {size} each behind vLLM's own data-parallel door"
        case Door.NGINX:
            return f"{layout}: {layout.replicas} servers of {size} each behind nginx"


def _doors(recorded: Recorded) -> str:
    """Return what the doors showed in front of the winner. Empty for other candidates, and for a single server."""
    winner = recorded.result.winner
    if winner is None or winner.candidate != recorded.record.candidate:
        return ""
    return "; ".join(map(_door, recorded.result.doors))


def _door(figures: DoorFigures) -> str:
    name = {Door.VLLM: "vLLM's own", Door.NGINX: "nginx"}.get(figures.door, "none")
    shown = "a run failed" if figures.rate is None else formatting.qps(figures.rate)
    cost = "" if figures.cost is None else f", costs {formatting.share(max(0.0, figures.cost))} of the throughput"
    return f"{name} {shown}{cost}"


def prefixes_text(workload: Workload) -> str:
    """Describe routing by prefix. Empty if prefixes hardly matter in the measured traffic."""
    shared = sum(share.weight * share.shared_prefix for share in workload.shares)
    tokens = sum(share.weight * share.prompt.mean for share in workload.shares)
    if not shared or shared < AFFINITY_MATTERS * tokens:
        return ""
    return (
        f"{formatting.share(shared / tokens)} of a prompt is a prefix that requests share; with more prefixes than one "
        f"server's cache holds, send {PREFIX_HEADER} and route by it: the end of nginx.conf (tuner best --format nginx)"
    )


def _accepts(recorded: Recorded) -> str:
    tokens = accepted_tokens(recorded.record.candidate, [recorded.record])
    return "requests as long as vLLM chooses" if tokens is None else f"requests of {up_to(tokens)}"


def _role(recorded: Recorded) -> str:
    result, candidate = recorded.result, recorded.record.candidate
    is_default = candidate == recorded.plan.baseline
    if result.winner is not None and result.winner.candidate == candidate:
        confirmed = result.decision is not Decision.NOT_CONFIRMED
        best = "the study's winner" if confirmed else "the study's best candidate, not confirmed by fresh starts"
        kept = (
            f"vLLM's default configuration, {'the best of the study' if confirmed else 'no gain over it was confirmed'}"
        )
        what = kept if is_default else best
        return what if result.complete else f"{what} so far: the search was not over"
    if is_default:
        beaten = "; nothing beat it" if result.decision is Decision.KEEP_DEFAULT else ""
        return f"vLLM's default configuration{beaten}"
    return "one of the study's candidates, not its winner"


def _measured(recorded: Recorded) -> str:
    whole = f"; {recorded.record.replicas} times one server's figure, not measured as a whole yet"
    return _figures(recorded) + ("" if recorded.was_whole else whole)


def _figures(recorded: Recorded) -> str:
    figures = recorded.figures
    if figures is not None:
        starts = len(figures.trials)
        low, high = formatting.significant(figures.qps_low), formatting.qps(figures.qps_high)
        spread = f" ({low} to {high} over {starts} starts)"
        return _figures_line(
            formatting.qps(figures.qps) + (spread if starts > 1 else " in 1 start"),
            figures.p99_ttft_ms,
            figures.level,
            figures.preemptions,
        )
    level = recorded.record.best_level
    if level is None:
        return "no load level of this start kept the limits"
    return _figures_line(
        f"{formatting.qps(recorded.record.qps)} in 1 start",
        level.ttft_ms.p99 if level.ttft_ms else None,
        str(level.load),
        level.server.preemptions,
    )


def _figures_line(speed: str, p99_ttft_ms: float | None, level: str, preemptions: int | None) -> str:
    seen = "preemptions not observed" if preemptions is None else f"{preemptions} preemptions"
    return f"{speed} at {level}, P99 TTFT {formatting.ms(p99_ttft_ms)}, {seen}"


def _workload(plan: StudyPlan) -> str:
    shares = [
        f"prompt {formatting.span(s.prompt.low, s.prompt.high)} tokens, "
        f"output {formatting.span(s.output.low, s.output.high)} tokens"
        for s in plan.workload.shares
    ]
    return f"{plan.workload.name}: {' | '.join(shares)}"


def _hardware(recorded: Recorded) -> str:
    environment = recorded.environment
    used = [gpu.name for gpu in environment.gpus if str(gpu.index) in recorded.gpus]
    if used:
        names = " + ".join(f"{used.count(name)} × {name}" for name in dict.fromkeys(used))
        return f"{names}, host {environment.host}"
    return f"{environment.cpu} ({environment.cpu_count} CPUs), host {environment.host}"


def _caveat(recorded: Recorded) -> str:
    figures = recorded.figures
    if figures is None:
        return "no confirmed figures: measure it with your own traffic before you rely on it"
    if figures.fresh:
        return "none of the starts behind these figures took part in choosing this configuration"
    return "the starts behind these figures also chose this configuration, so they flatter it: expect a little less"
