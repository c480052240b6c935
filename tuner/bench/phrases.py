"""Sentences for the values of this room, by default in English."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import StrEnum

from tuner import formatting
from tuner.bench.capacity_search import Capacity, Incumbent
from tuner.bench.measured import FellBehind, LostForAMoment, Note, NothingTried, NotOffered, Remark
from tuner.measurement import LoadKind
from tuner.verdict import Reason


class NotePhrase(StrEnum):
    """Sentence of a note, or part of one."""

    NOT_OFFERED = "not-offered"
    CLIENTS = "clients"
    NOTHING_TRIED = "nothing-tried"
    RATE_FAILED = "rate-failed"
    TAIL_SAYS = "tail-says"
    LOOP_BEHIND = "loop-behind"
    LOST_FOR_A_MOMENT = "lost-for-a-moment"


NOTES = {
    NotePhrase.NOT_OFFERED: "{load} could not be offered: {reasons}",
    NotePhrase.CLIENTS: "{clients:g} concurrent requests",
    NotePhrase.NOTHING_TRIED: "no rate was tried: in {seconds} a closed loop gave {loop}, "
    "too little for a probe to tell anything",
    NotePhrase.RATE_FAILED: "it does not keep the limits at {failed}, where the best so far sustains {best}{tail}",
    NotePhrase.TAIL_SAYS: "; its tail says about {likely}",
    NotePhrase.LOOP_BEHIND: "a closed loop gives {loop} at most, where it gives {best_loop} of the best so far, "
    "which sustains {best}",
    NotePhrase.LOST_FOR_A_MOMENT: "the server did not take requests for a moment, and lives",
}
"""English text of each phrase. The report has the Chinese one (report/phrases.py)."""


def note_text(note: Note, texts: Mapping[NotePhrase, str] = NOTES, reason_text: Callable[[Reason], str] = str) -> str:
    """Say a note of a trial in a line, in the words of `texts`."""
    match note:
        case NotOffered():
            reasons = "; ".join(map(reason_text, note.reasons))
            clients = texts[NotePhrase.CLIENTS].format(clients=note.rate)
            load = formatting.qps(note.rate) if note.loop is LoadKind.OPEN else clients
            return texts[NotePhrase.NOT_OFFERED].format(load=load, reasons=reasons)
        case NothingTried():
            return texts[NotePhrase.NOTHING_TRIED].format(
                seconds=formatting.duration(note.seconds), loop=formatting.qps(note.saturation)
            )
        case FellBehind():
            return _behind(note.capacity, note.incumbent, texts)
        case LostForAMoment():
            return texts[NotePhrase.LOST_FOR_A_MOMENT]
        case Remark():
            return note.text


def _behind(capacity: Capacity, best: Incumbent, texts: Mapping[NotePhrase, str]) -> str:
    if capacity.failed is None:
        return texts[NotePhrase.LOOP_BEHIND].format(
            loop=formatting.qps(capacity.saturation),
            best_loop=formatting.qps(best.saturation),
            best=formatting.qps(best.rate),
        )
    likely = capacity.likely
    tail = "" if likely is None else texts[NotePhrase.TAIL_SAYS].format(likely=formatting.qps(likely))
    failed, rate = formatting.qps(capacity.failed), formatting.qps(best.rate)
    return texts[NotePhrase.RATE_FAILED].format(failed=failed, best=rate, tail=tail)
