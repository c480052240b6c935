"""The golden of what the page says about recorded values, in both languages."""

from __future__ import annotations

from pathlib import Path

from tests.report.every_value import EVERY_CAUTION, EVERY_NOTE, EVERY_REASON
from tuner.report.phrases import caution_detail, note_line, reasons
from tuner.report.translations import Language, Words
from tuner.verdict import Outcome, Verdict

GOLDEN = Path(__file__).parent / "golden" / "phrases.txt"
"""`python -m tests.report.test_phrases` writes it again."""


def said() -> str:
    lines = []
    for language in Language:
        words = Words(language)
        for caution in EVERY_CAUTION:
            key = f"caution-{caution.kind}"
            lines.append(f"{words(key)}: {caution_detail(caution, words)} → {words(f'{key}-next')}")
        lines += [reasons(Verdict(Outcome.INFEASIBLE, (reason,)), words) for reason in EVERY_REASON]
        lines += [note_line(note, words) for note in EVERY_NOTE]
    return "\n".join(lines) + "\n"


def test_the_sentences_are_those_of_the_golden() -> None:
    assert said() == GOLDEN.read_text(encoding="utf-8")


if __name__ == "__main__":
    GOLDEN.write_text(said(), encoding="utf-8")
