"""The page as text: sizes, content, what must not be in it."""

from __future__ import annotations

import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args

import pytest

from tests.report.conftest import HOSTILE
from tests.report.every_value import EVERY_CAUTION, EVERY_NOTE, EVERY_REASON
from tests.report.studies import Study, build_study
from tests.study.builders import REFUSAL, with_start
from tuner.bench.measured import Note
from tuner.bench.phrases import NOTES, NotePhrase, note_text
from tuner.launch import Door
from tuner.load.arrivals import ArrivalKind
from tuner.load.early_end import EARLY_ENDS, EarlyEndKind
from tuner.load.reading import TimesFound, WhyLeftOut
from tuner.measurement import CautionKind, LoadKind
from tuner.report import translations
from tuner.report.bottleneck import Bottleneck, Reading
from tuner.report.layouts import LayoutState
from tuner.report.page import report, write_report
from tuner.report.parameters import searched
from tuner.report.phrases import (
    CHINESE_EARLY_ENDS,
    CHINESE_NOTES,
    CHINESE_REASONS,
    CONCLUSIONS,
    note_line,
    reasons,
    sentence,
)
from tuner.report.summary import caution_rows
from tuner.report.tables import StudyFiles, read_study
from tuner.report.timeline import TrialPhase
from tuner.report.translations import TABLE, Language, Words
from tuner.study import learnt
from tuner.study.conclusion import ConclusionKey
from tuner.study.record import Role, TrialOutcome, TrialRecord
from tuner.study.result import Decision, Gain, Lack
from tuner.telemetry.cautions import Caution, Sign
from tuner.telemetry.gpu import THROTTLE_REASONS
from tuner.verdict import REASONS, Outcome, ReasonKind, Verdict

REPORT = Path(translations.__file__).parent


