"""Conditions of a study as rows, and the command that searches again."""

from __future__ import annotations

import shlex
from typing import NamedTuple

from tuner import formatting
from tuner.candidate import Value
from tuner.flagwords import words_for
from tuner.load.reading import COUNTED, TrafficReading
from tuner.load.workload import extra_body_text
from tuner.report.quote import shell_word
from tuner.report.tables import StudyFiles
from tuner.report.translations import Words
from tuner.study.earlier import BeginsWith
from tuner.study.plan import Ladder, LoadPolicy, StudyPlan
from tuner.study.request_length import LengthSource
from tuner.vllm import knobs


class FactRow(NamedTuple):
    """One condition. A row without a key continues the one above."""

    key: str
    label: str
    text: str


def environment_rows(study: StudyFiles, words: Words) -> list[FactRow]:
    """List the conditions under which the study was measured."""
    plan, environment = study.plan, study.environment
    facts = [("env-model", plan.model)]
    facts += [("env-rechecks", plan.rechecks.study)] if plan.rechecks else []
    facts += [("env-from", _beginning(plan.begins_with, words))] if plan.begins_with else []
    if environment is not None:
        names = [f"{gpu.index}: {gpu.name}, {formatting.gib(gpu.memory_gib)}" for gpu in environment.gpus]
        facts += [
            ("env-digest", environment.model_digest or formatting.NOT_OBSERVED),
            ("env-vllm", ", ".join(dict.fromkeys((environment.vllm_version, *_versions(study))))),
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
    reading = plan.workload.reading
    if reading is None:
        facts += [("", text) for text in _shares(study, words)]
    else:
        facts += [("" if i else "env-read", text) for i, text in enumerate(_read(reading, words))]
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
    return [FactRow(key, words(key) if key else "", formatting.one_line(text)) for key, text in facts]


def _beginning(first: BeginsWith, words: Words) -> str:
    """Say what the search began with, and what of the earlier study it left out."""
    trials = ", ".join(f"{found.trial:04d}" for found in first.candidates) or words("none")
    said = [words("from-candidates", study=first.study, version=first.vllm_version, trials=trials)]
    said += [words("from-rules", n=len(first.rules))] if first.rules else []
    if first.stale_rules:
        differ = (words("from-differs", what=d.what, was=_known(d.was), now=_known(d.now)) for d in first.stale_by)
        said.append(words("from-stale", n=first.stale_rules, differs=", ".join(differ)))
    return "; ".join(said)


def _known(value: Value | None) -> str:
    return formatting.NOT_OBSERVED if value is None else str(value)


def _versions(study: StudyFiles) -> list[str]:
    return [version for record in study.records if (version := record.start.vllm_version)]


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


def _read(reading: TrafficReading, words: Words) -> list[str]:
    """Say what was read of a traffic file. `reading_line` says the same on a terminal."""
    texts = [words("read-rows", requests=formatting.count(reading.requests), rows=formatting.count(reading.rows))]
    for name, seen in (("prompt", reading.prompt), ("output", reading.output)):
        counts = {"p50": seen.p50, "p99": seen.p99, "high": seen.high}
        texts.append(words(f"read-{name}", **{key: formatting.count(tokens) for key, tokens in counts.items()}))
    texts += [] if reading.counted else [words("read-estimated")]
    texts.append(words(f"read-times-{reading.times}"))
    counted = {name: int(getattr(reading, name)) for name in COUNTED}
    texts += [words(f"read-{name}", n=formatting.count(n)) for name, n in counted.items() if n]
    for left in reading.left_out:
        why = words(f"left-out-{left.why}")
        texts.append(words("read-left-out", n=formatting.count(left.count), why=why, first=left.first))
    return texts


def repeat_command(study: StudyFiles) -> str:
    """Return the `tuner search` that plans this study again, under another name."""
    plan = study.plan
    if plan.rechecks is not None:
        return " ".join(map(shell_word, ["tuner", "recheck", plan.rechecks.study]))
    options: list[tuple[str, str | float | None]] = [
        ("from", plan.begins_with.study if plan.begins_with else None),
        ("model", plan.model),
        ("workload", plan.workload.file or plan.workload.name),
        ("space", plan.space.file or plan.space.name),
        *(("slo", str(slo)) for slo in plan.slos),
        (knobs.MAX_MODEL_LEN, _asked_length(plan)),
        *_machine_options(plan),
        ("trials", plan.starts),
        ("confirm", plan.confirm_starts),
        ("time-budget", "none" if plan.time_budget_s is None else f"{_number(plan.time_budget_s)}s"),
        ("patience", plan.patience),
        ("seed", plan.seed),
        ("study", f"{plan.study}-again"),
        ("storage", None if plan.storage.endswith(f"/{plan.study}/study.db") else plan.storage),
        *_load_options(plan),
        ("extra-body", extra_body_text(plan.workload)),
        ("warm-up-seconds", plan.load.warm_up_s),
        ("start-limit-seconds", plan.start_limit_s),
        ("vllm", None if plan.base.command == ("vllm", "serve") else shlex.join(plan.base.command)),
    ]
    words = [word for name, value in options if value is not None for word in (f"--{name}", _text(value))]
    words += ["--natural-stops"] if plan.workload.natural_stops else []
    extra = (*plan.base.extra, *_undivided(plan))
    return " ".join(map(shell_word, ["tuner", "search", *words, *(("--", *extra) if extra else ())]))


def _machine_options(plan: StudyPlan) -> list[tuple[str, str | float | None]]:
    has_gpus = any(group.gpus for group in plan.groups)
    units = plan.units or tuple(sorted({unit for group in plan.groups for unit in group.gpus or group.workers}))
    # A plan of before layouts does not name its units. Its servers had one size.
    size = len(plan.groups[0].gpus) if has_gpus and not plan.units else None
    # One door is named even if it was the only one of that machine: here, there may be others.
    door = "both" if plan.compares_doors else plan.doors[0] if len(plan.doors) == 1 else None
    return [
        ("gpus", ",".join(map(str, units)) if has_gpus else None),
        ("workers", len(units) if units and not has_gpus else None),
        ("layouts", ",".join(map(str, plan.asked_layouts)) or None if plan.units else None),
        (knobs.TENSOR_PARALLEL, size),
        ("door", door),
    ]


def _undivided(plan: StudyPlan) -> tuple[str, ...]:
    """Return vLLM's words for the layout of a server that has an undivided CPU."""
    if plan.units or not plan.asked_layouts:
        return ()
    return tuple(word for flag, size in plan.asked_layouts[0].flags.items() for word in words_for(flag, size))


def _load_options(plan: StudyPlan) -> list[tuple[str, str | float | None]]:
    load = plan.load
    if isinstance(load, Ladder):
        return [("levels", ",".join(map(str, load.levels))), ("level-seconds", load.level_s)]
    return [("probe-seconds", load.settings.probe_s), ("burstiness", load.arrivals.asked_for(plan.workload))]


def _asked_length(plan: StudyPlan) -> int | None:
    asked = plan.length is not None and plan.length.source is LengthSource.ASKED
    return plan.length.tokens if asked and plan.length is not None else None


def _text(value: str | float) -> str:
    return value if isinstance(value, str) else _number(value)


def _number(value: float) -> str:
    """Write a number so that it is read back as the same one: `20`, `0.1`, `1234567.5`."""
    return str(int(value)) if value == int(value) else repr(value)
