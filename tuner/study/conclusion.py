"""Decision on a study's final sentence, apart from its language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from tuner.launch import Door
from tuner.layout import Layout
from tuner.load.arrivals import Arrivals
from tuner.slo import Slo
from tuner.study import confirm
from tuner.study.accuracy import accuracy
from tuner.study.plan import OpenSearch, StudyPlan
from tuner.study.record import TrialRecord
from tuner.study.result import Decision, Disturbance, Figures, Gain, Lack, StudyResult


class ConclusionKey(StrEnum):
    """Sentence that a study ends with. Each language has one template per key. The keys with `SUSTAINS` belong to
    open-loop studies, those with `ONLY` to a default without figures. With `NO_GAIN` the interval of the best gain
    includes 0."""

    NOTHING_FEASIBLE = "nothing-feasible"
    KEEP_DEFAULT = "keep-default"
    NO_GAIN = "no-gain"
    NOT_CONFIRMED = "not-confirmed"
    GAINS = "gains"
    ONLY_WINNER = "only-winner"
    SUSTAINS = "sustains"
    SUSTAINS_ONLY = "sustains-only"


class RecheckAnswer(StrEnum):
    """Answer of a recheck, which precedes the final sentence."""

    STILL = "still"
    NO_LONGER = "no-longer"
    UNKNOWN = "unknown"
    UNDER_WAY = "under-way"


@dataclass(frozen=True, slots=True)
class Recheck:
    """Answer of a recheck beside what the earlier study found. `then` is the gain there, None if it had none.

    `lack` says why the candidate has no figures. None if it has.
    """

    answer: RecheckAnswer
    study: str
    then: Gain | None
    then_qps: float
    then_version: str
    now_version: str
    lack: Lack | None = None


@dataclass(frozen=True, slots=True)
class Servers:
    """Servers behind a figure, on GPUs or on shares of a CPU. `door` is None for one, and before a confirmation run."""

    layout: Layout
    has_gpus: bool
    door: Door | None = None


@dataclass(frozen=True, slots=True)
class Conclusion:
    """Key of a study's final sentence, and the figures that the sentence quotes.

    Args:
        qps: Figure of the winner, or of the default where that is kept.
        default_qps: Figure of the default. None if it has none that counts.
        gain: Gain over the default with its interval. None without paired confirmation runs.
        disturbed: Time in which the machine was not quiet, so that nothing was confirmed. None if it was quiet.
        lack: Reason why the default has no figures; read only by the keys with `ONLY`.
        confirmed: Number of confirmation runs behind `qps`. 0 if there are none yet.
        accuracy: Share by which the rate may be off. None before a confirmation run, and in a closed loop.
        arrivals: Arrival process of an open-loop study. None in a closed loop.
        complete: False while trials are to come.
        servers: Those behind `qps`. None if it is one server on one GPU.
        recheck: Answer of a recheck. None in a search.
    """

    key: ConclusionKey
    limits: tuple[Slo, ...]
    starts: int
    refused: int
    elapsed_s: float
    qps: float | None = None
    default_qps: float | None = None
    p99_ttft_ms: float | None = None
    confirmed: int = 0
    accuracy: float | None = None
    arrivals: Arrivals | None = None
    lack: Lack = Lack.NOT_MEASURED
    complete: bool = True
    servers: Servers | None = None
    gain: Gain | None = None
    disturbed: Disturbance | None = None
    recheck: Recheck | None = None


def conclude(plan: StudyPlan, result: StudyResult, records: Sequence[TrialRecord]) -> Conclusion:
    """Choose the sentence of a study so far. The sentence in `result` is not read."""
    search = plan.load if isinstance(plan.load, OpenSearch) else None
    shown = result.winner
    key = _key(result, is_open=search is not None)
    starts, refused, recheck = result.starts, result.refused, _recheck(plan, result, records)
    if shown is None:
        return Conclusion(key, plan.slos, starts, refused, result.elapsed_s, complete=result.complete, recheck=recheck)
    return Conclusion(
        key=key,
        limits=plan.slos,
        starts=starts,
        refused=refused,
        elapsed_s=result.elapsed_s,
        qps=shown.qps,
        default_qps=result.default.qps if result.default else None,
        p99_ttft_ms=shown.p99_ttft_ms,
        confirmed=len(shown.trials) if shown.fresh else 0,
        accuracy=accuracy(shown.qps, search) if search is not None and shown.fresh else None,
        arrivals=search.arrivals if search is not None else None,
        lack=confirm.lack(records, plan.baseline) or Lack.NOT_MEASURED,
        complete=result.complete,
        servers=_servers(plan, result, shown),
        gain=result.gain,
        disturbed=result.disturbed,
        recheck=recheck,
    )


def _recheck(plan: StudyPlan, result: StudyResult, records: Sequence[TrialRecord]) -> Recheck | None:
    before = plan.rechecks
    if before is None:
        return None
    lack = confirm.lack(records, before.candidate)
    has_figures = confirm.figures(plan, records, before.candidate) is not None
    if not result.complete:
        answer = RecheckAnswer.UNDER_WAY
    elif result.decision is Decision.WINNER:
        answer = RecheckAnswer.STILL
    elif result.decision is Decision.NOT_CONFIRMED or lack is Lack.NOT_MEASURED or not (has_figures or lack):
        answer = RecheckAnswer.UNKNOWN
    else:
        answer = RecheckAnswer.NO_LONGER
    then = None if before.gain is None else Gain(*before.gain, pairs=0)
    versions = (before.vllm_version, plan.vllm_version)
    return Recheck(answer, before.study, then, before.qps, *versions, lack=lack)


def _servers(plan: StudyPlan, result: StudyResult, shown: Figures) -> Servers | None:
    layout = plan.layout_of(shown.candidate)
    if layout.gpus == 1:
        return None
    door = next((d.door for d in result.doors if d.is_quoted and shown.fresh), None)
    return Servers(layout, any(group.gpus for group in plan.groups), door)


def _key(result: StudyResult, *, is_open: bool) -> ConclusionKey:
    if result.decision is Decision.NOTHING_FEASIBLE or (result.winner is None and result.default is None):
        return ConclusionKey.NOTHING_FEASIBLE
    if result.decision is Decision.NOT_CONFIRMED:
        return ConclusionKey.NOT_CONFIRMED
    if result.decision is Decision.KEEP_DEFAULT:
        return ConclusionKey.KEEP_DEFAULT if result.gain is None else ConclusionKey.NO_GAIN
    if result.default is None:
        return ConclusionKey.SUSTAINS_ONLY if is_open else ConclusionKey.ONLY_WINNER
    return ConclusionKey.SUSTAINS if is_open else ConclusionKey.GAINS
