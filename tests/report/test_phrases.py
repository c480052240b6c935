"""The golden of what the page says about recorded values, in both languages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.report.every_value import EVERY_CAUTION, EVERY_NOTE, EVERY_REASON
from tuner.launch import Door
from tuner.layout import Layout
from tuner.load.arrivals import Arrivals
from tuner.report.phrases import caution_detail, chinese_conclusion, note_line, reasons
from tuner.report.translations import Language, Words
from tuner.slo import parse_slo
from tuner.study.conclusion import Conclusion, ConclusionKey, Servers
from tuner.study.result import Disturbance, Gain, Lack
from tuner.study.sentence import sentence
from tuner.verdict import Outcome, Verdict

GOLDEN = Path(__file__).parent / "golden" / "phrases.txt"
"""`python -m tests.report.test_phrases` writes it again."""


CONCLUSIONS = [
    Conclusion(key, (parse_slo("p99 ttft <= 500ms"),), 16, 3, 3600.0, 12.0, 10.0, 300.0, 2, 0.03, Arrivals(),
               Lack.DOES_NOT_START, servers=servers)
    for key in ConclusionKey
    for servers in (None, Servers(Layout(4), has_gpus=True, door=Door.NGINX),
                    Servers(Layout(2), has_gpus=False, door=Door.VLLM), Servers(Layout(1, 4), has_gpus=True))
]  # fmt: skip
CONFIRMED = [
    replace(said, gain=Gain(low, low + 0.03, low + 0.06, 2), disturbed=disturbed)
    for key, low, disturbed in (
        (ConclusionKey.NO_GAIN, -0.01, None),
        (ConclusionKey.SUSTAINS, 0.17, None),
        (ConclusionKey.GAINS, 0.17, None),
        (ConclusionKey.NOT_CONFIRMED, 0.17, Disturbance("2026-11-21T01:10:00+00:00", "2026-11-21T01:40:00+00:00")),
    )
    for said in CONCLUSIONS
    if said.key is key and said.servers is None
]


def said() -> str:
    lines = []
    for language in Language:
        words = Words(language)
        for caution in EVERY_CAUTION:
            key = f"caution-{caution.kind}"
            lines.append(f"{words(key)}: {caution_detail(caution, words)} → {words(f'{key}-next')}")
        lines += [reasons(Verdict(Outcome.INFEASIBLE, (reason,)), words) for reason in EVERY_REASON]
        lines += [note_line(note, words) for note in EVERY_NOTE]
    for conclusion in (*CONCLUSIONS, *CONFIRMED):
        lines += [sentence(conclusion), chinese_conclusion(conclusion, Words(Language.CHINESE))]
    return "\n".join(lines) + "\n"


def test_the_sentences_are_those_of_the_golden() -> None:
    assert said() == GOLDEN.read_text(encoding="utf-8")


if __name__ == "__main__":
    GOLDEN.write_text(said(), encoding="utf-8")
