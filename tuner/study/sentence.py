"""Result of a study, with its final sentence in English."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from tuner import formatting
from tuner.launch import Door
from tuner.layout import Layout
from tuner.study import confirm
from tuner.study.conclusion import Conclusion, ConclusionKey, Recheck, RecheckAnswer, Servers, conclude
from tuner.study.doors import doors
from tuner.study.learnt import LearntRule
from tuner.study.plan import StudyPlan
from tuner.study.record import TrialOutcome, TrialRecord
from tuner.study.result import Decision, Disturbance, Gain, Lack, LayoutStanding, StudyResult

LACKS = {
    Lack.BREAKS_LIMITS: "breaks the limits",
    Lack.DOES_NOT_START: "does not start",
    Lack.DIES_UNDER_LOAD: "dies under load",
    Lack.NOT_MEASURED: "could not be measured",
}
"""Words for each reason why a candidate has no figures."""


DOORS = {Door.VLLM: "vLLM's data parallelism", Door.NGINX: "nginx"}
"""Words for the doors of several servers."""


def result_of(
    plan: StudyPlan,
    records: Sequence[TrialRecord],
    *,
    broken: Collection[Layout] = (),
    learnt: tuple[LearntRule, ...] = (),
    layouts: tuple[LayoutStanding, ...] = (),
    elapsed_s: float,
    updated_at: str,
    complete: bool,
) -> StudyResult:
    """Say what a study has come to. `broken` layouts cannot be confirmed."""
    answer = confirm.answer(plan, records, broken, complete=complete)
    keeps = answer.decision in (Decision.KEEP_DEFAULT, Decision.NOT_CONFIRMED) and answer.default is not None
    shown = answer.default if keeps else answer.winner
    result = StudyResult(
        study=plan.study,
        decision=answer.decision,
        winner=shown,
        default=answer.default,
        default_seen=confirm.seen(records, plan.baseline),
        starts=len(records),
        refused=sum(r.outcome in (TrialOutcome.REFUSED, TrialOutcome.DIED) for r in records),
        elapsed_s=elapsed_s,
        complete=complete,
        sentence="",
        updated_at=updated_at,
        learnt=learnt,
        layouts=layouts,
        doors=doors(plan, records, shown.candidate) if shown is not None else (),
        gain=answer.gain,
        disturbed=answer.disturbed,
    )
    return replace(result, sentence=sentence(conclude(plan, result, records)))


def sentence(said: Conclusion) -> str:
    """Say a study's conclusion in one English sentence. That of a recheck follows its answer."""
    return f"{_recheck(said.recheck, said)} {_result(said)}" if said.recheck else _result(said)


def _recheck(found: Recheck, said: Conclusion) -> str:
    """Answer if the winner of an earlier study still is one."""
    match found.answer:
        case RecheckAnswer.STILL if said.gain is not None:
            answer = f"Still {gained(said)} over the default"
        case RecheckAnswer.STILL:
            answer = "Still the winner"
        case RecheckAnswer.NO_LONGER:
            answer = "No longer the winner"
        case RecheckAnswer.UNKNOWN:
            answer = "Not known if it still is the winner"
        case RecheckAnswer.UNDER_WAY:
            answer = "Recheck under way"
    lacks = f" ({LACKS[found.lack]})" if found.lack and found.answer is not RecheckAnswer.STILL else ""
    then = gain_text(found.then, None, None) if found.then else formatting.qps(found.then_qps)
    versions = found.now_version, found.then_version
    return f"{answer} with vLLM {versions[0]}{lacks}; in {found.study} it was {then} with {versions[1]}."


def _result(said: Conclusion) -> str:
    limits = ", ".join(map(str, said.limits))
    tail = f"{said.starts} starts, {formatting.duration(said.elapsed_s)}, {said.refused} refused"
    qps = f"{formatting.qps(said.qps)}{_servers(said.servers)}"
    match said.key:
        case ConclusionKey.NOTHING_FEASIBLE:
            return f"No candidate {'kept' if said.complete else 'has yet kept'} {limits} without preemption; {tail}."
        case ConclusionKey.KEEP_DEFAULT:
            sure = f", {_runs(said)}," if said.confirmed else ""
            keep = "Keep the default" if said.complete else "The default leads so far"
            return f"{keep}: nothing beat its {qps}{sure} by more than the noise; {tail}."
        case ConclusionKey.NO_GAIN:
            keep = "Keep the default" if said.complete else "The default leads so far"
            return f"{keep}: the best gain over its {qps} is {gained(said)}, {_runs(said)}; {tail}."
        case ConclusionKey.NOT_CONFIRMED:
            keep = (
                "keep the default, with"
                if said.default_qps
                else f"the default {LACKS[said.lack]}, the best estimate is"
            )
            return f"Not confirmed{_disturbed(said.disturbed)}: {keep} {qps}; {tail}."
        case ConclusionKey.GAINS:
            gain = f"{gained(said)} QPS over the default{_servers(said.servers)}"
        case ConclusionKey.ONLY_WINNER:
            gain = f"{qps} where the default {LACKS[said.lack]}"
        case ConclusionKey.SUSTAINS:
            gain = f"{_sustains(said)}, {gained(said)} over the default"
        case ConclusionKey.SUSTAINS_ONLY:
            gain = f"{_sustains(said)}, where the default {LACKS[said.lack]}"
    sure = _runs(said) if said.confirmed else "not confirmed by a fresh start yet"
    return f"{gain} at P99 TTFT {formatting.ms(said.p99_ttft_ms)} ({limits}), no preemption, {sure}; {tail}."


def gained(said: Conclusion) -> str:
    """Say the gain over the default, with its interval once there is one."""
    return gain_text(said.gain, said.qps, said.default_qps)


def gain_text(gain: Gain | None, qps: float | None, default_qps: float | None) -> str:
    """Say a gain with its interval. Before the first pair of confirmation runs two figures are compared."""
    if gain is None:
        return formatting.change(qps, default_qps)
    return formatting.change_within(gain.low, gain.middle, gain.high)


def _disturbed(span: Disturbance | None) -> str:
    if span is None:
        return " by fresh starts"
    begin, end = formatting.time_of_day(span.begin), formatting.time_of_day(span.end)
    return f", the machine was disturbed from {begin} to {end}"


def _runs(said: Conclusion) -> str:
    return f"confirmed in {said.confirmed} fresh start{'s' if said.confirmed > 1 else ''}"


def _sustains(said: Conclusion) -> str:
    sure = "" if said.accuracy is None else f", ± {formatting.share(said.accuracy)}"
    return f"Sustains {formatting.significant(said.qps)} QPS{_servers(said.servers)}{sure} ({said.arrivals})"


def _servers(servers: Servers | None) -> str:
    """Say on how many GPUs, in which layout and behind which door. Empty for one server on one GPU."""
    if servers is None:
        return ""
    units = "GPUs" if servers.has_gpus else "CPU workers"
    door = f" through {DOORS[servers.door]}" if servers.door in DOORS else ""
    return f" on {servers.layout.gpus} {units} as {servers.layout}{door}"
