"""Rule for levels that say nothing of the server: which are measured again, and when (docs/measuring.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import psutil

from tuner.bench.level import Level
from tuner.load.early_end import SHORTAGES
from tuner.measurement import Measurement
from tuner.slo import Slo
from tuner.telemetry.cautions import Caution, Observation, Sign
from tuner.verdict import Outcome, Reason, ReasonKind, failed_alone, lag_invalid_ms

LOUDER_SHARE = 0.25
"""Share of all cores that others must take beyond the quietest level before a rejection is doubted. Servers and
client need few of many cores. Less than this comes and goes on any shared machine."""

OWN_THROTTLES = frozenset({"power cap"})
"""Throttle reasons of a GPU that is just under load. They are no disturbance."""

LOOK_S = 3.0
"""Seconds that the machine must be quiet before a load is repeated."""

PATIENCE_S = 600.0
"""Most seconds that all loads of one server wait for quiet. A start and its claim take that long."""

PATIENCE_LEVELS = 30.0
"""Most seconds of one wait, in lengths of its level."""


class DoubtKind(StrEnum):
    """Kind of a doubt, with what becomes of the level if it comes again in the repeat."""

    CLIENT = "client"
    """The client is the bottleneck: no repeat helps."""
    SPOILT = "spoilt"
    """The level is invalid. It never counts."""
    LOUD = "loud"
    """It was rejected while the machine was louder than before. The repeat counts: the machine is like that."""
    FAILED = "failed"
    """It was rejected for failed requests alone. The repeat counts."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """Doubt about a level, with what was seen."""

    kind: DoubtKind
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Loudness:
    """What others did on the machine: cores that they took, and `signs` on the GPUs."""

    foreign_cores: float = 0.0
    signs: frozenset[Observation] = frozenset()

    @classmethod
    def of(cls, cautions: Iterable[Caution]) -> Loudness:
        """Read it off a level's cautions."""
        seen = [one for caution in cautions for one in caution.seen]
        cores = [float(one.value) for one in seen if one.sign is Sign.FOREIGN_CORES and one.value is not None]
        gpus = (one for one in seen if one.sign in (Sign.THROTTLE_REASON, Sign.PROCESS_ID))
        return cls(sum(cores), frozenset(one for one in gpus if one.value not in OWN_THROTTLES))

    def beyond(self, quiet: Loudness) -> tuple[Reason, ...]:
        """List what is plainly louder than in `quiet`."""
        reasons = []
        if self.foreign_cores > quiet.foreign_cores + LOUDER_SHARE * (psutil.cpu_count() or 1):
            reasons.append(Reason(ReasonKind.OTHERS_BUSY, self.foreign_cores, quiet.foreign_cores))
        for one in sorted(self.signs - quiet.signs, key=str):
            kind = ReasonKind.GPU_THROTTLED if one.sign is Sign.THROTTLE_REASON else ReasonKind.GPU_SHARED
            subject = one.value if isinstance(one.value, str) else f"{one.value or 0:.0f}"
            reasons.append(Reason(kind, one.gpu, subject=subject))
        return tuple(reasons)

    def at_least(self, other: Loudness) -> Loudness:
        """Return what both have in common."""
        return Loudness(min(self.foreign_cores, other.foreign_cores), self.signs & other.signs)


@dataclass
class Surroundings:
    """Memory of one server's session: how loud its quietest level was. None before the first that counts."""

    quietest: Loudness | None = None

    def doubt(self, level: Level) -> Doubt | None:
        """Return why a level that had limits to keep says nothing of them, None if it does."""
        if level.verdict.outcome is Outcome.INVALID:
            return self.spoilt(level.measurement, level.verdict.reasons)
        if level.verdict.outcome is not Outcome.INFEASIBLE:
            return None
        again = (*level.verdict.reasons, Reason(ReasonKind.MEASURED_AGAIN))
        if failed_alone(level.measurement):
            return Doubt(DoubtKind.FAILED, again)
        louder = self._louder(level.measurement, self.quietest)
        return Doubt(DoubtKind.LOUD, (*louder, *again)) if louder else None

    def spoilt(self, measurement: Measurement, faults: tuple[Reason, ...]) -> Doubt | None:
        """Tell a client that is the bottleneck from one that was disturbed. None without `faults`."""
        if not faults:
            return None
        busy = any(reason.kind is ReasonKind.CLIENT_BUSY for reason in faults)
        lacks = measurement.aborted is not None and measurement.aborted.kind in SHORTAGES
        own = lacks or (busy and not self._louder(measurement, self.quietest or Loudness()))
        return Doubt(DoubtKind.CLIENT if own else DoubtKind.SPOILT, faults)

    def counts(self, measurement: Measurement, *, again: bool) -> None:
        """Take in a level that counts. What was as loud `again` in a repeat is how this machine is."""
        now = Loudness.of(measurement.cautions)
        self.quietest = now if again or self.quietest is None else self.quietest.at_least(now)

    def is_quiet(self, cautions: Iterable[Caution], lag_ms: float, slos: Sequence[Slo]) -> bool:
        """Return True if a look at the machine without load found it as it was at the quietest level."""
        return lag_ms <= lag_invalid_ms(slos) and not Loudness.of(cautions).beyond(self.quietest or Loudness())

    @staticmethod
    def _louder(measurement: Measurement, quiet: Loudness | None) -> tuple[Reason, ...]:
        return () if quiet is None else Loudness.of(measurement.cautions).beyond(quiet)
