"""What a study takes over from an earlier one, on a terminal."""

from __future__ import annotations

from tuner.candidate import Value
from tuner.cli.console import describe
from tuner.environment import Environment
from tuner.formatting import NOT_OBSERVED, qps
from tuner.study.plan import StudyPlan
from tuner.study.result import Gain
from tuner.study.sentence import gain_text


def beginning_lines(plan: StudyPlan) -> str:
    """Describe what a search begins with, as further lines of its plan. Empty without an earlier study."""
    first = plan.begins_with
    if first is None:
        return ""
    counts = f"{len(first.candidates)} of its best candidates, {len(first.rules)} of its rules"
    lines = [f"from      {first.study} (vLLM {first.vllm_version}): {counts}"]
    for found in first.candidates:
        lines.append(f"          trial {found.trial:04d}, {qps(found.qps)}: {describe(found.candidate)}")
        lines += [
            f"          caution: {d.what} was {_known(d.was)} there, is {_known(d.now)} here" for d in found.changed
        ]
    lines += [f"          not searched here: {flag}" for flag in first.not_searched]
    lines += [f"          left out, no such layout here: trial {trial:04d}" for trial in first.without_layout]
    lines += [f"          not started: {rule}" for rule in first.rules]
    if first.stale_rules:
        differs = ", ".join(f"{d.what} was {_known(d.was)}, is {_known(d.now)}" for d in first.stale_by)
        lines.append(f"          left out, may not hold any more: {first.stale_rules} rules ({differs})")
    return "\n" + "\n".join(lines)


def _known(value: Value | None) -> str:
    return NOT_OBSERVED if value is None else str(value)


def recheck_lines(plan: StudyPlan, now: Environment) -> str:
    """Describe a recheck before its first start: what is compared, and what has changed since."""
    before = plan.rechecks
    assert before is not None
    gain = f", {gain_text(Gain(*before.gain, pairs=0), None, None)} over the default" if before.gain else ""
    software = (
        ("vLLM", before.vllm_version, now.vllm_version),
        ("driver", before.driver or NOT_OBSERVED, now.driver or NOT_OBSERVED),
        ("tuner", before.tuner_version, now.tuner_version),
    )
    lines = [
        f"study     {plan.study}",
        f"rechecks  {before.study}: {qps(before.qps)}{gain}",
        f"model     {plan.model}",
        *(f"{name:<8}  {new if old == new else f'{old} → {new}'}" for name, old, new in software),
        f"limits    {', '.join(map(str, plan.slos))}, no preemption, no failed request",
        f"workload  {plan.workload.name}: up to {plan.workload.longest} tokens a request",
        f"winner    {describe(before.candidate)}",
        f"default   {describe(plan.baseline)}",
        f"starts    {plan.starts} + {plan.confirm_starts} to confirm",
    ]
    if all(old == new for _, old, new in software):
        lines.append("          caution: vLLM, driver and tuner are the same as then")
    return "\n".join(lines)
