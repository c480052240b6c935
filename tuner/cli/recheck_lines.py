"""Plan of a recheck on a terminal."""

from __future__ import annotations

from tuner.cli.console import describe
from tuner.environment import Environment
from tuner.formatting import NOT_OBSERVED, qps
from tuner.study.plan import StudyPlan
from tuner.study.result import Gain
from tuner.study.sentence import gain_text


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
