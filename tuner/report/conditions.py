"""What was measured on and under which conditions, as rows, and the command that searches again."""

from __future__ import annotations

import shlex
from typing import NamedTuple

from tuner import formatting
from tuner.report.quote import shell_word
from tuner.report.tables import StudyFiles
from tuner.report.translations import Words
from tuner.study.plan import Ladder, LoadPolicy, StudyPlan


class FactRow(NamedTuple):
    label: str
    text: str


def environment_rows(study: StudyFiles, words: Words) -> list[FactRow]:
    plan, environment = study.plan, study.environment
    facts = [("env-model", plan.model)]
    if environment is not None:
        names = [f"{gpu.index}: {gpu.name}, {formatting.gib(gpu.memory_gib)}" for gpu in environment.gpus]
        facts += [
            ("env-digest", environment.model_digest or formatting.NOT_OBSERVED),
            ("env-vllm", environment.vllm_version),
            ("env-gpus", "; ".join(names) or words("none")),
            ("env-driver", environment.driver or words("none")),
            ("env-host", environment.host),
            ("env-cpu", f"{environment.cpu_count} × {environment.cpu}"),
            ("env-memory", formatting.gib(environment.memory_gib)),
            ("env-kernel", environment.kernel),
            ("env-python", environment.python_version),
            ("env-tuner", environment.tuner_version),
        ]
    facts += [("env-workload", f"{plan.workload.name} ({plan.workload.source})")]
    facts += [("", text) for text in _shares(study, words)]
    facts += [
        ("env-limits", ", ".join(map(str, plan.slos)) or words("none")),
        ("env-levels", _load(plan.load, words)),
        ("env-space", plan.space.name),
        ("env-seed", str(plan.seed)),
        ("env-groups", ", ".join(group.name for group in plan.groups)),
        ("env-dropped", "; ".join(f"{d.flag}: {d.why}" for d in plan.dropped) or words("none")),
        ("env-created", plan.created_at),
        ("env-finished", study.result.updated_at if study.result else formatting.NOT_OBSERVED),
    ]
    return [FactRow(words(key) if key else "", formatting.one_line(text)) for key, text in facts]


def _load(load: LoadPolicy, words: Words) -> str:
    warm_up = formatting.duration(load.warm_up_s)
    if isinstance(load, Ladder):
        levels = ", ".join(map(str, load.levels))
        return words("env-level-time", levels=levels, time=formatting.duration(load.level_s), warm_up=warm_up)
    settings = load.settings
    return words(
        "env-open-loop",
        arrivals=words.arrivals(load.arrivals),
        time=formatting.duration(settings.probe_s),
        traces=settings.claim_traces,
        claim=formatting.duration(settings.claim_s),
        warm_up=warm_up,
    )


def _load_flags(plan: StudyPlan) -> list[str]:
    load = plan.load
    if isinstance(load, Ladder):
        return ["--levels", ",".join(map(str, load.levels)), "--level-seconds", f"{load.level_s:g}"]
    seconds = ["--probe-seconds", f"{load.settings.probe_s:g}"]
    burstiness = load.arrivals.asked_for(plan.workload)
    return seconds if burstiness is None else [*seconds, "--burstiness", f"{burstiness:g}"]


def _shares(study: StudyFiles, words: Words) -> list[str]:
    shares = study.plan.workload.shares
    total = sum(share.weight for share in shares) or 1.0
    return [
        words(
            "env-share",
            weight=formatting.share(share.weight / total),
            prompt=formatting.span(share.prompt.low + share.shared_prefix, share.prompt.high + share.shared_prefix),
            output=formatting.span(share.output.low, share.output.high),
        )
        for share in shares
    ]


def repeat_command(study: StudyFiles) -> str:
    """The `tuner search` that plans this study again, under another name."""
    plan = study.plan
    words = ["tuner", "search", "--model", plan.model, "--workload", plan.workload.file or plan.workload.name]
    words += ["--space", plan.space.name]
    words += [word for slo in plan.slos for word in ("--slo", str(slo))]
    gpus = [str(gpu) for group in plan.groups for gpu in group.gpus]
    words += ["--gpus", ",".join(gpus)] if gpus else []
    size = max((len(group.gpus) for group in plan.groups), default=0)
    words += ["--tensor-parallel-size", str(size)] if size > 1 else []
    words += ["--trials", str(plan.starts), "--confirm", str(plan.confirm_starts)]
    words += ["--time-budget", "none" if plan.time_budget_s is None else f"{plan.time_budget_s:.0f}s"]
    words += ["--seed", str(plan.seed), "--study", f"{plan.study}-again"]
    words += [*_load_flags(plan), "--warm-up-seconds", f"{plan.load.warm_up_s:g}"]
    words += ["--start-limit-seconds", f"{plan.start_limit_s:g}"]
    words += ["--patience", str(plan.patience)] if plan.patience is not None else []
    words += ["--vllm", shlex.join(plan.base.command)] if plan.base.command != ("vllm", "serve") else []
    return " ".join(map(shell_word, [*words, *(("--", *plan.base.extra) if plan.base.extra else ())]))