class Page(HTMLParser):
    """Text outside scripts, tags with attributes, and the ids of the figures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._silent = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._silent += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._silent -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.text += data

    @property
    def figures(self) -> list[str]:
        return [str(attributes["id"]) for tag, attributes in self.tags if "plot" in (attributes.get("class") or "")]


def with_result(files: StudyFiles, **changes: object) -> StudyFiles:
    assert files.result is not None
    return replace(files, result=replace(files.result, **changes))  # type: ignore[arg-type]


def test_the_first_screen_says_what_won(files: StudyFiles) -> None:
    page = Page(report(files))
    assert files.result is not None and files.winner is not None and files.default is not None
    assert files.result.sentence in page.text
    launched = files.quoted(files.winner)
    assert launched is not None
    assert " ".join(launched.start.launch.arguments) in page.text
    assert "VLLM_CACHE_ROOT" not in page.text
    gain = (files.winner.qps / files.default.qps - 1) * 100
    assert f"+{gain:.0f} %" in page.text


def test_a_gain_has_its_interval_and_one_that_was_not_confirmed_a_next_step(one_layout: StudyFiles) -> None:
    gain = Gain(-0.04, 0.12, 0.31, 6)
    kept = with_result(one_layout, winner=one_layout.default, decision=Decision.NOT_CONFIRMED, gain=gain)
    for language, said in (
        (Language.ENGLISH, "+12 % ± 19 %, from 6 pairs of fresh starts"),
        (Language.CHINESE, "+12 % ± 19 %（6 对全新启动）"),
    ):
        page = Page(report(kept, language=language))
        words = Words(language)
        assert said in page.text
        assert words("caution-not-confirmed") in page.text and words("caution-not-confirmed-next") in page.text


def test_every_part_is_there(files: StudyFiles) -> None:
    page = Page(report(files))
    assert {"best-so-far", "qps-against-ttft", "curve-qps", "curve-ttft", "weights", "timeline"} <= set(page.figures)
    assert sum(name.startswith("flag-") for name in page.figures) == len(searched(files.plan))
    assert sum(name.startswith("telemetry-") for name in page.figures) >= 8
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert {"summary", "flags", "why", "refused", "trials", "environment", "launch", "repeat"} <= ids


def test_nothing_is_loaded_from_elsewhere(files: StudyFiles) -> None:
    page = Page(report(files))
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "srcset", "poster"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None and policy.startswith("default-src 'none'")
    assert "unsafe-eval" not in policy and policy.count("'sha256-") == 2


def test_200_trials_are_under_6_mb_and_3_seconds(tmp_path: Path) -> None:
    folder = build_study(tmp_path, trials=200).folder
    began = time.process_time()
    path = write_report(folder, gpu_price=2.5)
    assert time.process_time() - began < 3
    assert path == folder / "report.html"
    assert path.stat().st_size < 6_000_000


@pytest.mark.parametrize("trials", [0, 1, 2])
def test_the_smallest_studies_make_a_page(tmp_path: Path, trials: int) -> None:
    study = build_study(tmp_path, trials=trials, telemetry=False)
    page = Page(write_report(study.folder).read_text(encoding="utf-8"))
    assert ("best-so-far" in page.figures) == (trials > 0)
    if trials == 0:
        assert "No start has finished yet." in page.text


def test_a_running_study_says_so(files: StudyFiles) -> None:
    assert "The search is not over" in Page(report(with_result(files, complete=False))).text
    assert "The search is not over" not in Page(report(files)).text


def test_cautions_are_shown_with_what_to_do(tmp_path: Path, files: StudyFiles) -> None:
    assert files.winner is not None
    text = Page(report(with_result(files, winner=replace(files.winner, fresh=False)))).text
    assert "they flatter it" in text and "confirm it with fresh starts" in text
    folder = build_study(tmp_path, trials=30, telemetry=False).folder
    (folder / "trials" / "0001" / "record.json").write_text("{")
    text = Page(report(read_study(folder))).text
    assert "trials/0001/record.json" in text
    assert "There is no telemetry file" in text
    (folder / "result.json").write_text("{}")
    assert "result.json" in Page(report(read_study(folder))).text


def test_a_default_that_won_stands_alone(files: StudyFiles) -> None:
    page = Page(report(with_result(files, winner=files.default)))
    assert "Winner beside default" not in page.text
    assert "vllm serve Qwen/Qwen3-32B" in page.text


def test_a_default_that_broke_the_limits_is_shown_and_named(files: StudyFiles) -> None:
    levels = next(r.levels for r in files.records if r.outcome is TrialOutcome.INFEASIBLE)
    start = replace(files.records[0], levels=levels, best=None, outcome=TrialOutcome.INFEASIBLE)
    records = (start, *(r for r in files.records[1:] if r.candidate != files.plan.baseline))
    study = replace(with_result(files, default=None, default_seen=files.default), records=records)
    text = Page(report(study)).text
    assert f"The default breaks the limits ({levels[0].verdict.reasons[0]}" in text
    assert (
        f"默认配置不满足限制（{reasons(levels[0].verdict, Words(Language.CHINESE))}"
        in Page(report(study, language="zh")).text
    )


def test_a_default_whose_server_died_broke_no_limit(files: StudyFiles) -> None:
    """Page and sentence, in both languages."""
    died = replace(with_start(files.records[0], cause=REFUSAL), best=None, outcome=TrialOutcome.DIED)
    records = (died, *(r for r in files.records[1:] if r.candidate != files.plan.baseline))
    study = replace(with_result(files, default=None, default_seen=files.default), records=records)
    assert f"The default dies under load ({REFUSAL.explanation})" in Page(report(study)).text
    assert "默认配置在负载下崩溃" in sentence(study, Words(Language.CHINESE))
    assert "不满足限制" not in sentence(study, Words(Language.CHINESE))


def test_cost_is_shown_only_with_a_price(files: StudyFiles) -> None:
    assert "cost per million output tokens" in Page(report(files, gpu_price=2.5)).text
    assert "cost per million output tokens" not in Page(report(files)).text


def test_hostile_text_stays_text_and_figures_are_json_that_cannot_end_their_script(hostile_study: Study) -> None:
    html = report(read_study(hostile_study.folder), gpu_price=1.0)
    page = Page(html)
    shown = HOSTILE.replace("\x1b[31m", "").replace("\x1b[0m", "").replace("\n", " ")
    assert page.text.count(shown) > 5
    assert [tag for tag, _ in page.tags].count("script") == len(page.figures) + 2
    assert not [a for _, a in page.tags if "onmouseover" in a]
    assert "\x1b" not in html
    assert "\\x1b[31mred\\x1b[0m\\nnext" in page.text  # the command to copy keeps every character, escaped
    assert "window.pwned=1</script>" not in html.replace("&lt;/script&gt;", "")
    blocks = re.findall(r'<script type="application/json" id="[\w-]+">(.*?)</script>', html, re.DOTALL)
    assert len(blocks) >= 10
    for block in blocks:
        assert set(json.loads(block)) == {"data", "layout"}
        assert "<" not in block


def test_the_page_speaks_chinese(files: StudyFiles) -> None:
    html = report(files, language="zh")
    page = Page(html)
    assert '<html lang="zh">' in html
    for said in ("启动命令", "迄今最佳", "负载曲线", "失败的启动", "测量环境与复现方法"):
        assert said in page.text
    left = re.findall(r"\b(feasible|refused|winner|hours since|offered load|Nothing|What|Every)\b", page.text)
    assert left == []


def with_cautions(files: StudyFiles, cautions: tuple[Caution, ...]) -> StudyFiles:
    def doubted(record: TrialRecord) -> TrialRecord:
        levels = tuple(replace(lv, measurement=replace(lv.measurement, cautions=cautions)) for lv in record.levels)
        return replace(record, levels=levels)

    return replace(files, records=tuple(map(doubted, files.records)))


def english_words(text: str) -> list[str]:
    """List the English words of a text, without names of metrics, units and commands."""
    names = r"[Pp]99|TTFT|ttft|GPU|CPU|ms|req/s|PERFORMANCE|nvidia-smi -q -d|vLLM|--[\w-]+|/metrics|`tuner bench|`"
    return re.findall(r"[A-Za-z]{2,}", re.sub(names, " ", text))


def test_reasons_and_notes_of_the_chinese_page_hold_no_english_word(files: StudyFiles) -> None:
    assert {reason.kind for reason in EVERY_REASON} == set(ReasonKind)
    assert {reason.ended.kind for reason in EVERY_REASON if reason.ended} == set(EarlyEndKind)
    assert {type(note) for note in EVERY_NOTE} == set(get_args(Note))
    chinese = Words(Language.CHINESE)
    said = [
        *(reasons(Verdict(Outcome.INFEASIBLE, (reason,)), chinese) for reason in EVERY_REASON),
        *(note_line(note, chinese) for note in EVERY_NOTE),
    ]
    assert [english_words(text) for text in said] == [[]] * len(said)
    first = replace(files.records[0], notes=EVERY_NOTE, outcome=TrialOutcome.BEHIND, best=None)
    noted = replace(files, records=(first, *files.records[1:]))
    text = Page(report(noted, language="zh")).text
    assert all(note_line(note, chinese) in text for note in EVERY_NOTE)
    assert all(note_text(note) in Page(report(noted)).text for note in EVERY_NOTE)


def test_cautions_of_the_chinese_page_hold_no_english_word(files: StudyFiles) -> None:
    assert {c.kind for c in EVERY_CAUTION} == set(CautionKind)
    assert {seen.sign for c in EVERY_CAUTION for seen in c.seen} == set(Sign)
    doubted = with_cautions(files, EVERY_CAUTION)
    rows = caution_rows(doubted, Words(Language.CHINESE))
    assert len(rows) == 2 * len(CautionKind)  # winner and default
    text = " ".join(f"{row.what} {row.detail} {row.next_step} {row.where}" for row in rows)
    assert english_words(text) == []
    for value in ("93 %", "12 ms", "18 ms", "301", "功耗上限", "4711", "310 ms", "402 ms", "1.3"):
        assert value in text
    assert all(row.next_step in Page(report(doubted, language="zh")).text for row in rows)


def test_sentences_of_every_decision_are_in_both_languages(files: StudyFiles) -> None:
    nothing, only = with_result(files, winner=None, default=None), with_result(files, default=None)
    studies = (files, only, nothing, replace(files, result=None))
    said = [sentence(study, Words(Language.CHINESE)) for study in studies]
    assert len(set(said)) == 4
    assert all("{" not in text and text for text in said)


def fields_of(template: str) -> set[str]:
    return set(re.findall(r"\{(\w+)", template))


def test_every_word_is_used_and_both_languages_have_the_same_fields() -> None:
    paths = [p for p in (*REPORT.glob("*.py"), *REPORT.glob("*.j2")) if not p.name.endswith("_texts.py")]
    sources = "".join(path.read_text(encoding="utf-8") for path in paths)
    families = (
        "outcome-", "lack-", "left-out-", "arrivals-", "phase-", "role-", "channel-", "caution-", "limit-", "read-",
        "reading-", "next-", "compare-", "load-", "state-", "door-", "sign-", "throttle-",
    )  # fmt: skip
    for key, texts in TABLE.items():
        assert fields_of(texts[0]) == fields_of(texts[1]), key
        assert key.startswith(families) or re.search(f"[\"']{key}[\"']", sources), f"{key} is not used"
    enums = ((Role, "role"), (TrialOutcome, "outcome"), (TrialPhase, "phase"), (CautionKind, "caution"), (Sign, "sign"))
    for names, family in (
        *enums,
        (ArrivalKind, "arrivals"),
        (Door, "door"),
        (LoadKind, "load"),
        (WhyLeftOut, "left-out"),
        (Lack, "lack"),
        (LayoutState, "state"),
        (Reading, "reading"),
        (TimesFound, "read-times"),
    ):
        assert all(f"{family}-{name}" in TABLE for name in names)
    assert all(f"caution-{kind}-next" in TABLE for kind in CautionKind)
    assert all(f"throttle-{reason.replace(' ', '-')}" in TABLE for _, reason in THROTTLE_REASONS)
    assert set(CONCLUSIONS) == set(ConclusionKey)
    assert set(CHINESE_REASONS) == set(REASONS) == set(ReasonKind)
    for kind in ReasonKind:
        assert fields_of(CHINESE_REASONS[kind]) == fields_of(REASONS[kind]), kind
    for chinese, english, keys in (
        (CHINESE_NOTES, NOTES, NotePhrase),
        (CHINESE_EARLY_ENDS, EARLY_ENDS, EarlyEndKind),
    ):
        assert list(chinese) == list(english) == list(keys)
        assert [fields_of(text) for text in chinese.values()] == [fields_of(text) for text in english.values()]
    for limit in Bottleneck:
        assert f"limit-{limit}" in TABLE and f"next-{limit}" in TABLE


LEARNT = (
    learnt.LearntRule(7, "memory-wanted", (learnt.FlagLimit("gpu-memory-utilization", ">", 0.953),), saved=4),
    learnt.LearntRule(0, "kv-capacity", (learnt.FlagLimit("kv-cache-memory-bytes", "<", 25_165_824),)),
    learnt.LearntRule(
        12,
        "oom",
        (learnt.FlagLimit("max-num-seqs", ">=", 512), learnt.FlagLimit("max-num-batched-tokens", ">=", 8192)),
        withdrawn_by=31,
    ),
)


def test_every_rule_stands_with_the_start_that_it_comes_from_and_the_starts_that_it_saved(files: StudyFiles) -> None:
    with_rules = with_result(files, learnt=LEARNT)
    page = Page(report(with_rules))
    assert "learnt" in {attributes.get("id") for _, attributes in page.tags}
    for said in ("gpu-memory-utilization > 0.953", "trial 7", "4 starts were saved", "max-num-seqs ≥ 512"):
        assert said in page.text
    assert "kv-cache-memory-bytes < 25,165,824" in page.text
    assert "would not hold one request" in page.text
    assert "withdrawn: trial 31 started" in page.text
    chinese = Page(report(with_rules, language="zh"))
    assert "学到的规则" in chinese.text and "已撤销：第 31 次启动成功" in chinese.text
    assert "withdrawn" not in chinese.text
    assert "learnt" not in {attributes.get("id") for _, attributes in Page(report(files)).tags}
