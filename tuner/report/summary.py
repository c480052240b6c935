"""Study → rows of the first screen: winner beside default, the flags that differ, cautions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tuner import formatting
from tuner.flagwords import value_text
from tuner.launch import LaunchSpec
from tuner.layout import FLAGS
from tuner.measurement import Load, Measurement
from tuner.report.cost import cost
from tuner.report.phrases import caution_detail, remark
from tuner.report.quote import production
from tuner.report.tables import StudyFiles, shown_level, trial_rows
from tuner.report.translations import Words
from tuner.study.kv_budget import LENGTH
from tuner.study.record import TrialOutcome, TrialRecord, accepted_tokens
from tuner.study.result import Decision, Figures, Gain, StudyResult


class Side(NamedTuple):
    """A candidate's figures with the measurement of its worst trial, whose P99 is quoted. `saturation` is the QPS of
    a closed loop that kept its server full. None in a closed-loop study. `level` is what one server showed for
    `replicas` of the machine, `gpus` are those of them all."""

    figures: Figures
    level: Measurement | None
    gpus: int
    load: Load | None
    replicas: int = 1
    saturation: float | None = None
    accepts: int | None = None


def side(study: StudyFiles, figures: Figures | None) -> Side | None:
    record = study.quoted(figures)
    if figures is None or record is None:
        return None
    levels = [shown_level(r) for r in study.starts_of(figures.candidate) if r.trial in figures.trials]
    measured = [level.measurement for level in levels if level is not None]
    worst = max(measured, key=lambda m: m.ttft_ms.p99 if m.ttft_ms else 0.0, default=None)
    full = next((r.saturation for r in study.starts_of(figures.candidate) if r.saturation is not None), None)
    quoted = shown_level(record)
    load = quoted.measurement.load if quoted else None
    accepts = accepted_tokens(figures.candidate, study.records)
    gpus = record.replicas * len(record.start.gpus)
    return Side(figures, worst, gpus, load, record.replicas, full, accepts)


class SummaryRow(NamedTuple):
    """One figure of both sides. `change` is empty if a percentage would say nothing."""

    label: str
    first: str
    second: str
    change: str = ""


def summary_rows(first: Side, second: Side | None, words: Words, gpu_price: float | None = None) -> list[SummaryRow]:
    """List the figures of the winner, `first`, and of what it is compared with. `second` is None without one."""

    def row(key: str, value: Callable[[Side], float | None], text: Callable[[float | None], str]) -> SummaryRow:
        one, other = value(first), value(second) if second else None
        return SummaryRow(words(key), text(one), text(other) if second else "", formatting.change(one, other))

    def said(key: str, text: Callable[[Side], str]) -> SummaryRow:
        return SummaryRow(words(key), text(first), text(second) if second else "")

    rows = [
        row("row-qps", lambda s: s.figures.qps, formatting.qps),
        said("row-qps-range", _qps_range),
        row("row-p99", lambda s: s.figures.p99_ttft_ms, formatting.ms),
        said("row-p99-bounds", _p99_bounds),
        row("row-p50", lambda s: s.level.ttft_ms.p50 if s.level and s.level.ttft_ms else None, formatting.ms),
        row("row-tpot", lambda s: s.level.tpot_ms.p50 if s.level and s.level.tpot_ms else None, formatting.ms),
        row("row-e2e", lambda s: s.level.e2e_ms.p99 if s.level and s.level.e2e_ms else None, formatting.ms),
        row("row-tokens", _output_tokens_per_s, formatting.significant),
        said("row-accepts", lambda s: formatting.count(s.accepts)),
        said("row-load", lambda s: words.load(s.load, s.replicas)),
        said("row-preemptions", lambda s: formatting.count(s.figures.preemptions)),
        said("row-failed", lambda s: formatting.count(s.level.failed_total if s.level else None)),
        said("row-kv-peak", lambda s: formatting.share(s.level.server.kv_usage_peak if s.level else None)),
        said(
            "row-requests", lambda s: formatting.count(s.level.ttft_ms.count if s.level and s.level.ttft_ms else None)
        ),
        said(
            "row-starts",
            lambda s: words("starts-fresh" if s.figures.fresh else "starts-chose", n=len(s.figures.trials)),
        ),
    ]
    if first.saturation is not None:
        rows.insert(2, row("row-saturation", lambda s: s.saturation, formatting.qps))
    if gpu_price is not None:
        price = gpu_price

        def tokens(s: Side) -> float | None:
            return cost(s.figures.qps, s.level, s.gpus, price).per_million_output_tokens

        def requests(s: Side) -> float | None:
            return cost(s.figures.qps, s.level, s.gpus, price).per_thousand_requests

        rows.append(row("row-cost-tokens", tokens, formatting.price))
        rows.append(row("row-cost-requests", requests, formatting.price))
    return rows


def _output_tokens_per_s(s: Side) -> float | None:
    tokens_per_s = s.level.output_tokens_per_s if s.level else None
    return None if tokens_per_s is None else s.replicas * tokens_per_s


def _qps_range(s: Side) -> str:
    return f"{formatting.significant(s.figures.qps_low)} – {formatting.significant(s.figures.qps_high)}"


def _p99_bounds(s: Side) -> str:
    ttft = s.level.ttft_ms if s.level else None
    if ttft is None or ttft.p99_low is None:
        return formatting.NOT_OBSERVED
    high = "?" if ttft.p99_high is None else formatting.ms(ttft.p99_high)
    return f"{formatting.ms(ttft.p99_low)} – {high}"


class FlagRow(NamedTuple):
    """One flag of both launches. `second` is None without a second launch."""

    flag: str
    first: str
    second: str | None


def flag_rows(first: LaunchSpec, second: LaunchSpec | None, words: Words) -> list[FlagRow]:
    """List the flags of a launch, or those in which two launches differ."""
    one, other = _shown_flags(first), _shown_flags(second) if second else None
    names = [*one, *(name for name in other or () if name not in one)]
    absent = words("flag-absent")
    return [
        FlagRow(
            formatting.one_line(name),
            formatting.one_line(one.get(name, absent)),
            None if other is None else formatting.one_line(other.get(name, absent)),
        )
        for name in names
        if other is None or one.get(name) != other.get(name)
    ]


Launched = tuple[StudyFiles, TrialRecord]
"""A trial with its study."""


def launch_rows(first: Launched, second: Launched | None, words: Words) -> list[FlagRow]:
    """List layout, door and flags of a launch, or those in which two launches differ."""
    pair = [launched for launched in (first, second) if launched is not None]
    rows = flag_rows(first[1].start.launch, second[1].start.launch if second else None, words)
    if not any(study.plan.searches_layouts or study.has_replicas for study, _ in pair):
        return rows
    machines = [production(record, study.plan) for study, record in pair]
    of_layout = [
        (words("layout"), [str(study.plan.layout_of(record.candidate)) for study, record in pair]),
        (words("door"), [words(f"door-{machine.door}") for machine in machines]),
    ]
    made = [FlagRow(name, texts[0], texts[1] if second else None) for name, texts in of_layout]
    return [*(row for row in made if row.first != row.second), *(row for row in rows if row.flag not in FLAGS)]


def _shown_flags(launch: LaunchSpec) -> dict[str, str]:
    return {flag: value_text(value) for flag, value in launch.flags}


class CautionRow(NamedTuple):
    what: str
    detail: str
    next_step: str
    where: str


def caution_rows(study: StudyFiles, words: Words) -> list[CautionRow]:
    """List what makes the quoted figures less sure, the same caution of several trials once."""
    rows: dict[tuple[str, str], CautionRow] = {}
    for unread in study.unread:
        rows[unread] = CautionRow(words("caution-unread"), f"{unread.file}: {unread.why}", "", "")
    for name, figures in (("winner", study.winner), ("default", study.default)):
        if figures is None or (name == "winner" and study.default_won):
            continue
        for record in study.starts_of(figures.candidate):
            level = shown_level(record)
            if level is None or record.trial not in figures.trials:
                continue
            m = level.measurement
            for caution in m.cautions:
                where = words(
                    "caution-where", who=words(name), trial=record.trial, load=words.load(m.load, record.replicas)
                )
                key = f"caution-{caution.kind}"
                made = CautionRow(words(key), caution_detail(caution, words), words(f"{key}-next"), where)
                rows.setdefault((name, key), made)
    return [*rows.values(), *_about_length(study, words), *_about_confirmation(study.result, words)]


def gain_rows(gain: Gain | None, words: Words) -> list[SummaryRow]:
    """Show the best candidate's gain with its interval. Nothing before the first pair of confirmation runs."""
    if gain is None:
        return []
    said = formatting.change_within(gain.low, gain.middle, gain.high)
    return [SummaryRow(words("row-gain"), words("gain-of-pairs", gain=said, pairs=gain.pairs), "")]


