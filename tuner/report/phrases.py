"""Recorded values → sentences in the page's language: the conclusion and the cautions."""

from __future__ import annotations

from functools import partial

from tuner import formatting
from tuner.bench.measured import Note
from tuner.bench.phrases import NOTES, NotePhrase, note_text
from tuner.candidate import Candidate
from tuner.launch import Door
from tuner.layout import split_layout
from tuner.load.early_end import EARLY_ENDS, EarlyEndKind
from tuner.report.tables import StudyFiles, TrialRow
from tuner.report.translations import TABLE, Language, Words
from tuner.study.conclusion import Conclusion, ConclusionKey, Recheck, RecheckAnswer, Servers, conclude
from tuner.study.record import TrialOutcome
from tuner.study.result import Disturbance
from tuner.study.sentence import gain_text, gained
from tuner.telemetry.cautions import FEW_REQUESTS, Caution, Observation, Sign
from tuner.verdict import REASONS, Reason, ReasonKind, Verdict

_AT = "P99 TTFT {ttft}（{limits}），无抢占，{sure}；{tail}。"
CONCLUSIONS = {
    ConclusionKey.NOTHING_FEASIBLE: "{so_far}没有候选配置在无抢占的情况下满足 {limits}；{tail}。",
    ConclusionKey.KEEP_DEFAULT: "{so_far}保留默认配置：没有候选配置显著超过它的 {qps}{servers}（{sure}）；{tail}。",
    ConclusionKey.NO_GAIN: "{so_far}保留默认配置：相对其 {qps}{servers}，最大提升为 {gain}（{sure}）；{tail}。",
    ConclusionKey.NOT_CONFIRMED: "未获确认{disturbed}：{keep} {qps}{servers}；{tail}。",
    ConclusionKey.GAINS: "QPS 比默认配置 {gain}{servers}，" + _AT,
    ConclusionKey.ONLY_WINNER: "{qps}{servers}（默认配置{lack}），" + _AT,
    ConclusionKey.SUSTAINS: "可持续 {rate} QPS{servers}{accuracy}（{arrivals}），比默认配置 {gain}，" + _AT,
    ConclusionKey.SUSTAINS_ONLY: "可持续 {rate} QPS{servers}{accuracy}（{arrivals}；默认配置{lack}），" + _AT,
}
"""Chinese template of each conclusion. The English sentence is recorded (study/sentence.py)."""

RECHECKS = {
    RecheckAnswer.STILL: "在 vLLM {now} 上{gain}；",
    RecheckAnswer.NO_LONGER: "在 vLLM {now} 上不再是最优配置{lack}；",
    RecheckAnswer.UNKNOWN: "尚不清楚它在 vLLM {now} 上是否仍是最优配置{lack}；",
    RecheckAnswer.UNDER_WAY: "正在 vLLM {now} 上复查{lack}；",
}
"""Chinese template of each answer of a recheck."""

_CHINESE_DOORS = {Door.VLLM: "vLLM 自带数据并行", Door.NGINX: "nginx"}

CHINESE_REASONS = {
    ReasonKind.CLIENT_BUSY: "压测端占用其 CPU 核的 {value:.0%}，是瓶颈",
    ReasonKind.CLIENT_LATE: "压测端 P99 延迟 {value:.0f} ms",
    ReasonKind.WITHIN_CLIENT_LAG: "{subject} 的超出量不大于压测端自身 {value:.1f} ms 延迟可能带来的误差",
    ReasonKind.OTHERS_BUSY: "其他程序占用 {value:.1f} 个核，而最安静的一级为 {of:.1f} 个",
    ReasonKind.GPU_THROTTLED: "GPU {value:.0f} 被降频：{subject}",
    ReasonKind.GPU_SHARED: "另一个进程在 GPU {value:.0f} 上计算：{subject}",
    ReasonKind.MEASURED_AGAIN: "已重新测量",
    ReasonKind.REQUESTS_FAILED: "{value:.0f} 个请求失败：{subject}",
    ReasonKind.PREEMPTIONS: "抢占 {value:.0f} 次",
    ReasonKind.LIMIT_BROKEN: "不满足 {subject}：{of:.0f} 个请求中测得 {value:.0f}ms",
    ReasonKind.UNANSWERED: "不满足 {subject}：过多请求没有得到响应",
    ReasonKind.BACKLOG_GROWS: "服务端跟不上：积压持续增长",
    ReasonKind.FELL_BEHIND: "服务端跟不上：后半段 {of:.0f} 个请求仅完成 {value:.0f} 个",
    ReasonKind.ENDED_EARLY: "提前结束：{ended}",
    ReasonKind.PREEMPTIONS_UNKNOWN: "未观测到抢占次数：/metrics 没有给出",
    ReasonKind.REQUESTS_MISSING: "还缺 {value:.0f} 个请求：至少 {of:.0f} 个才有 P99",
    ReasonKind.RECORDED: "{subject}",
}
"""Chinese text of each reason of a verdict."""

