"""English for the values of this room."""

from __future__ import annotations

from tuner import formatting
from tuner.bench.capacity_search import Capacity, Incumbent
from tuner.bench.measured import FellBehind, LostForAMoment, Note, NothingTried, NotOffered, Remark


def note_text(note: Note) -> str:
    """Say a note of a trial in a line."""
    match note:
        case NotOffered():
            return f"{formatting.qps(note.rate)} could not be offered: {'; '.join(map(str, note.reasons))}"
        case NothingTried():
            return (
                f"no rate was tried: in {formatting.duration(note.seconds)} a closed loop gave "
                f"{formatting.qps(note.saturation)}, too little for a probe to tell anything"
            )
        case FellBehind():
            return _behind(note.capacity, note.incumbent)
        case LostForAMoment():
            return "the server did not take requests for a moment, and lives"
        case Remark():
            return note.text


def _behind(capacity: Capacity, best: Incumbent) -> str:
    if capacity.failed is not None:
        likely = "" if capacity.likely is None else f"; its tail says about {formatting.qps(capacity.likely)}"
        return (
            f"it does not keep the limits at {formatting.qps(capacity.failed)}, "
            f"where the best so far sustains {formatting.qps(best.rate)}{likely}"
        )
    return (
        f"a closed loop gives {formatting.qps(capacity.saturation)} at most, where it gives "
        f"{formatting.qps(best.saturation)} of the best so far, which sustains {formatting.qps(best.rate)}"
    )
