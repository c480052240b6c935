"""What the search says in sentences: what won, by how much and how surely; what GPU groups cost each other."""

from __future__ import annotations

from collections.abc import Sequence

from tuner import formatting
from tuner.measurement import Measurement
from tuner.study import confirm
from tuner.study.plan import OpenSearch, StudyPlan
from tuner.study.record import TrialOutcome, TrialRecord
from tuner.study.result import Decision, Figures, Lack

LACKS = {
    Lack.BREAKS_LIMITS: "breaks the limits",
    Lack.DOES_NOT_START: "does not start",
    Lack.DIES_UNDER_LOAD: "dies under load",
    Lack.NOT_MEASURED: "could not be measured",
}


def sentence(
    plan: StudyPlan,
    decision: Decision,
    winner: Figures | None,
    default: Figures | None,
    records: Sequence[TrialRecord],
    elapsed_s: float,
) -> str:
    """The study in one sentence: what won, by how much, against which limits, and how sure that is."""
    refused = sum(r.outcome in (TrialOutcome.REFUSED, TrialOutcome.DIED) for r in records)
    tail = f"{len(records)} starts, {formatting.duration(elapsed_s)}, {refused} refused"
    limits = ", ".join(map(str, plan.slos))
    if decision is Decision.NOTHING_FEASIBLE or (winner is None and default is None):
        return f"No candidate kept {limits} without preemption; {tail}."
    if decision is Decision.KEEP_DEFAULT:
        shown = default or winner
        assert shown is not None
        sure = f", {_starts(shown)}," if shown.fresh else ""
        return f"Keep the default: nothing beat its {formatting.qps(shown.qps)}{sure} by more than the noise; {tail}."
    assert winner is not None
    than = f"where the default {LACKS[confirm.lack(records, plan.baseline) or Lack.NOT_MEASURED]}"
    search = plan.load.open
    gain = _gain(winner, default, than) if search is None else _sustained(winner, default, than, search)
    sure = _starts(winner) if winner.fresh else "not confirmed by a fresh start yet"
    return f"{gain} at P99 TTFT {formatting.ms(winner.p99_ttft_ms)} ({limits}), no preemption, {sure}; {tail}."


def _starts(fresh: Figures) -> str:
    return f"confirmed in {len(fresh.trials)} fresh start{'s' if len(fresh.trials) > 1 else ''}"


def _gain(winner: Figures, default: Figures | None, than: str) -> str:
    """`than` is said where there are no figures of the default to compare with."""
    if default is None:
        return f"{formatting.qps(winner.qps)} {than}"
    return f"{formatting.change(winner.qps, default.qps)} QPS over the default"


def _sustained(winner: Figures, default: Figures | None, than: str, search: OpenSearch) -> str:
    if default is not None:
        than = f"{formatting.change(winner.qps, default.qps)} over the default"
    sure = f", ± {formatting.share(confirm.accuracy(winner.qps, search))}" if winner.fresh else ""
    return f"Sustains {formatting.significant(winner.qps)} QPS{sure} ({search.arrivals}), {than}"


def disturbance(alone: Measurement, together: Sequence[TrialRecord]) -> str:
    """What running side by side costs, in words."""
    side_by_side = [r.levels[0].measurement.qps for r in together if r.levels]
    slowest = min((qps for qps in side_by_side if qps is not None), default=None)
    if slowest is None or alone.qps is None:
        return "whether GPU groups disturb each other could not be measured; finalists are measured alone all the same"
    return (
        f"GPU groups side by side: {formatting.change(slowest, alone.qps)} QPS on the slowest of {len(together)} "
        f"against one alone; finalists are measured alone"
    )