CHINESE_EARLY_ENDS = {
    EarlyEndKind.INTERRUPTED: "被中断",
    EarlyEndKind.BACKLOG_GROWS: "积压持续增长",
    EarlyEndKind.REQUEST_FAILED: "有请求失败",
    EarlyEndKind.PREEMPTED: "发生抢占",
    EarlyEndKind.LIMIT_EXCEEDED: "{late} 个请求超出 {limit}",
    EarlyEndKind.CLIENT_FROZEN: "压测端停顿了 {seconds:.0f} 秒",
    EarlyEndKind.NO_DESCRIPTORS: "压测端没有可用的文件描述符：请提高硬限制",
    EarlyEndKind.NO_PORTS: "压测端没有可用的本地端口：请扩大内核的本地端口范围",
    EarlyEndKind.NO_SOCKET_MEMORY: "压测端没有可用于套接字的内存：请提高内核的套接字内存上限",
    EarlyEndKind.RECORDED: "{recorded}",
}
"""Chinese text of each early end of a level."""

CHINESE_NOTES = {
    NotePhrase.NOT_OFFERED: "无法施加 {load}：{reasons}",
    NotePhrase.CLIENTS: "{clients:g} 个并发请求",
    NotePhrase.NOTHING_TRIED: "未试任何速率：闭环在 {seconds} 内仅达到 {loop}，探测无法得出结论",
    NotePhrase.RATE_FAILED: "在 {failed} 下不满足限制，而当前最佳可持续 {best}{tail}",
    NotePhrase.TAIL_SAYS: "；按尾延迟估计约为 {likely}",
    NotePhrase.LOOP_BEHIND: "闭环至多 {loop}，而当前最佳的闭环为 {best_loop}，可持续 {best}",
    NotePhrase.LOST_FOR_A_MOMENT: "服务端曾短暂不接受请求，但仍在运行",
}
"""Chinese text of each phrase of a note."""


def sentence(study: StudyFiles, words: Words) -> str:
    """Say what the study came to: in English as it was recorded, in Chinese from the same values."""
    if study.result is None:
        return words("no-result")
    if words.language is Language.ENGLISH:
        return formatting.one_line(study.result.sentence)
    return chinese_conclusion(conclude(study.plan, study.result, study.records), words)


def chinese_conclusion(said: Conclusion, words: Words) -> str:
    """Say a study's conclusion in one Chinese sentence."""
    time = formatting.duration(said.elapsed_s)
    before = _chinese_recheck(said.recheck, said, words) if said.recheck else ""
    text = CONCLUSIONS[said.key].format(
        so_far="" if said.complete else "目前",
        limits=", ".join(map(str, said.limits)),
        tail=f"共启动 {said.starts} 次，用时 {time}，其中 {said.refused} 次被拒绝",
        qps=formatting.qps(said.qps),
        rate=formatting.significant(said.qps),
        gain=gained(said),
        disturbed=_chinese_disturbed(said.disturbed),
        keep="保留默认配置" if said.default_qps else f"默认配置{words(f'lack-{said.lack}')}，最佳估计为",
        ttft=formatting.ms(said.p99_ttft_ms),
        sure=f"经 {said.confirmed} 次全新启动确认" if said.confirmed else "尚未经全新启动确认",
        accuracy="" if said.accuracy is None else f", ± {formatting.share(said.accuracy)}",
        arrivals="" if said.arrivals is None else words.arrivals(said.arrivals),
        lack=words(f"lack-{said.lack}"),
        servers=_chinese_servers(said.servers),
    )
    return before + text.replace("）（", "；")  # one pair of parentheses for both remarks