def length_rows(study: StudyFiles, words: Words) -> list[SummaryRow]:
    """Show what longer requests cost, where the study searched their length; nothing where it measured one length."""
    if all(parameter.flag != LENGTH for parameter in study.plan.parameters):
        return []
    best: dict[int, float] = {}
    for record in study.records:
        tokens = accepted_tokens(record.candidate, [record])
        if record.qps is not None and record.outcome is TrialOutcome.FEASIBLE and tokens is not None:
            best[tokens] = max(record.qps, best.get(tokens, 0.0))
    # A length is worth a word only where no server that accepts longer requests was as fast.
    shown = [n for n in sorted(best, reverse=True) if best[n] > max((q for m, q in best.items() if m > n), default=0)]
    if len(best) < 2:
        return []
    said = [words("by-length", qps=formatting.qps(best[n]), tokens=f"{n:,}") for n in (*shown[:1], *shown[1:][-3:])]
    return [SummaryRow(words("row-by-length"), "; ".join(said), "")]


def _about_length(study: StudyFiles, words: Words) -> list[CautionRow]:
    length = study.plan.length
    if length is None or length.tokens is None or not length.only_the_workload or study.default_won:
        return []
    return [CautionRow(words("caution-length", tokens=f"{length.tokens:,}"), "", words("caution-length-next"), "")]


def _about_confirmation(result: StudyResult | None, words: Words) -> list[CautionRow]:
    if result is None or result.winner is None:
        return []
    if result.decision is Decision.NOT_CONFIRMED:
        return [CautionRow(words("caution-not-confirmed"), "", words("caution-not-confirmed-next"), "")]
    if not result.winner.fresh:
        return [CautionRow(words("caution-not-fresh"), "", words("caution-not-fresh-next"), "")]
    if len(result.winner.trials) == 1:
        return [CautionRow(words("caution-one-start"), "", words("caution-one-start-next"), "")]
    return []


def default_reasons(study: StudyFiles, words: Words) -> str:
    """Say why the default's trials were not feasible, each reason once. Empty if all were."""
    rows = [row for row in trial_rows(study) if row.candidate == study.plan.baseline and row.level is not None]
    said = [remark(row, words) for row in rows if row.record.best is None and row.record.role.measures]
    return "; ".join(dict.fromkeys(filter(None, said)))
