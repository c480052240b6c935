"""The golden of what the page says about recorded values, in both languages."""

from __future__ import annotations

from pathlib import Path

from tests.report.cautions import EVERY_CAUTION
from tuner.load.early_end import EarlyEnd, EarlyEndKind
from tuner.report.phrases import caution_detail, reasons
from tuner.report.translations import Language, Words
from tuner.slo import parse_slo
from tuner.verdict import Outcome, Reason, ReasonKind, Verdict

GOLDEN = Path(__file__).parent / "golden" / "phrases.txt"
"""`python -m tests.report.test_phrases` writes it again."""


LIMIT = parse_slo("p99 ttft <= 500ms")
EVERY_REASON = (
    *(Reason(kind, 0.93, 975.0, str(LIMIT)) for kind in ReasonKind if kind is not ReasonKind.ENDED_EARLY),
    *(Reason(ReasonKind.ENDED_EARLY, ended=EarlyEnd(kind, 18, LIMIT)) for kind in EarlyEndKind),
)
"""A reason of every kind, with every early end."""


def said() -> str:
    lines = []
    for language in Language:
        words = Words(language)
        for caution in EVERY_CAUTION:
            key = f"caution-{caution.kind}"
            lines.append(f"{words(key)}: {caution_detail(caution, words)} → {words(f'{key}-next')}")
        lines += [reasons(Verdict(Outcome.INFEASIBLE, (reason,)), words) for reason in EVERY_REASON]
    return "\n".join(lines) + "\n"


def test_the_sentences_are_those_of_the_golden() -> None:
    assert said() == GOLDEN.read_text(encoding="utf-8")


if __name__ == "__main__":
    GOLDEN.write_text(said(), encoding="utf-8")