def _chinese_recheck(found: Recheck, said: Conclusion, words: Words) -> str:
    answer = RECHECKS[found.answer].format(
        now=found.now_version,
        gain="仍是最优配置" if said.gain is None else f"仍比默认配置 {gained(said)}",
        lack=f"（{words(f'lack-{found.lack}')}）" if found.lack else "",
    )
    then = gain_text(found.then, None, None) if found.then else formatting.qps(found.then_qps)
    return f"{answer}在研究 {found.study} 中为 {then}（vLLM {found.then_version}）。"


def _chinese_disturbed(span: Disturbance | None) -> str:
    if span is None:
        return "（没有足够的全新启动）"
    return f"（{formatting.time_of_day(span.begin)} 至 {formatting.time_of_day(span.end)} 机器受到干扰）"


def _chinese_servers(servers: Servers | None) -> str:
    if servers is None:
        return ""
    units = f"{servers.layout.gpus} 张 GPU" if servers.has_gpus else f"{servers.layout.gpus} 个 CPU worker"
    door = f"，经 {_CHINESE_DOORS[servers.door]}" if servers.door in _CHINESE_DOORS else ""
    return f"（{units}，{servers.layout}{door}）"


def remark(row: TrialRow, words: Words) -> str:
    """Say why a trial is not feasible, or what else is to be known of it. Empty if there is nothing."""
    record, level = row.record, row.level
    if record.start.cause is not None:
        return formatting.one_line(record.start.cause.explanation)
    noted = record.outcome in (TrialOutcome.BEHIND, TrialOutcome.INVALID) and record.notes
    if record.best is None and level is not None and not noted:
        return reasons(level.verdict, words)
    return "; ".join(note_line(note, words) for note in record.notes)


def candidate_line(candidate: Candidate) -> str:
    """Write a candidate as its layout, then its flags. A dash for vLLM's default."""
    layout, flags = split_layout(candidate.as_dict())
    said = " ".join(f"{flag}={value}" for flag, value in flags.items())
    parts = [str(layout or ""), said]
    return formatting.one_line(" · ".join(filter(None, parts))) or formatting.NOT_OBSERVED


def note_line(note: Note, words: Words) -> str:
    """Say a note of a trial. A note of schema 1 is English text only."""
    texts = NOTES if words.language is Language.ENGLISH else CHINESE_NOTES
    return formatting.one_line(note_text(note, texts, partial(_reason, words=words)))


def reasons(verdict: Verdict, words: Words) -> str:
    """Say why a level is not feasible."""
    return "; ".join(_reason(reason, words) for reason in verdict.reasons)


def _reason(reason: Reason, words: Words) -> str:
    is_english = words.language is Language.ENGLISH
    texts, ends = (REASONS, EARLY_ENDS) if is_english else (CHINESE_REASONS, CHINESE_EARLY_ENDS)
    return formatting.one_line(reason.said(texts, ends))


def caution_detail(caution: Caution, words: Words) -> str:
    """Say what was seen. A record of schema 1 has it as English text only."""
    if caution.recorded:
        return formatting.one_line(caution.recorded)
    separator = ", " if words.language is Language.ENGLISH else "，"
    return separator.join(_seen(observation, words) for observation in caution.seen)


def _seen(seen: Observation, words: Words) -> str:
    value = _value(seen.sign, seen.value, words)
    return words(f"sign-{seen.sign}", value=value, gpu=seen.gpu, needed=formatting.count(FEW_REQUESTS))


def _value(sign: Sign, value: float | str | None, words: Words) -> str:
    if isinstance(value, str):
        # A later driver may know a reason that has no translation.
        return words(key) if (key := f"throttle-{value.replace(' ', '-')}") in TABLE else formatting.one_line(value)
    match sign:
        case Sign.CPU_SHARE:
            return formatting.share(value)
        case Sign.COMPLETED:
            return formatting.count(value)
        case Sign.PROCESS_ID:
            return formatting.NOT_OBSERVED if value is None else f"{value:.0f}"
        case Sign.FOREIGN_CORES:
            return formatting.NOT_OBSERVED if value is None else f"{value:.1f}"
        case _:
            return formatting.ms(value)
