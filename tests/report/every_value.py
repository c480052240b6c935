"""Recorded values of every kind: cautions with every sign, reasons with every early end, notes."""

from __future__ import annotations

from tuner.bench.capacity_search import Capacity, Ended, Incumbent
from tuner.bench.measured import FellBehind, LostForAMoment, Note, NothingTried, NotOffered, Remark
from tuner.load.early_end import EarlyEnd, EarlyEndKind
from tuner.measurement import LoadKind
from tuner.slo import parse_slo
from tuner.telemetry.cautions import Caution, CautionKind, Observation, Sign
from tuner.verdict import Reason, ReasonKind

EVERY_CAUTION = (
    Caution(
        CautionKind.CLIENT_BOUND,
        (Observation(Sign.CPU_SHARE, 0.93), Observation(Sign.LAG_MS, 12.0), Observation(Sign.LATE_MS, 18.1)),
    ),
    Caution(CautionKind.FEW_REQUESTS, (Observation(Sign.COMPLETED, 301.0),)),
    Caution(CautionKind.THROTTLED, (Observation(Sign.THROTTLE_REASON, "power cap", 0),)),
    Caution(CautionKind.FOREIGN_PROCESS, (Observation(Sign.PROCESS_ID, 4711.0, 1),)),
    Caution(CautionKind.DRIFT, (Observation(Sign.FIRST_HALF_MS, 310.0), Observation(Sign.SECOND_HALF_MS, 402.0))),
    Caution(CautionKind.HOST_BUSY, (Observation(Sign.FOREIGN_CORES, 1.3),)),
    Caution(CautionKind.METRICS_MISSING, (Observation(Sign.NO_METRICS), Observation(Sign.NO_PREEMPTION_COUNTER))),
)

LIMIT = parse_slo("p99 ttft <= 500ms")
EVERY_REASON = (
    *(Reason(kind, 0.93, 975.0, str(LIMIT)) for kind in ReasonKind if kind is not ReasonKind.ENDED_EARLY),
    *(
        Reason(ReasonKind.ENDED_EARLY, ended=EarlyEnd(kind, 18, LIMIT, seconds=22.0))
        for kind in EarlyEndKind
        if kind is not EarlyEndKind.RECORDED
    ),
    Reason(ReasonKind.ENDED_EARLY, ended=EarlyEnd(EarlyEndKind.RECORDED, recorded="磁盘已满")),
)

BEST = Incumbent(10.0, 12.5)
EVERY_NOTE: tuple[Note, ...] = (
    NotOffered(50.0, (Reason(ReasonKind.CLIENT_BUSY, 0.95), Reason(ReasonKind.CLIENT_LATE, 21.0))),
    NotOffered(256, (Reason(ReasonKind.CLIENT_LATE, 145.0),), LoadKind.CLOSED),
    NothingTried(20.0, 0.4),
    FellBehind(Capacity(Ended.RACE_LOST, None, None, 10.0, 11.0, 300.0, likely=9.7), BEST),
    FellBehind(Capacity(Ended.RACE_LOST, None, None, 10.0, 11.0, 300.0), BEST),
    FellBehind(Capacity(Ended.HOPELESS, None, None, None, 8.75, 300.0), BEST),
    LostForAMoment(),
    Remark("早期版本的备注"),
)
